// Plots over time, and a histogram, in SVG. Names come as text only, never as HTML.

import { clock, NONE } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 180;
const SHORTEST_S = 30;
const MARGIN = { top: 10, right: 8, bottom: 22, left: 54 };

/** An element with attributes and children; strings become text. */
export function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

/** A figure: a title, a drawing that fills its width, a legend with values. */
class Plot {
  constructor(title, note, format) {
    this.title = title;
    this.format = format;
    this.drawing = svg("svg", { role: "img", tabindex: "0" });
    this.legend = element("ul", { class: "legend" });
    this.figure = element(
      "figure",
      {},
      element("figcaption", {}, element("strong", {}, title), ` ${note}`),
      this.drawing,
      this.legend,
    );
    new ResizeObserver(() => this.draw()).observe(this.figure);
  }

  frame(top) {
    const width = Math.max(240, this.drawing.clientWidth || this.figure.clientWidth - 24);
    this.drawing.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    const right = width - MARGIN.right;
    const bottom = HEIGHT - MARGIN.bottom;
    const y = (value) => bottom - (Math.min(value, top) / top) * (bottom - MARGIN.top);
    const grid = [0, 0.25, 0.5, 0.75, 1].map((share) =>
      svg("line", { class: "grid", x1: MARGIN.left, x2: right, y1: y(share * top), y2: y(share * top) }),
    );
    const labels = [0, 0.5, 1].map((share) =>
      svg(
        "text",
        { x: MARGIN.left - 6, y: y(share * top) + 4, "text-anchor": "end" },
        this.format(share * top),
      ),
    );
    return { right, bottom, y, marks: [...grid, ...labels] };
  }

  show(marks, legend, description) {
    this.drawing.replaceChildren(...marks);
    this.drawing.setAttribute("aria-label", `${this.title}: ${description}`);
    this.legend.replaceChildren(
      ...legend.map(({ name, css, text }) =>
        element(
          "li",
          {},
          element("span", { class: `swatch ${css}`, "aria-hidden": "true" }),
          `${name} `,
          element("b", {}, text),
        ),
      ),
    );
  }
}

/** Lines, or areas that stand on each other, over the last so many seconds. */
export class TimePlot extends Plot {
  /** `top` is the axis' end where that is known, as 1 is for shares. */
  constructor(title, note, { format, stacked = false, top = 0, onCursor = () => {} }) {
    super(title, note, format);
    this.stacked = stacked;
    this.top = top;
    this.times = [];
    this.series = [];
    this.cursor = null;
    this.onCursor = onCursor;
    this.drawing.addEventListener("pointermove", (event) => this.point(event));
    this.drawing.addEventListener("pointerdown", (event) => this.point(event));
    this.drawing.addEventListener("pointerleave", () => this.onCursor(null));
    this.drawing.addEventListener("blur", () => this.onCursor(null));
    this.drawing.addEventListener("keydown", (event) => this.step(event));
  }

  /** `times` increase; each series has a value, or null, for each of them. */
  update(times, series, seconds) {
    Object.assign(this, { times, series, seconds });
    this.draw();
  }

  point(event) {
    if (!this.scale) return;
    const box = this.drawing.getBoundingClientRect();
    const { left, right, from, to } = this.scale;
    const t = from + ((event.clientX - box.left - left) / (right - left)) * (to - from);
    const seen = this.times.filter((time) => time >= from);
    if (!seen.length) return;
    this.onCursor(seen.reduce((a, b) => (Math.abs(b - t) < Math.abs(a - t) ? b : a)));
  }

  step(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape") this.onCursor(null);
    if (step === undefined || !this.times.length) return;
    event.preventDefault();
    const last = this.times.length - 1;
    const at = this.cursor === null ? last : this.times.indexOf(this.cursor);
    this.onCursor(this.times[Math.min(last, Math.max(0, at + step))], this);
  }

  /** What the plot says at the cursor, or now. */
  values() {
    const at = this.cursor === null ? this.times.length - 1 : this.times.indexOf(this.cursor);
    return this.series.map(({ name, css, values }) => {
      const value = values[at] ?? null;
      return { name, css, text: value === null ? NONE : this.format(value) };
    });
  }

