"use strict";
// All that is shown comes as data, and goes in as text: nothing of it is ever read as HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const panel = document.getElementById("panel");
const visible = text => text.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/ /g, "·");

function element(name, text, kind) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function show(...parts) {
  const inner = element("div");
  inner.append(...parts);
  panel.replaceChildren(inner);
  panel.hidden = false;
}

// Cells of a text: one is chosen by a click, by Tab and Enter, and the arrows go on from it.
const cells = [...document.querySelectorAll(".cell[tabindex]")];
let chosen = null;

function choose(cell) {
  if (chosen) chosen.classList.remove("chosen");
  chosen = cell;
  cell.classList.add("chosen");
  const parts = [];
  for (const [text, told, choices] of data.details[Number(cell.dataset.n)]) {
    const line = element("p");
    line.append(element("b", visible(text)), element("span", "  " + told));
    parts.push(line);
    for (const [name, share] of choices) {
      const row = element("div", undefined, "choice"), bar = element("i");
      bar.style.width = 100 * share + "%";
      row.append(element("span", visible(name)), element("span", share.toFixed(3)), bar);
      parts.push(row);
    }
  }
  show(...parts);
}

document.addEventListener("click", event => {
  const cell = event.target.closest(".cell[tabindex]");
  if (cell) choose(cell);
  else if (!event.target.closest("#panel, canvas, label, input")) panel.hidden = true;
});
document.addEventListener("keydown", event => {
  if (event.key === "Escape") panel.hidden = true;
  const here = document.activeElement;
  const place = cells.indexOf(here);
  if (place < 0) return;
  const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
  if (event.key === "Enter" || event.key === " " || step) event.preventDefault();
  if (event.key === "Enter" || event.key === " ") choose(here);
  const next = step && cells[place + step];
  if (next) { next.focus(); choose(next); }
});

// Maps of attention: a byte a weight, a row a query.
const MOST_LABELLED = {large: 48, small: 24}, LETTERS = 12;  // tokens on an axis, letters of each

function bytes(text) { return Uint8Array.from(atob(text), letter => letter.charCodeAt(0)); }

function shade(weight) {  // white to dark blue; the root shows small weights too
  const part = Math.sqrt(weight / 255);
  return [Math.round(255 - 247 * part), Math.round(255 - 207 * part), Math.round(255 - 148 * part)];
}

function picture(map, weights) {
  const canvas = document.createElement("canvas"), [rows, columns] = [map.queries.length, map.keys.length];
  [canvas.width, canvas.height] = [columns, rows];
  const context = canvas.getContext("2d"), image = context.createImageData(columns, rows);
  weights.forEach((weight, place) => image.data.set([...shade(weight), 255], 4 * place));
  context.putImageData(image, 0, 0);
  return canvas;
}

function draw(canvas, map, weights) {
  const [rows, columns] = [map.queries.length, map.keys.length], large = canvas.classList.contains("large");
  const most = Math.max(rows, columns), labelled = most <= (large ? MOST_LABELLED.large : MOST_LABELLED.small);
  const size = !labelled ? Math.max(1, Math.floor((large ? 1200 : 480) / most)) :
    large ? Math.max(22, Math.min(60, Math.floor(480 / most))) : 22;
  const margin = labelled ? 130 : 0;
  [canvas.width, canvas.height] = [margin + size * columns, margin + size * rows];
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(picture(map, weights), margin, margin, size * columns, size * rows);
  if (labelled) {
    canvas.classList.add("labelled");
    canvas.style.width = `${Math.min(640, large ? canvas.width : Math.round(.75 * canvas.width))}px`;
    const short = text => { const all = [...visible(text)]; return all.length > LETTERS ? all.slice(0, LETTERS - 1).join("") + "…" : text && visible(text); };
    context.fillStyle = "#16191d";
    context.font = "15px system-ui, sans-serif";
    context.textBaseline = "middle";
    context.textAlign = "right";
    map.queries.forEach((text, row) => context.fillText(short(text), margin - 6, margin + size * (row + .5)));
    context.textAlign = "left";
    map.keys.forEach((text, column) => {
      context.save();
      context.translate(margin + size * (column + .5), margin - 6);
      context.rotate(-Math.PI / 2);
      context.fillText(short(text), 0, 0);
      context.restore();
    });
  }
  const told = event => {
    const box = canvas.getBoundingClientRect(), scale = canvas.width / box.width;
    const column = Math.floor(((event.clientX - box.left) * scale - margin) / size);
    const row = Math.floor(((event.clientY - box.top) * scale - margin) / size);
    if (row < 0 || column < 0 || row >= rows || column >= columns) return;
    const line = element("p");
    line.append(element("span", `layer ${map.layer}, head ${canvas.dataset.head}: `), element("b", visible(map.queries[row])),
      element("span", ` (place ${row}) takes ${(weights[row * columns + column] / 255).toFixed(2)} from `),
      element("b", visible(map.keys[column])), element("span", ` (place ${column})`));
    show(line);
  };
  canvas.addEventListener("mousemove", told);
  canvas.addEventListener("click", told);
}

for (const canvas of document.querySelectorAll("canvas.map")) {
  const map = data.maps[Number(canvas.dataset.map)];
  draw(canvas, map, bytes(map.weights[Number(canvas.dataset.place)]));
}
