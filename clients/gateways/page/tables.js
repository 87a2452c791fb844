// Tables that become a card a row where the screen is narrow. Names come as text only.

import { element } from "./plot.js";

/**
 * Shows rows under the names of their columns. A column says what it shows `of` a row, what `more` in
 * small print, whether that is `bad`, and which `share` a bar stands for. Roles stand here since the
 * cards' layout would take the table's own away from screen readers.
 */
export function showTable(place, title, columns, rows) {
  const table = element("table", { role: "table", "aria-label": title });
  const heads = columns.map(({ name }) => element("th", { role: "columnheader", scope: "col" }, name));
  table.append(
    element("thead", { role: "rowgroup" }, element("tr", { role: "row" }, ...heads)),
    element(
      "tbody",
      { role: "rowgroup" },
      ...rows.map((row) =>
        element("tr", { role: "row" }, ...columns.map((column) => cell(column, row))),
      ),
    ),
  );
  place.replaceChildren(rows.length ? table : element("p", {}, "none"));
}

function cell({ name, head, of, more, bad, share }, row) {
  const made = head
    ? element("th", { role: "rowheader", scope: "row" })
    : element("td", { role: "cell", "data-name": name });
  made.append(element("span", bad?.(row) ? { class: "alarming" } : {}, of(row)));
  if (share) made.append(element("meter", { min: 0, max: 1, value: share(row), "aria-hidden": "true" }));
  const small = more?.(row);
  if (small) made.append(element("small", {}, small));
  return made;
}
