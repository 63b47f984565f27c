"use strict";
const all = (what, where = document) => [...where.querySelectorAll(what)];
const label = (element) => element.textContent.trim();

// Values of a mark, on hover, tap and keyboard focus.
const tip = document.getElementById("tip");
function show(mark, x, y) {
  tip.textContent = mark.dataset.tip;
  tip.hidden = false;
  tip.style.left = Math.max(8, Math.min(x + 12, innerWidth - tip.offsetWidth - 8)) + "px";
  tip.style.top = (y - tip.offsetHeight - 10 < 8 ? y + 18 : y - tip.offsetHeight - 10) + "px";
}
function hide() { tip.hidden = true; }
for (const kind of ["pointerover", "pointermove"]) document.addEventListener(kind, (event) => {
  const mark = event.target.closest?.("[data-tip]");
  if (mark) show(mark, event.clientX, event.clientY); else if (kind === "pointerover") hide();
});
function focused() {  // a mark that has the focus keeps its tip while it is scrolled into sight
  const mark = document.activeElement;
  if (!mark.dataset.tip) return hide();
  const box = mark.getBoundingClientRect();
  show(mark, (box.left + box.right) / 2, box.top);
}
document.addEventListener("focusin", focused);
document.addEventListener("focusout", hide);
document.addEventListener("scroll", () => { if (!tip.hidden) focused(); }, true);
document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });

