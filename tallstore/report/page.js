"use strict";
const root = document.documentElement;
const theme = document.getElementById("theme");
const wanted = window.matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme || (wanted.matches ? "dark" : "light")) === "dark";
const name = () => { theme.textContent = isDark() ? "Light" : "Dark"; };
theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; name(); });
wanted.addEventListener("change", name);
theme.hidden = false;
name();

const value = (row, column) => {
  const cell = row.cells[column];
  return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
};
const order = (a, b) => {
  if (typeof a === "number" && typeof b === "number") return a - b;
  if (typeof a === "number") return -1;
  if (typeof b === "number") return 1;
  return a.localeCompare(b, undefined, { numeric: true });
};
for (const table of document.querySelectorAll("table[data-sorted]")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = table.tBodies[0];
      const known = (row) => typeof value(row, column) === "number" || value(row, column) !== "\u2013";
      const rows = [...body.rows].sort((a, b) => {
        if (known(a) !== known(b)) return known(a) ? -1 : 1;
        const found = order(value(a, column), value(b, column));
        return down ? -found : found;
      });
      body.append(...rows);
    });
  });
}
for (const input of document.querySelectorAll("input[data-search]")) {
  const rows = [...document.getElementById(input.dataset.search).tBodies[0].rows];
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const said = input.parentElement.querySelector("output");
  const look = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, n) => {
      row.hidden = !words.every((word) => texts[n].includes(word));
      shown += row.hidden ? 0 : 1;
    });
    said.textContent = `${shown} of ${rows.length}`;
  };
  input.addEventListener("input", look);
  input.parentElement.hidden = false;
  look();
}