  draw() {
    if (!this.times.length || !this.figure.isConnected) return;
    const to = this.times.at(-1);
    // A page that was opened just now has no use for an axis of an hour.
    const span = Math.min(this.seconds, Math.max(SHORTEST_S, to - this.times[0]));
    const from = to - span;
    const first = Math.max(0, this.times.findIndex((time) => time >= from) - 1);
    const times = this.times.slice(first);
    const layers = this.layers(first);
    const highest = Math.max(0, ...layers.flatMap((layer) => layer.high.filter(Number.isFinite)));
    const top = Math.max(this.top, highest > this.top ? nice(highest) : 0) || 1;
    const { right, bottom, y, marks } = this.frame(top);
    const x = (t) => MARGIN.left + Math.max(0, (t - from) / span) * (right - MARGIN.left);
    this.scale = { left: MARGIN.left, right, from, to };
    for (const { css, low, high } of layers) {
      for (const [start, end] of runs(high)) {
        const points = range(start, end).map((i) => `${round(x(times[i]))},${round(y(high[i]))}`);
        if (this.stacked) {
          const back = range(start, end).map((i) => `${round(x(times[i]))},${round(y(low[i]))}`);
          const path = `M${points.join("L")}L${back.reverse().join("L")}Z`;
          marks.push(svg("path", { class: `area ${css}`, d: path }));
        } else if (points.length === 1) {
          const [cx, cy] = points[0].split(",");
          marks.push(svg("circle", { class: `dot ${css}`, cx, cy, r: 2 }));
        } else {
          marks.push(svg("path", { class: `line ${css}`, d: `M${points.join("L")}` }));
        }
      }
    }
    const middle = (from + to) / 2;
    for (const [t, anchor] of [[from, "start"], [middle, "middle"], [to, "end"]]) {
      marks.push(svg("text", { x: x(t), y: bottom + 16, "text-anchor": anchor }, clock(t)));
    }
    if (this.cursor !== null && this.cursor >= from) {
      const at = x(this.cursor);
      marks.push(svg("line", { class: "cursor", x1: at, x2: at, y1: MARGIN.top, y2: bottom }));
    }
    const values = this.values();
    const told = values.map(({ name, text }) => `${name} ${text}`).join(", ");
    this.show(marks, values, `${told}, at ${clock(this.cursor ?? to)}`);
  }

  /** From where to where each series is drawn. */
  layers(first) {
    const base = this.times.slice(first).map(() => 0);
    return this.series.map(({ css, values }) => {
      const low = [...base];
      const high = values.slice(first).map((value, i) => {
        if (value === null || value === undefined) return null;
        if (!this.stacked) return value;
        base[i] += value;
        return base[i];
      });
      return { css, low, high };
    });
  }
}

/** How many batches had how many rows. */
export class BarPlot extends Plot {
  /** `bars` are pairs of a label and a count. */
  update(bars) {
    this.bars = bars;
    this.draw();
  }

  draw() {
    if (!this.bars || !this.figure.isConnected) return;
    const total = this.bars.reduce((sum, [, count]) => sum + count, 0);
    const highest = Math.max(0, ...this.bars.map(([, count]) => (total ? count / total : 0)));
    const { right, bottom, y, marks } = this.frame(highest ? nice(highest) : 1);
    const each = (right - MARGIN.left) / Math.max(this.bars.length, 4);
    this.bars.forEach(([label, count], i) => {
      const left = MARGIN.left + i * each;
      const share = total ? count / total : 0;
      const title = svg("title", {}, `${label} rows: ${this.format(share)}`);
      const box = { x: left + 2, y: y(share), width: Math.max(1, each - 4), height: bottom - y(share) };
      marks.push(svg("rect", { class: "bar", ...box }, title));
      const place = { x: left + each / 2, y: bottom + 16, "text-anchor": "middle" };
      marks.push(svg("text", place, label));
    });
    const told = this.bars.map(([label, count]) => `${label} rows ${this.format(count / total)}`);
    this.show(marks, [], total ? told.join(", ") : "no batches");
  }
}

/** The next of 1, 2, 4, 5, 10, 20 … that is not less. */
function nice(value) {
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 5, 10].map((step) => step * unit).find((step) => step >= value * 0.9999);
}

/** Where values follow each other without a gap: pairs of the first and the one after the last. */
function runs(values) {
  const found = [];
  let start = null;
  values.forEach((value, i) => {
    if (value === null || value === Infinity) {
      if (start !== null) found.push([start, i]);
      start = null;
    } else if (start === null) start = i;
  });
  if (start !== null) found.push([start, values.length]);
  return found;
}

function range(start, end) {
  return Array.from({ length: end - start }, (_, i) => start + i);
}

function round(value) {
  return Math.round(value * 10) / 10;
}
