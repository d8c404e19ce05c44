"use strict";
// A number stands alone or before a blank, a per cent sign or a star: "3D: white" is a word.
const value = text => {
  const found = text.replace(/,/g, "").match(/^[+-]?\d*\.?\d+(e[+-]?\d+)?(?=$|[\s%*])/i);
  return found ? Number(found[0]) : text.toLowerCase();
};
// Way 1 is up, -1 down; what is no number stands behind the numbers both ways.
const order = (a, b, way) => typeof a === typeof b ? way * (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1;
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = table.tBodies[0], of = row => value(row.cells[column].textContent.trim());
      body.append(...[...body.rows].sort((a, b) => order(of(a), of(b), down ? -1 : 1)));
    });
  });
}
for (const list of document.querySelectorAll("[data-list]")) {
  const controls = [...document.querySelectorAll(`[data-for="${list.id}"]`)], items = [...list.children];
  const count = document.querySelector(`[data-count="${list.id}"]`);
  const show = () => {
    let shown = 0;
    for (const item of items) {
      item.hidden = !controls.every(control => control.dataset.key === undefined || control.value === "" ||
        (control.type === "search" ? item.textContent.toLowerCase().includes(control.value.toLowerCase())
                                   : item.dataset[control.dataset.key] === control.value));
      shown += !item.hidden;
    }
    const sort = controls.find(control => control.dataset.sort !== undefined);
    if (sort) {
      const [key, way] = sort.value.split(" "), of = item => value(item.dataset[key] || "");
      list.append(...items.sort((a, b) => order(of(a), of(b), way === "down" ? -1 : 1)));
    }
    if (count) count.textContent = `${shown} of ${items.length} shown`;
  };
  for (const control of controls) for (const happens of ["input", "change"]) control.addEventListener(happens, show);
  show();
}
