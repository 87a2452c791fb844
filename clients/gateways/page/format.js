// Numbers as a person reads them.

export const NONE = "–";

/** Three digits that count, and no fraction from a hundred on. */
export function number(value) {
  if (value === null || value === undefined) return NONE;
  if (value >= 1e6) return `${(value / 1e6).toFixed(1)} M`;
  if (value >= 100) return Math.round(value).toLocaleString("en-US");
  if (value >= 10) return value.toFixed(1).replace(/\.0$/, "");
  return value ? value.toFixed(2).replace(/\.?0+$/, "") || "0" : "0";
}

/** A time, in the unit that suits it. */
export function duration(seconds, bounds = []) {
  if (seconds === null || seconds === undefined) return NONE;
  if (seconds === Infinity) return bounds.length ? `> ${duration(bounds.at(-1))}` : "∞";
  if (seconds < 1) return `${number(seconds * 1e3)} ms`;
  return `${number(seconds)} s`;
}

/** How long something has lasted. */
export function age(seconds) {
  const [d, h, m] = [86400, 3600, 60].map((unit) => Math.floor(seconds / unit));
  if (d) return `${d} d ${h % 24} h`;
  if (h) return `${h} h ${m % 60} min`;
  return m ? `${m} min ${Math.floor(seconds % 60)} s` : `${Math.floor(seconds)} s`;
}

export function percent(share) {
  if (share === null || share === undefined) return NONE;
  const value = share * 100;
  if (value > 0 && value < 0.05) return "< 0.1 %";
  return `${value && value < 9.95 ? value.toFixed(1) : Math.round(value)} %`;
}

export function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) {
    count /= 1024;
    unit += 1;
  }
  return `${number(count)} ${units[unit]}`;
}

/** The time of day. */
export function clock(t) {
  return new Date(t * 1e3).toLocaleTimeString("en-GB");
}
