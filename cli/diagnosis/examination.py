"""All that the doctor looks at, in the order of its report."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from batchyard.cli.diagnosis import (
    cards,
    limits,
    memory,
    models,
    mps,
    nvml,
    places,
    processors,
    server,
    service,
    software,
    tensorflow,
)
from batchyard.cli.diagnosis.cgroups import read_limits
from batchyard.cli.diagnosis.finding import Finding, failure, ok, warning
from batchyard.cli.serving import plan
from batchyard.pool.config import Broker, Config, Pool, read_toml, validate
from batchyard.pool.inventory import read_inventory, visible_devices
from batchyard.pool.mps import read_mps
from batchyard.pool.plan import ServerPlan
from batchyard.wire.endpoints import default_endpoints
from batchyard.wire.errors import ConfigurationError, Unauthenticated

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Subject:
    """What is to run here. Without a configuration that works, as much of it as is known."""

    path: Path | None = None
    config: Config | None = None
    plan: ServerPlan | None = None
    complaints: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def broker(self) -> Broker:
        return self.config.broker if self.config else Broker()

    @property
    def pool(self) -> Pool:
        return self.config.pool if self.config else Pool()

    @property
    def wants_gpu(self) -> bool:
        """Whether the configuration asks for a GPU by name."""
        return any(group.device not in ("auto", "cpu") for group in self.pool.workers)


def read_subject(path: Path | None) -> Subject:
    """The configuration in a file, and its plan for this machine."""
    if path is None:
        return Subject()
    try:
        config = validate(read_toml(path), str(path))
    except ConfigurationError as error:
        return Subject(path, complaints=tuple(str(error).splitlines()))
    try:
        made, notes = plan(config)
    except ConfigurationError as error:
        return Subject(path, config, complaints=tuple(str(error).splitlines()))
    return Subject(path, config, made, notes=tuple(notes))


def examine(
    subject: Subject, looking: tensorflow.Looking | None, patience_s: float
) -> Iterator[Finding]:
    """Every finding. ``looking`` has begun to import TensorFlow, and may take ``patience_s``.

    What cannot be looked at is a warning, and does not keep the rest from being looked at.
    """
    parts: list[tuple[str, Callable[[], Sequence[Finding]]]] = [
        ("configuration", lambda: _configuration(subject)),
        ("packages", _software),
        ("gpu", lambda: _gpus(subject, looking, patience_s)),
        ("memory", lambda: _memory(subject)),
        ("processors", lambda: _processors(subject)),
        ("limits", lambda: _limits(subject)),
        ("models", lambda: _models(subject)),
        ("server", lambda: _server(subject)),
        ("systemd", lambda: service.check_units(*service.read_units())),
    ]
    for name, part in parts:
        try:
            yield from part()
        except Exception as error:  # a machine that is odd in one respect is looked at in others
            found = f"could not be looked at: {type(error).__name__}: {error}"
            remedy = "Please report it, with the output of batchyard doctor --json."
            yield warning(name, found, remedy)


def _configuration(subject: Subject) -> list[Finding]:
    check = "configuration"
    if subject.path is None:
        return [ok(check, "none given; the rest is held against the defaults")]
    if subject.complaints:
        remedy = "Correct it; docs/configuration.md has every key."
        return [failure(check, complaint, remedy) for complaint in subject.complaints]
    names = ", ".join(model.name for model in subject.config.models) if subject.config else ""
    return [ok(check, f"{subject.path} can be served: {names}")]


def _software() -> list[Finding]:
    return [
        software.check_python(platform.python_version(), software.python_needed()),
        *software.check_packages(software.requirements(), software.installed_version),
    ]


def _gpus(subject: Subject, looking: tensorflow.Looking | None, patience_s: float) -> list[Finding]:
    inventory = read_inventory()
    # A driver that hangs is not asked for more.
    driver = nvml.read_driver() if inventory.gpus else cards.Driver()
    wants = subject.wants_gpu
    findings = cards.check_cards(inventory, driver, nvml.read_device_files(), os.environ, wants)
    if inventory.gpus:
        served = subject.config.models if subject.config else []
        on_card = [model.name for model in served if model.device_arrays]
        version = software.installed_version("cuda-bindings")
        findings.append(software.check_binding(version, on_card))
        findings += mps.check_mps(read_mps(os.environ), os.environ, os.geteuid())
    findings += cards.check_xids(nvml.read_xids())
    if looking is None:
        return findings
    sight = looking.result(patience_s)
    visible = [device.uuid for device in visible_devices(inventory, os.environ).devices]
    return [
        tensorflow.check_tensorflow(sight),
        *findings,
        *cards.check_cuda(driver, sight.cuda_version),
        *tensorflow.check_devices(sight, visible, wants),
    ]


def _memory(subject: Subject) -> list[Finding]:
    broker, pool = subject.broker, subject.pool
    needs = memory.MemoryNeeds(
        arena=pool.arena_mb * _MIB,
        clients=(broker.region_mb * broker.max_regions + broker.max_queue_mb) * _MIB,
        workers=len(subject.plan.workers) if subject.plan else 1,
    )
    return memory.check_memory(memory.read_memory(), read_limits(), needs)


def _processors(subject: Subject) -> list[Finding]:
    workers = [worker.settings for worker in subject.plan.workers] if subject.plan else []
    threads = [worker.intra_op_parallelism for worker in workers if worker.device == "cpu"]
    found = processors.check_processors(processors.read_processors(), read_limits(), threads)
    clock = processors.read_clock_source(), processors.is_clock_synchronised()
    return [*found, *processors.check_clock(*clock)]


def _limits(subject: Subject) -> list[Finding]:
    return [
        limits.check_process_handles(limits.try_process_handles()),
        limits.check_shared_memory(limits.try_shared_memory()),
        *limits.check_limits(
            limits.read_process_limits(),
            read_limits(),
            local_clients=subject.broker.max_regions if subject.broker.region_mb else 0,
            workers=len(subject.plan.workers) if subject.plan else 1,
            processors=len(os.sched_getaffinity(0)),
        ),
    ]


def _models(subject: Subject) -> list[Finding]:
    findings = []
    for model in subject.config.models if subject.config else []:
        path = Path(model.path if model.runtime == "savedmodel" else model.path.rpartition(":")[0])
        # A module of an installed package is no file.
        if path.exists() or model.runtime == "savedmodel":
            found = models.look_at_model(model.name, path.absolute())
            findings.append(models.check_model(found, is_root=os.geteuid() == 0))
    return findings


def _server(subject: Subject) -> list[Finding]:
    endpoints = subject.broker.bind
    asked = server.reachable(endpoints) if subject.config else default_endpoints()
    stats, refusal = server.ask_server(asked)
    # What does not know us is a server all the same.
    runs = stats is not None or isinstance(refusal, Unauthenticated)
    findings = [*server.check_server(stats, refusal), *places.check_no_ipc(endpoints, os.environ)]
    for endpoint in endpoints:
        scheme, _, rest = endpoint.partition("://")
        if scheme == "ipc":
            findings.append(places.check_ipc(places.look_at_ipc(rest), os.geteuid(), runs))
            continue
        host, _, number = rest.rpartition(":")
        if number.isdecimal():
            findings += _port(host, int(number), endpoint, runs)
    return [*findings, *_gateways(subject.config, runs)]


def _gateways(config: Config | None, server_runs: bool) -> list[Finding]:
    findings = []
    for name in ("rest", "grpc", "metrics") if config else ():
        section = getattr(config, name)
        findings += _port(section.host, section.port or 0, f"[{name}]", server_runs)
    if config and config.grpc.socket_path is not None:
        place = places.look_at_ipc(config.grpc.socket_path)
        findings.append(places.check_ipc(place, os.geteuid(), server_runs))
    return findings


def _port(host: str, number: int, what: str, server_runs: bool) -> list[Finding]:
    """Whether it is free; nothing for port 0, which stands for any."""
    if not number:
        return []
    return [places.check_port(places.look_at_port(host, number), what, is_ours=server_runs)]