// One stop of the tab key for a group; the arrows move within it.
function roam(group, members, step) {
  const enter = (one) => { members.forEach((other) => other.setAttribute("tabindex", other === one ? 0 : -1)); };
  if (members.length) enter(members[0]);
  group.addEventListener("focusin", (event) => { const one = members.find((member) => member === event.target); if (one) enter(one); });
  group.addEventListener("keydown", (event) => {
    const to = step(members, members.indexOf(document.activeElement), event.key);
    if (!to || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    to.focus();
  });
}
const around = (list, at, by) => list[(at + by + list.length) % list.length];
const ends = (list, key) => ({ Home: list[0], End: list.at(-1) })[key];
function along(list, at, key) {
  return ends(list, key) ?? ({ ArrowRight: around(list, at, 1), ArrowLeft: around(list, at, -1) })[key];
}
function across(list, at, key) {  // up and down: to the next mark of the same level
  const by = { ArrowDown: 1, ArrowUp: -1 }[key];
  if (at < 0 || !by) return at < 0 ? undefined : along(list, at, key);
  const same = list.filter((one) => one.dataset.level === list[at].dataset.level);
  return around(same, same.indexOf(list[at]), by);
}
for (const figure of all("svg.fig")) {
  const marks = all("[data-tip]", figure);
  if (!marks.length) continue;
  figure.setAttribute("role", "group");  // a picture as a whole, until its marks can be reached
  for (const mark of marks) {
    all("title", mark).forEach((title) => title.remove());  // the browser's own tip would come on top of ours
    mark.setAttribute("role", "img");
    mark.setAttribute("aria-label", mark.dataset.tip);
  }
  roam(figure, marks, across);
}

// Levels and variants picked out of every picture and table.
const bars = all("[data-of]");
const pressed = (chip) => chip.getAttribute("aria-pressed") === "true";
function chosen(bar) {
  return new Set(all("[data-pick]", bar).filter((chip) => pressed(chip) && chip.dataset.pick !== "").map((chip) => chip.dataset.pick));
}
function apply() {
  const wanted = bars.map((bar) => [bar.dataset.of, chosen(bar)]).filter(([, picks]) => picks.size);
  for (const one of all("[data-level], [data-variant]")) {
    one.classList.toggle("off", wanted.some(([of, picks]) => one.dataset[of] !== undefined && !picks.has(one.dataset[of])));
  }
}
function press(chip, bar) {
  const [every, ...chips] = all("[data-pick]", bar);
  const set = (one, on) => one.setAttribute("aria-pressed", String(on));
  if (chip === every) chips.forEach((one) => set(one, false)); else set(chip, !pressed(chip));
  set(every, !chips.some(pressed));
  apply();
}
for (const bar of bars) {
  const chips = all("[data-pick]", bar);
  chips.forEach((chip) => chip.addEventListener("click", () => press(chip, bar)));
  roam(bar, chips, along);
}

// Tables: sorted by a header; what was not measured stays at the end.
const key = (cell) => cell.dataset.value ?? (cell.classList.contains("text") ? label(cell) : "");
function compare(a, b, sign) {
  if (a === "" || b === "") return (a === "") - (b === "");
  const [x, y] = [Number(a), Number(b)];
  return sign * (Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, "en", { numeric: true }) : x < y ? -1 : Number(x > y));
}
for (const head of all("thead th:has(button)")) {
  head.firstElementChild.addEventListener("click", () => {
    const sign = head.ariaSort === "ascending" ? -1 : 1;
    [...head.parentNode.cells].forEach((one) => one.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const body = head.closest("table").tBodies[0];
    body.append(...[...body.rows].sort((a, b) => compare(key(a.cells[head.cellIndex]), key(b.cells[head.cellIndex]), sign)));
  });
}

// Copied as it is seen, or with exact numbers; a spreadsheet takes no formula from a name.
const seen = (table) => [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => [...row.cells]);
function exact(cell, head) {
  if (head.dataset.unit === undefined) return label(cell).replace(/^[=+@-]/, "'$&");
  return cell.dataset.value === undefined ? "" : label(cell).replace(/[^≥()]+/, cell.dataset.value);
}
const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
const forms = {
  text: (block) => label(block.querySelector("pre")),
  markdown(block) {
    const table = block.querySelector("table"), heads = [...table.tHead.rows[0].cells];
    const cells = (row) => row.map((cell) => label(cell).replaceAll("\\", "\\\\").replaceAll("|", "\\|").replaceAll("<", "&lt;"));
    const rule = heads.map((head) => (head.classList.contains("text") ? "---" : "---:"));
    return [cells(heads), rule, ...seen(table).map(cells)].map((row) => `| ${row.join(" | ")} |\n`).join("");
  },
  csv(block) {
    const table = block.querySelector("table"), heads = [...table.tHead.rows[0].cells];
    const titles = heads.map((head) => label(head) + (head.dataset.unit ? ` [${head.dataset.unit}]` : ""));
    const rows = seen(table).map((row) => row.map((cell, at) => exact(cell, heads[at])));
    return [titles, ...rows].map((row) => row.map(quoted).join(",") + "\n").join("");
  },
};
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {  // a file on disk is no secure context everywhere
    const area = document.body.appendChild(document.createElement("textarea"));
    area.value = text;
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}
const said = document.getElementById("said");
for (const button of all("[data-copy]")) {
  const name = label(button);
  button.addEventListener("click", async () => {
    const done = await copy(forms[button.dataset.copy](button.closest(".copied")));
    button.textContent = said.textContent = done ? "Copied" : "Not copied";
    button.focus();
    setTimeout(() => { button.textContent = name; said.textContent = ""; }, 1500);
  });
}

// The index of published results: rows that hold the words and the choices.
const filters = all("[data-filter]");
function passes(row, filter) {
  const wanted = filter.value.toLowerCase(), column = filter.dataset.filter;
  const held = (column === "" ? [...row.cells].map(label).join(" ") : label(row.cells[column])).toLowerCase();
  return column === "" ? wanted.split(/\s+/).every((word) => held.includes(word)) : wanted === "" || held === wanted;
}
function filter() {
  const rows = all("tbody tr");
  for (const row of rows) row.hidden = !filters.every((one) => passes(row, one));
  document.getElementById("count").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
}
for (const one of filters) for (const kind of ["input", "change"]) one.addEventListener(kind, filter);
if (filters.length) filter();  // a browser keeps what was chosen before a reload
