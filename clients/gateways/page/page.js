// The status page: asks /stats.json again and again, and shows what came of it.

import { age, bytes, clock, duration, number, percent } from "./format.js";
import { between, changes, keyOf, mean, obstacles, quantile } from "./interval.js";
import { BarPlot, element, TimePlot } from "./plot.js";
import { showTable } from "./tables.js";

const WINDOW_S = 10;
const HISTORY_S = 3600;
const EVENTS_MAX = 50;
const BARS_MAX = 16;
const TIMEOUT_MS = 5000;
const RED = ["bad-1", "bad-2", "bad-3", "bad-4"];
const HUES = ["hue-1", "hue-2", "hue-3", "hue-4"];

const intervalMs = Math.max(200, Number(new URLSearchParams(location.search).get("interval_ms")) || 2000);
const $ = (id) => document.getElementById(id);

/** Answers of the last seconds, which figures and tables are of. */
let recent = [];
/** What plots are of: a time, and an interval, or null where the server did not answer. */
const history = [];
let silentSince = null;

const plots = makePlots();

function makePlots() {
  let all = [];
  const onCursor = (t, teller) => {
    for (const plot of all) {
      if (!(plot instanceof TimePlot) || plot.cursor === t) continue;
      plot.cursor = t;
      plot.draw();
    }
    if (teller) $("told").textContent = teller.drawing.getAttribute("aria-label");
  };
  const time = (title, note, options) => new TimePlot(title, note, { ...options, onCursor });
  const made = {
    requests: time("Requests", "a second, by outcome", { format: number, stacked: true }),
    latency: time("Latency", "of requests with outputs", { format: duration }),
    queue: time("Queue", "rows that wait", { format: number }),
    busy: time("Busy", "share of the workers' time, of a core", { format: percent, top: 1 }),
    arena: time("Arena", "share of the shared memory in use", { format: percent, top: 1 }),
    gpu: time("GPUs", "utilisation, and memory in use", { format: percent, top: 1 }),
    batches: new BarPlot("Batches", "share, by their rows", percent),
  };
  all = Object.values(made);
  $("plots").append(...all.map((plot) => plot.figure));
  made.gpu.figure.hidden = true;
  return made;
}

