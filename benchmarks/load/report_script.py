"""What the report's page does where scripts run: it says the values that one points at."""

# Each figure has its points beside it; without scripts the page lacks nothing but this.
SCRIPT = """
"use strict";
const text = value => value === null ? "–" : String(value);
const share = x => x <= 1 ? "0 %" : 100 * (1 - 1 / x) >= 99
  ? (100 * (1 - 1 / x)).toFixed(Math.max(1, Math.ceil(Math.log10(x)) - 1)) + " %"
  : (100 * (1 - 1 / x)).toFixed(0) + " %";
for (const figure of document.querySelectorAll("figure[data-points]")) {
  const points = JSON.parse(figure.dataset.points);
  const svg = figure.querySelector("svg"), output = figure.querySelector("output");
  const [left, top, right, bottom] = points.box, [low, high] = points.x;
  const cursor = document.createElementNS("http://www.w3.org/2000/svg", "line");
  for (const [name, value] of Object.entries({y1: top, y2: bottom, stroke: "currentColor",
                                              "stroke-width": 0.7, visibility: "hidden"}))
    cursor.setAttribute(name, value);
  svg.append(cursor);
  const at = place => points.quantiles ? low * (high / low) ** place : low + (high - low) * place;
  const show = event => {
    const point = new DOMPoint(event.clientX, event.clientY)
      .matrixTransform(svg.getScreenCTM().inverse());
    const place = (point.x - left) / (right - left);
    const inside = place >= 0 && place <= 1;
    cursor.setAttribute("visibility", inside ? "visible" : "hidden");
    if (!inside) { output.textContent = ""; return; }
    cursor.setAttribute("x1", point.x);
    cursor.setAttribute("x2", point.x);
    const x = at(place);
    const said = points.lines.map(line => {
      let nearest = 0;
      line.x.forEach((value, i) => {
        if (Math.abs(value - x) < Math.abs(line.x[nearest] - x)) nearest = i;
      });
      return line.label + " " + text(line.y[nearest]);
    });
    const where = points.quantiles ? share(x) : +x.toPrecision(3) + " " + points.xLabel;
    output.textContent = where + ": " + said.join(", ") + " (" + points.unit + ")";
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", () => {
    cursor.setAttribute("visibility", "hidden");
    output.textContent = "";
  });
}
"""
