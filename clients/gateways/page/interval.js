// What happened between two answers of /stats.json. The same as clients/interval.py, which says more;
// a test holds one against the other. Pure: nothing here touches the page.

const OK = "OK";
const NOTHING = { broker: {}, models: [], workers: [] };

/** What happened from one answer to a later one; null if no time passed. */
export function between(before, after) {
  if (before.broker.epoch !== after.broker.epoch) before = NOTHING;
  const seconds = after.broker.uptime_s - (before.broker.uptime_s ?? 0);
  if (!(seconds > 0)) return null;
  const oldModels = new Map(before.models.map((model) => [keyOf(model), model]));
  const oldWorkers = new Map(before.workers.map((worker) => [worker.id, worker]));
  const bounds = after.bounds.seconds;
  const models = after.models.map((m) => modelInterval(oldModels.get(keyOf(m)) ?? {}, m, bounds));
  const workers = after.workers.map((w) => workerInterval(oldWorkers.get(w.id) ?? {}, w, seconds));
  return {
    seconds,
    cpu: grown(before.broker.cpu_s ?? 0, after.broker.cpu_s) / seconds,
    models,
    workers,
    busy: workers.reduce((sum, worker) => sum + worker.busy, 0) / (workers.length || 1),
    total: together(models),
  };
}

/** The sum of several models. */
export function together(models) {
  return derived({
    queueRows: sum(models, (m) => m.queueRows),
    batches: sum(models, (m) => m.batches),
    rows: sum(models, (m) => m.rows),
    paddingRows: sum(models, (m) => m.paddingRows),
    batchRows: summed(models.map((m) => m.batchRows)),
    codes: summed(models.map((m) => m.codes)),
    misses: summed(models.map((m) => m.misses)),
    request: added(models.map((m) => m.request)),
    queue: added(models.map((m) => m.queue)),
    execution: added(models.map((m) => m.execution)),
    predictionError: null,
  });
}

/** The seconds that a share q did not pass; null when there were none, Infinity beyond the last bound. */
export function quantile(distribution, q) {
  const { bounds, counts } = distribution;
  const count = counts.reduce((a, b) => a + b, 0);
  if (!count) return null;
  const rank = q * count;
  let below = 0;
  let low = 0;
  for (let i = 0; i < bounds.length; i++) {
    if (counts[i] && below + counts[i] >= rank) {
      return low + ((bounds[i] - low) * (rank - below)) / counts[i];
    }
    below += counts[i];
    low = bounds[i];
  }
  return Infinity;
}

/** In seconds; null when there were none. */
export function mean({ counts, sum }) {
  const count = counts.reduce((a, b) => a + b, 0);
  return count ? sum / count : null;
}

/** What a person who watches should see between two answers, in words. */
export function changes(before, after) {
  if (before.broker.epoch !== after.broker.epoch) return ["the broker was started again"];
  const found = [];
  if (after.broker.draining && !before.broker.draining) {
    found.push("the server is draining: it takes no more requests");
  }
  const oldWorkers = new Map(before.workers.map((worker) => [worker.id, worker]));
  for (const worker of after.workers) {
    const old = oldWorkers.get(worker.id) ?? worker;
    if (worker.restarts > old.restarts) found.push(`worker ${worker.id} was started again`);
    else if (worker.state === "FAILED" && old.state !== "FAILED") {
      found.push(`worker ${worker.id} failed`);
    }
  }
  const oldModels = new Map(before.models.map((model) => [keyOf(model), model]));
  for (const model of after.models) {
    if (model.state !== oldModels.get(keyOf(model))?.state) {
      found.push(`${model.name} version ${model.version} is ${model.state}`);
    }
    oldModels.delete(keyOf(model));
  }
  for (const model of oldModels.values()) {
    found.push(`${model.name} version ${model.version} is gone`);
  }
  return found;
}