async function poll() {
  let stats = null;
  let why = "the metrics gateway cannot be reached";
  try {
    const answer = await fetch("stats.json", {
      cache: "no-store",
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    const body = await answer.json();
    if (answer.ok) stats = body;
    else why = body.error ?? `the metrics gateway answers ${answer.status}`;
  } catch (error) {
    if (error.name === "TimeoutError") why = "the metrics gateway does not answer";
    else if (error.name === "SyntaxError") why = "the metrics gateway answers something else";
  }
  const now = Date.now() / 1e3;
  if (stats) heard(stats, now);
  else missed(why, now);
  setTimeout(poll, intervalMs);
}

function heard(stats, now) {
  const last = recent.at(-1);
  if (silentSince !== null) note(`the server answers again, after ${age(now - silentSince)}`, now);
  silentSince = null;
  if (last) {
    changes(last.stats, stats).forEach((text) => note(text, now));
    const interval = between(last.stats, stats);
    if (interval === null) return;
    remember(now, interval, stats);
    if (last.stats.broker.epoch !== stats.broker.epoch) recent = [];
  }
  recent.push({ t: now, stats });
  while (recent.length > 2 && recent[1].t <= now - WINDOW_S) recent.shift();
  showState(stats);
  // The first answer has nothing to be held against: then it is all since the broker's start.
  const before = recent.length > 1 ? recent[0].stats : { ...stats, broker: { epoch: null } };
  const interval = between(before, stats);
  showTiles(stats, interval);
  showTables(stats, interval);
  offerModels(stats);
  showPlots();
}

function missed(why, now) {
  if (silentSince === null) {
    silentSince = now;
    note(`no answer: ${why}`, now);
  }
  record({ t: now, interval: null });
  const last = recent.at(-1);
  const since = last ? `; what is shown is of ${clock(last.t)}` : "";
  setState("no answer", "bad");
  setAlert(`No answer since ${clock(silentSince)}: ${why}${since}. Asking again …`);
  $("main").classList.toggle("stale", true);
  showPlots();
}

function remember(t, interval, stats) {
  const arena = stats.arena.bytes ? stats.arena.used_bytes / stats.arena.bytes : 0;
  record({ t, interval, arena, devices: stats.devices ?? [] });
}

function record(point) {
  history.push(point);
  while (history[0].t < point.t - HISTORY_S) history.shift();
}

function note(text, t) {
  $("no-events").hidden = true;
  const time = element("time", { datetime: new Date(t * 1e3).toISOString() }, clock(t));
  $("events").prepend(element("li", {}, time, ` ${text}`));
  while ($("events").children.length > EVENTS_MAX) $("events").lastChild.remove();
}

function showState(stats) {
  const reasons = obstacles(stats);
  if (stats.broker.draining) setState("draining", "warn");
  else if (reasons.length) setState("not ready", "bad");
  else setState("ready", "good");
  setAlert(reasons.length && !stats.broker.draining ? `Not ready: ${reasons.join("; ")}` : "");
  $("main").classList.toggle("stale", false);
  const version = stats.version ? `version ${stats.version}, ` : "";
  $("server").textContent =
    `${version}broker ${stats.broker.pid} up ${age(stats.broker.uptime_s)}, ` +
    `${stats.broker.clients} client${stats.broker.clients === 1 ? "" : "s"}`;
}

function setState(text, css) {
  // A screen reader says it when it changes, and only then.
  if ($("state").textContent !== text) $("state").textContent = text;
  $("state").className = `state ${css}`;
  document.title = css === "good" ? "Batchyard" : `${text} – Batchyard`;
}

function setAlert(text) {
  if ($("alert").textContent !== text) $("alert").textContent = text;
  $("alert").hidden = !text;
}

function showTiles(stats, { total, seconds, workers, busy, cpu }) {
  const latency = (q) => duration(quantile(total.request, q), total.request.bounds);
  const serving = workers.filter(({ state }) => state === "READY" || state === "BUSY").length;
  const arena = stats.arena;
  const tiles = [
    ["Requests", `${number(total.requests / seconds)}/s`, `${number(total.good / seconds)}/s in time`],
    ["Errors", `${number(total.failed / seconds)}/s`, codes(total, seconds) || "none", total.failed],
    ["Late", `${number(total.late / seconds)}/s`, "answered after the deadline", total.late],
    ["Latency p50", latency(0.5), `p95 ${latency(0.95)}`],
    ["Latency p99", latency(0.99), `mean ${duration(mean(total.request))}`],
    ["Queue", `${number(total.queueRows)} rows`, `waited ${duration(quantile(total.queue, 0.5))} (p50)`],
    ["Batches", `${number(total.meanRows)} rows`, `${number(total.batches / seconds)}/s, ${percent(total.padding)} padding`],
    ["Workers", `${serving} of ${workers.length}`, `${percent(busy)} busy`, serving < workers.length],
    ["Arena", percent(arena.used_bytes / arena.bytes), `of ${bytes(arena.bytes)}`],
    ["Broker", percent(cpu), "of a core"],
  ];
  $("tiles").replaceChildren(
    ...tiles.map(([name, value, more, alarming]) => {
      const tile = element("div", alarming ? { class: "alarming" } : {});
      tile.append(element("dt", {}, name), element("dd", {}, element("b", {}, value)), element("dd", {}, more));
      return tile;
    }),
  );
}

function sum(values) {
  return values.reduce((a, b) => a + b, 0);
}

function codes(model, seconds) {
  return model.errors.map(([code, count]) => `${code} ${number(count / seconds)}/s`).join(", ");
}

function missedBy(model, seconds) {
  return Object.entries(model.misses)
    .filter(([, count]) => count)
    .map(([why, count]) => `${why} ${number(count / seconds)}/s`)
    .join(", ");
}

function showTables(stats, { models, workers, seconds }) {
  const time = (distribution, q) => duration(quantile(distribution, q), distribution.bounds);
  showTable($("models"), "Models", [
    { name: "model", head: true, of: (m) => `${m.name}`, more: modelState },
    { name: "requests/s", of: (m) => number(m.requests / seconds) },
    { name: "in time/s", of: (m) => number(m.good / seconds) },
    { name: "errors/s", of: (m) => number(m.failed / seconds), more: (m) => codes(m, seconds), bad: (m) => m.failed },
    { name: "missed/s", of: (m) => number(missedOf(m) / seconds), more: (m) => missedBy(m, seconds), bad: missedOf },
    { name: "queue", of: (m) => number(m.queueRows) },
    { name: "p50", of: (m) => time(m.request, 0.5) },
    { name: "p95", of: (m) => time(m.request, 0.95) },
    { name: "p99", of: (m) => time(m.request, 0.99) },
    { name: "rows/batch", of: (m) => number(m.meanRows), more: (m) => (m.padding ? `${percent(m.padding)} padding` : "") },
    { name: "execution", of: (m) => duration(mean(m.execution)) },
    { name: "prediction error", of: (m) => percent(m.predictionError) },
  ], models);
  showTable($("workers"), "Workers", [
    { name: "worker", head: true, of: (w) => `${w.id}` },
    { name: "device", of: (w) => w.device },
    { name: "state", of: (w) => w.state, bad: (w) => w.state === "FAILED" },
    { name: "busy", of: (w) => percent(w.busy), share: (w) => w.busy },
    { name: "batches/s", of: (w) => number(w.batches / seconds) },
    { name: "restarts", of: (w) => number(w.restarts), bad: (w) => w.restarts },
    { name: "pid", of: (w) => `${w.pid}` },
  ], workers);
  const devices = stats.devices ?? [];
  $("devices-section").hidden = !devices.length;
  showTable($("devices"), "GPUs", [
    { name: "device", head: true, of: (d) => d.device, more: (d) => d.name },
    { name: "utilisation", of: (d) => percent(d.utilization), share: (d) => d.utilization ?? 0 },
    { name: "memory", of: (d) => percent(d.memory_used_bytes / d.memory_bytes), share: (d) => d.memory_used_bytes / d.memory_bytes },
    { name: "in use", of: (d) => `${bytes(d.memory_used_bytes)} of ${bytes(d.memory_bytes)}` },
  ], devices);
}

function missedOf(model) {
  return sum(Object.values(model.misses));
}

function modelState(model) {
  const current = model.isCurrent ? "" : ", not the current one";
  const error = model.error ? `: ${model.error}` : "";
  return `version ${model.version}, ${model.state}${current}${error}`;
}

function offerModels(stats) {
  const wanted = stats.models.map(keyOf);
  const options = [...$("model").options].slice(1);
  if (options.map((option) => option.value).join() === wanted.join()) return;
  const chosen = $("model").value;
  for (const option of options) option.remove();
  for (const model of stats.models) {
    $("model").append(element("option", { value: keyOf(model) }, `${model.name} ${model.version}`));
  }
  $("model").value = wanted.includes(chosen) ? chosen : "";
}

function showPlots() {
  const key = $("model").value;
  const seconds = Number($("window").value);
  const times = history.map(({ t }) => t);
  const ofModel = ({ interval }) =>
    interval && (key ? (interval.models.find((model) => model.key === key) ?? null) : interval.total);
  const models = history.map(ofModel);
  const series = (name, css, value) => ({
    name,
    css,
    values: history.map((point, i) => (models[i] ? value(models[i], point) : null)),
  });
  const rate = (name, css, count) => series(name, css, (m, { interval }) => count(m) / interval.seconds);
  const failures = [...new Set(models.flatMap((m) => (m ? m.errors.map(([code]) => code) : [])))].sort();
  plots.requests.update(times, [
    rate("in time", "good", (m) => m.good),
    rate("late", "warn", (m) => m.late),
    ...failures.map((code, i) => rate(code, RED[i % RED.length], (m) => m.codes[code] ?? 0)),
  ], seconds);
  plots.latency.update(times, [["p50", 0.5], ["p95", 0.95], ["p99", 0.99]].map(([name, q], i) =>
    series(name, HUES[i], (m) => quantile(m.request, q)),
  ), seconds);
  plots.queue.update(times, [series("rows", HUES[0], (m) => m.queueRows)], seconds);
  plots.busy.update(times, [
    series("workers", HUES[0], (_, { interval }) => interval.busy),
    series("broker", HUES[1], (_, { interval }) => interval.cpu),
  ], seconds);
  plots.arena.update(times, [series("in use", HUES[0], (_, { arena }) => arena)], seconds);
  showGpus(times, series, seconds);
  plots.batches.update(bars(models.filter((m, i) => m && times[i] >= times.at(-1) - seconds)));
}

function showGpus(times, series, seconds) {
  const names = [...new Set(history.flatMap(({ devices }) => (devices ?? []).map((d) => d.device)))];
  plots.gpu.figure.hidden = !names.length;
  const of = (name, value) => (_, { devices }) => {
    const device = devices.find((d) => d.device === name);
    return device ? value(device) : null;
  };
  plots.gpu.update(times, names.flatMap((name, i) => [
    series(name, HUES[i % HUES.length], of(name, (d) => d.utilization)),
    series(`${name} memory`, `${HUES[i % HUES.length]} second`, of(name, (d) => d.memory_used_bytes / d.memory_bytes)),
  ]), seconds);
}

/** Batches by their rows; in powers of two, where there are too many sizes. */
function bars(models) {
  const counts = new Map();
  for (const model of models) {
    for (const [rows, count] of Object.entries(model.batchRows)) {
      if (count) counts.set(Number(rows), (counts.get(Number(rows)) ?? 0) + count);
    }
  }
  const sizes = [...counts].sort((a, b) => a[0] - b[0]);
  if (sizes.length <= BARS_MAX) return sizes.map(([rows, count]) => [`${rows}`, count]);
  const buckets = new Map();
  for (const [rows, count] of sizes) {
    const bucket = 2 ** Math.ceil(Math.log2(rows));
    buckets.set(bucket, (buckets.get(bucket) ?? 0) + count);
  }
  return [...buckets].map(([to, count]) => [to > 2 ? `≤${to}` : `${to}`, count]);
}

$("model").addEventListener("change", showPlots);
$("window").addEventListener("change", showPlots);
poll();
