"use strict";
const all = (what, where = document) => [...where.querySelectorAll(what)];

// Values on hover and on keyboard focus.
const tip = document.getElementById("tip");
function show(mark) {
  const box = mark.getBoundingClientRect();
  tip.textContent = mark.dataset.tip;
  tip.hidden = false;
  const left = Math.min(box.right + 8, innerWidth - tip.offsetWidth - 8);
  tip.style.left = Math.max(8, left) + "px";
  tip.style.top = Math.max(8, box.top - tip.offsetHeight - 4) + "px";
}
for (const mark of all("[data-tip]")) {
  all("title", mark).forEach((title) => title.remove());  // the browser's own would come on top of ours
  mark.setAttribute("aria-label", mark.dataset.tip);
  for (const kind of ["pointerenter", "focus"]) mark.addEventListener(kind, () => show(mark));
  for (const kind of ["pointerleave", "blur"]) mark.addEventListener(kind, () => { tip.hidden = true; });
}
document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });

// Levels picked out of every picture and table.
const chips = all("[data-pick]");
function pick(chip) {
  const every = chips[0];
  if (chip === every) chips.forEach((one) => one.setAttribute("aria-pressed", String(one === every)));
  else {
    chip.setAttribute("aria-pressed", String(chip.getAttribute("aria-pressed") !== "true"));
    every.setAttribute("aria-pressed", String(!chips.some((one) => one !== every && one.getAttribute("aria-pressed") === "true")));
  }
  const chosen = new Set(chips.filter((one) => one !== every && one.getAttribute("aria-pressed") === "true").map((one) => one.dataset.pick));
  document.body.classList.toggle("picked", chosen.size > 0);
  for (const mark of all("[data-level]")) mark.classList.toggle("chosen", chosen.has(mark.dataset.level));
}
chips.forEach((chip, at) => {
  chip.addEventListener("click", () => pick(chip));
  chip.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) chips[(at + step + chips.length) % chips.length].focus();
  });
});

// Tables: sorted by a header, copied by a button.
const value = (row, at) => row.cells[at].dataset.value ?? row.cells[at].textContent;
function compare(a, b) {
  const [x, y] = [Number(a), Number(b)];
  if (a === "" || b === "") return (a === "") - (b === "");
  return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
}
for (const table of all("table")) {
  all("thead th", table).forEach((head, at) => head.querySelector("button")?.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    all("thead th", table).forEach((one) => one.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const body = table.tBodies[0];
    body.append(...[...body.rows].sort((a, b) => (down ? -1 : 1) * compare(value(a, at), value(b, at))));
  }));
}
const cells = (table) => [...table.rows].filter((row) => !row.hidden).map((row) => [...row.cells].map((cell) => cell.textContent.trim()));
const forms = {
  markdown: (rows) => [rows[0], rows[0].map(() => "---:"), ...rows.slice(1)].map((row) => `| ${row.map((text) => text.replaceAll("|", "\\|")).join(" | ")} |`).join("\n"),
  csv: (rows) => rows.map((row) => row.map((text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text)).join(",")).join("\n"),
};
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // a file on disk is no secure context everywhere
    const area = document.body.appendChild(document.createElement("textarea"));
    area.value = text;
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}
for (const button of all("[data-copy]")) {
  button.addEventListener("click", async () => {
    const said = button.textContent;
    await copy(forms[button.dataset.copy](cells(button.closest(".table").querySelector("table"))) + "\n");
    button.textContent = "Copied";
    button.focus();
    setTimeout(() => { button.textContent = said; }, 1500);
  });
}

// The index of published results: rows that hold the words and the choices.
const filters = all("[data-filter]");
function filter() {
  for (const row of all("tbody tr")) {
    row.hidden = !filters.every((one) => {
      const wanted = one.value.toLowerCase();
      const held = one.dataset.filter === "" ? row.textContent : row.cells[Number(one.dataset.filter)].textContent;
      return one.dataset.filter === "" ? held.toLowerCase().includes(wanted) : !wanted || held.toLowerCase() === wanted;
    });
  }
}
filters.forEach((one) => one.addEventListener("input", filter));
