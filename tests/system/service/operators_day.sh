#!/usr/bin/env bash
# A day of the person on call, on a machine (or in a container) of its own, as root:
#
#   operators_day.sh WHEEL [NEXT_WHEEL]
#
# Installs the wheel as a service and uses, breaks, reloads, upgrades and stops it under load. Each step
# shows what the service itself says. Fails when a request is lost or a step does not do what it should.
# PYTHON is the interpreter; PACKAGES a folder with what the wheel needs, where there is no index.
# `python -m support.operators_day` (PYTHONPATH=tests) runs it in a container of its own.
set -euo pipefail
wheel=${1:?operators_day.sh WHEEL [NEXT_WHEEL]}
next=${2:-$wheel}
here=$(dirname "$(readlink -f "$0")")
load=$here/../../support/service_load.py
by=/opt/batchyard/bin/batchyard
ipc=ipc:///run/batchyard/broker
tcp=tcp://127.0.0.1:8600
port=9090

step() { printf '\n== %s\n' "$*"; }
show() { systemctl show --value --property="$1" batchyard; }
children() { pgrep --parent "$(show MainPID)" --full "$1"; }
fail() { echo "FAILED: $*"; systemctl status --no-pager --lines=30 batchyard || true; exit 1; }
# Waits until a command succeeds.
until_it() { for _ in $(seq 300); do "$@" >/dev/null 2>&1 && return; sleep 0.1; done; fail "never: $*"; }
has_status() { show StatusText | grep -q "$1"; }

environment() { # FOLDER WHEEL
    "${PYTHON:-python3}" -m venv "$1"
    if [ -n "${PACKAGES:-}" ]; then
        # What it needs besides is there already.
        echo "$PACKAGES" >"$(echo "$1"/lib/python3*/site-packages)/packages.pth"
        "$1/bin/pip" install --quiet --disable-pip-version-check --no-index --no-deps "$2"
    else
        "$1/bin/pip" install --quiet --disable-pip-version-check "$2[cpu,bench]"
    fi
}

begin_load() {
    /opt/batchyard/bin/python "$load" double 10 "$ipc" "$tcp" >/tmp/load &
    load_pid=$!
    until_it grep -q started /tmp/load
}
end_load() { # CODE…: the only ones that requests may end with
    kill "$load_pid"
    wait "$load_pid"
    tail -n 1 /tmp/load
    tail -n 1 /tmp/load | "/opt/batchyard/bin/python" -c '
import json, sys
codes = set(json.load(sys.stdin)["outcomes"])
sys.exit(not codes <= set(sys.argv[1:]))' "$@" || fail "not only $*"
}

step "install from the wheel"
environment /opt/batchyard "$wheel"
$by --version
$by install-service

step "two models, one of TensorFlow, one in Python"
mkdir -p /srv/models
/opt/batchyard/bin/python -P -m batchyard.pool.runtimes.sample /srv/models/half_plus_two 2>/dev/null
printf 'def double(inputs):\n    return {"y": inputs["x"] * 2}\n' >/srv/models/python.py
chmod -R a+rX /srv/models
cat >/etc/batchyard/batchyard.toml <<TOML
[metrics]
port = $port
[broker]
ipc_group = "batchyard-clients"
[[models]]
name = "half_plus_two"
path = "/srv/models/half_plus_two"
[[models]]
name = "double"
runtime = "python"
path = "/srv/models/python.py:double"
[models.signature]
inputs = { x = { dtype = "float32", shape = [-1, 4] } }
outputs = { y = { dtype = "float32", shape = [-1, 4] } }
[[pool.workers]]
device = "cpu"
count = 2
TOML
$by check /etc/batchyard/batchyard.toml
$by doctor /etc/batchyard/batchyard.toml || true

step "start: active once every model is served"
time $by install-service --start | tail -n 12
$by predict half_plus_two '[1, 2, 3]'
$by status

step "predict as another user: by TCP; by the socket only in the group"
setpriv --reuid=65534 --regid=65534 --groups=batchyard-clients $by predict --endpoint $ipc half_plus_two '[1]'
setpriv --reuid=65534 --regid=65534 --clear-groups $by predict --endpoint $tcp half_plus_two '[1]'
setpriv --reuid=65534 --regid=65534 --clear-groups $by predict --endpoint $ipc half_plus_two '[1]' && fail "let in"

step "watch: health, metrics, top under load"
for path in /healthz /readyz /metrics; do
    echo "$path:"
    /opt/batchyard/bin/python -c '
import sys, urllib.request
print(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode()[:300])' "http://127.0.0.1:$port$path"
done
begin_load
$by top --once
end_load OK

step "reload with a new model under load"
begin_load
cp -r /srv/models/half_plus_two /srv/models/second
chmod -R a+rX /srv/models
printf '[[models]]\nname = "second"\npath = "/srv/models/second"\n' >>/etc/batchyard/batchyard.toml
time systemctl reload batchyard
$by predict second '[1, 2, 3]'
show StatusText
end_load OK

step "reload of nonsense is refused"
cp /etc/batchyard/batchyard.toml /tmp/good.toml
printf '[nonsense]\n' >>/etc/batchyard/batchyard.toml
systemctl reload batchyard && fail "accepted"
cp /tmp/good.toml /etc/batchyard/batchyard.toml
journalctl -u batchyard --no-pager --output=cat --lines=4

step "kill a worker under load"
begin_load
kill -KILL "$(children batchyard.pool.worker | head -n 1)"
until_it has_status "1 of 2 workers"
show StatusText
until_it has_status "2 of 2 workers"
show StatusText
end_load OK

step "kill the broker under load"
begin_load
broker=$(children batchyard.broker)
kill -KILL "$broker"
until_it bash -c "journalctl -u batchyard --output=cat --no-pager | grep -q broker_restarted"
$by predict half_plus_two '[1, 2, 3]'
end_load OK
[ "$(show NRestarts)" = 0 ] || fail "systemd had to restart it"
journalctl -u batchyard --no-pager --output=cat --grep='event=(worker|broker)_' | tail -n 8

step "the supervisor is killed: systemd starts all of it again"
kill -KILL "$(show MainPID)"
until_it bash -c '[ "$(systemctl show --value --property=NRestarts batchyard)" = 1 ]'
until_it systemctl is-active --quiet batchyard
until_it has_status Serving
$by predict half_plus_two '[1, 2, 3]'

step "upgrade: another environment takes over"
environment /opt/batchyard-2 "$next"
/opt/batchyard-2/bin/batchyard install-service --start | tail -n 12
tr '\0' ' ' <"/proc/$(show MainPID)/cmdline"
echo
/opt/batchyard-2/bin/batchyard predict half_plus_two '[1, 2, 3]'

step "stop under load: what was accepted is answered"
begin_load
time systemctl stop batchyard
end_load OK UNAVAILABLE
echo "result $(show Result), exit code $(show ExecMainStatus)"
[ "$(show Result)" = success ] || fail "not in good order"
journalctl -u batchyard --no-pager --output=cat --lines=6
[ ! -e /run/batchyard ] || fail "/run/batchyard is left"
echo "All is as it should be."