/** Why requests should go elsewhere, as /readyz says; empty when the server is ready. */
export function obstacles(stats) {
  const found = [];
  if (stats.broker.draining) found.push("the server is shutting down");
  if (!stats.workers.some((worker) => worker.state === "READY" || worker.state === "BUSY")) {
    found.push("no worker is READY");
  }
  for (const name of new Set(stats.models.map((model) => model.name))) {
    const versions = stats.models.filter((model) => model.name === name);
    if (versions.some((model) => model.state === "AVAILABLE")) continue;
    const states = versions.map((model) => `version ${model.version} is ${model.state}`);
    found.push(`model ${name} is not AVAILABLE: ${states.join(", ")}`);
  }
  return found;
}

/** A model's name and version as one text. */
export function keyOf(model) {
  return JSON.stringify([model.name, model.version]);
}

function modelInterval(old, now, bounds) {
  const olds = new Map((old.measures ?? []).map((measure) => [measure.signature, measure]));
  const pairs = now.measures.map((measure) => [olds.get(measure.signature) ?? {}, measure]);
  const distribution = (what) =>
    pairs.length
      ? added(pairs.map(([o, n]) => difference(o[what], n[what], bounds)))
      : { bounds, counts: new Array(bounds.length + 1).fill(0), sum: 0 };
  return derived({
    key: keyOf(now),
    name: now.name,
    version: now.version,
    state: now.state,
    isCurrent: now.is_current,
    error: now.error,
    queueRows: now.queue_rows,
    batches: grown(old.batches ?? 0, now.batches),
    rows: grown(old.rows ?? 0, now.rows),
    paddingRows: grown(old.padding_rows ?? 0, now.padding_rows),
    batchRows: counted(old.batch_rows ?? {}, now.batch_rows),
    codes: summed(pairs.map(([o, n]) => counted(o.codes ?? {}, n.codes))),
    misses: counted(old.deadline_misses ?? {}, now.deadline_misses),
    request: distribution("request_seconds"),
    queue: distribution("queue_seconds"),
    execution: distribution("execution_seconds"),
    predictionError: now.prediction.count ? now.prediction.p50 : null,
  });
}

function derived(model) {
  const late = model.misses.late ?? 0;
  const errors = Object.entries(model.codes)
    .filter(([code, count]) => code !== OK && count)
    .sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
  return {
    ...model,
    requests: Object.values(model.codes).reduce((a, b) => a + b, 0),
    good: Math.max(0, (model.codes[OK] ?? 0) - late),
    late,
    errors,
    failed: sum(errors, (error) => error[1]),
    meanRows: model.batches ? model.rows / model.batches : null,
    padding: model.paddingRows ? model.paddingRows / (model.rows + model.paddingRows) : 0,
  };
}

function workerInterval(old, now, seconds) {
  return {
    ...now,
    busy: Math.min(1, grown(old.busy_s ?? 0, now.busy_s) / seconds),
    batches: grown(old.batches ?? 0, now.batches),
  };
}

function grown(old, now) {
  return now >= old ? now - old : now;
}

function counted(old, now) {
  const entries = Object.entries(now).map(([key, count]) => [key, grown(old[key] ?? 0, count)]);
  return Object.fromEntries(entries);
}

function difference(old, now, bounds) {
  if (!old || old.counts.some((count, i) => now.counts[i] < count)) {
    return { bounds, counts: now.counts, sum: now.sum };
  }
  const counts = now.counts.map((count, i) => count - old.counts[i]);
  return { bounds, counts, sum: Math.max(0, now.sum - old.sum) };
}

function added(each) {
  if (!each.length) return { bounds: [], counts: [0], sum: 0 };
  const counts = each[0].counts.map((_, i) => sum(each, (one) => one.counts[i]));
  return { bounds: each[0].bounds, counts, sum: sum(each, (one) => one.sum) };
}

function summed(each) {
  const total = {};
  for (const counts of each) {
    for (const [key, count] of Object.entries(counts)) total[key] = (total[key] ?? 0) + count;
  }
  return total;
}

function sum(items, value) {
  return items.reduce((total, item) => total + value(item), 0);
}
