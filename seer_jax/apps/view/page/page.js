"use strict";
// The page: what is selected, its labels, and the names of clusters.

const SHOWN = 60; // Pictures of a selection.
const $ = (id) => document.getElementById(id);
let about, map, clusterOf, folderOf;
let selection = []; // [{row, id?, cosine?, guess?}]
let dropped = new Set(); // Rows of it that are switched off.
let categories = [];

async function ask(path, body) {
  const answer = await fetch(path, body && {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  if (!answer.ok) throw new Error((await answer.text()).trim());
  return answer;
}

async function attempt(work) {
  try { await work(); } catch (error) { say(error.message); }
}

let sayNoMore;
function say(words) {
  $("status").textContent = words;
  clearTimeout(sayNoMore);
  sayNoMore = setTimeout(() => { $("status").textContent = ""; }, 4000);
}

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

async function begin() {
  about = await (await ask("about")).json();
  const data = await (await ask("arrays")).arrayBuffer();
  const count = about.count;
  const places = new Float32Array(data, 0, 2 * count);
  clusterOf = new Int32Array(data, 8 * count, count);
  folderOf = new Int32Array(data, 12 * count, count);
  document.title = $("title").textContent = about.title;
  $("facts").textContent = `${count.toLocaleString("en")} images, ` +
    `${about.clusters.length} clusters; map by ${about.map.toUpperCase()}`;
  if (about.folders.length)
    $("colours").append(element("option", { value: "folder" }, "folder"));
  categories = [...new Set([...Object.values(about.given)])].sort();
  map = new PointMap($("canvas"), places, (row) => `thumbnail/${row}`);
  map.onselect = (rows) => select(rows.map((row) => ({ row })));
  map.onhover = peek;
  colour();
  showCategories();
  showClusters();
  document.body.dataset.ready = "yes";
}

function colour() {
  const by = $("colours").value, none = rgba(NOTHING);
  const numbers = PALETTE.map(rgba);
  const pick = (n) => (n < 0 ? none : numbers[n % numbers.length]);
  const given = new Int32Array(about.count).fill(-1);
  for (const [row, text] of Object.entries(about.given))
    given[row] = categories.indexOf(text);
  const of = { cluster: clusterOf, folder: folderOf, given }[by];
  for (let i = 0; i < about.count; i++) map.colours[i] = pick(of[i]);
  map.draw();
}

let peeked = -1;
function peek(row, event) {
  const figure = $("peek");
  figure.hidden = row < 0;
  if (row < 0) { peeked = -1; return; }
  const box = $("map").getBoundingClientRect();
  const x = event.clientX - box.left, y = event.clientY - box.top;
  figure.style.left = `${Math.min(x + 14, box.width - 190)}px`;
  figure.style.top = `${Math.max(0, Math.min(y + 14, box.height - 210))}px`;
  if (row === peeked) return;
  peeked = row;
  const image = figure.querySelector("img");
  image.src = `thumbnail/${row}`;
  const given = about.given[row] ? `, ${about.given[row]}` : "";
  figure.querySelector("figcaption").textContent =
    `${clusterName(clusterOf[row])}${given}`;
}

function clusterName(number) {
  if (number < 0) return "in no cluster";
  return about.clusters[number].name || `cluster ${number}`;
}

async function select(items, words) {
  selection = items;
  dropped = new Set();
  map.selected = new Set(items.map((item) => item.row));
  map.draw();
  const few = items.slice(0, SHOWN);
  const unknown = few.filter((item) => !item.id).map((item) => item.row);
  showSelection(words);
  if (!unknown.length) return;
  await attempt(async () => {
    const facts = await (await ask(`rows?r=${unknown.join(",")}`)).json();
    const byRow = new Map(facts.map((row) => [row.row, row]));
    for (const item of few) Object.assign(item, byRow.get(item.row));
    if (selection === items) showSelection(words);
  });
}

function chosen() {
  return selection.map((item) => item.row).filter((row) => !dropped.has(row));
}

function showSelection(words) {
  const count = chosen().length;
  const name = count === 1 ? "1 image" : `${count.toLocaleString("en")} images`;
  $("selected").textContent = count ? `${name} selected` : "Nothing is selected";
  $("hint").hidden = selection.length > 0 && !words;
  $("hint").textContent =
    words || "Click a point, or draw around some with the lasso.";
  $("similar").disabled = $("clear").disabled = !count;
  const focused = document.activeElement?.dataset?.row;
  $("pictures").replaceChildren(...selection.slice(0, SHOWN).map(pictureOf));
  if (focused !== undefined)
    $("pictures").querySelector(`[data-row="${focused}"]`)?.focus();
  $("more").hidden = selection.length <= SHOWN;
  $("more").textContent =
    `and ${(selection.length - SHOWN).toLocaleString("en")} more`;
}

function pictureOf(item) {
  const { row } = item, given = about.given[row];
  const text = given || item.guess && `${item.guess}?` ||
    (item.cosine !== undefined ? item.cosine.toFixed(3) : item.label || "");
  const button = element("button", { title: item.id || "" },
    element("img", {
      src: `thumbnail/${row}`, alt: item.id || `image ${row}`, loading: "lazy",
    }), element("span", {}, text));
  button.dataset.row = row;
  button.setAttribute("aria-pressed", String(!dropped.has(row)));
  button.onclick = () => {
    if (dropped.has(row)) dropped.delete(row); else dropped.add(row);
    map.selected = new Set(chosen());
    map.draw();
    showSelection();
  };
  button.ondblclick = () => enlarge(item);
  return element("li", {}, button);
}

function enlarge(item) {
  const dialog = $("large");
  const image = dialog.querySelector("img");
  image.src = `picture/${item.row}`;
  image.alt = item.id;
  dialog.querySelector("p").textContent =
    `${item.id}, ${item.width} x ${item.height}`;
  dialog.showModal();
}

function similar() {
  const rows = chosen();
  if (!rows.length) return;
  attempt(async () => {
    const few = rows.slice(0, 100).join(",");
    const found = await (await ask(`near?r=${few}&k=48`)).json();
    select(found, rows.length === 1
      ? "The images most like that one, with their cosine."
      : `The images most like these ${rows.length}, with their cosine.`);
  });
}

function questions() {
  attempt(async () => {
    const found = await (await ask("ask?n=24")).json();
    select(found, "Labels of these would help most; what they seem to be.");
  });
}

function showCategories() {
  $("categories").replaceChildren(...categories.map((name, at) => {
    const count = Object.values(about.given).filter((x) => x === name).length;
    const button = element("button", {}, `${name} (${count})`);
    button.onclick = () => label(name);
    return element("li", {},
      element("kbd", {}, at < 9 ? String(at + 1) : ""), button);
  }));
}

function label(name) {
  const rows = chosen();
  if (!rows.length) { say("Select images first"); return; }
  attempt(async () => {
    // A request holds a limited number of rows.
    for (let at = 0; at < rows.length; at += 20000)
      await ask("label", { rows: rows.slice(at, at + 20000), label: name });
    for (const row of rows) {
      if (name) about.given[row] = name; else delete about.given[row];
    }
    const images = rows.length === 1 ? "1 image" : `${rows.length} images`;
    say(name ? `${images}: ${name}` : `${images}: no label`);
    showCategories();
    showSelection();
    colour();
  });
}

function showClusters() {
  $("clusters").replaceChildren(...about.clusters.map((cluster, number) => {
    const swatch = element("button", {
      className: "swatch", title: "Select its images",
    });
    swatch.style.background = PALETTE[number % PALETTE.length];
    swatch.setAttribute("aria-label", `Select cluster ${number}`);
    swatch.onclick = () => {
      const items = [];
      for (let row = 0; row < about.count; row++)
        if (clusterOf[row] === number) items.push({ row });
      select(items);
    };
    const input = element("input", {
      value: cluster.name, placeholder: `cluster ${number}`, maxLength: 100,
    });
    input.setAttribute("aria-label", `Name of cluster ${number}`);
    input.onchange = () => attempt(async () => {
      await ask("rename", { cluster: number, name: input.value });
      cluster.name = input.value;
      say(`Cluster ${number} is ${input.value || "without a name"}`);
    });
    return element("li", {}, swatch, input, element("span",
      { className: "size" }, cluster.size.toLocaleString("en")));
  }));
}

function lasso(on) {
  map.lassoing = on;
  $("lasso").setAttribute("aria-pressed", String(on));
  $("canvas").classList.toggle("lasso", on);
}

function step(by) {
  const all = [...$("pictures").querySelectorAll("button")];
  const at = all.indexOf(document.activeElement);
  all[Math.min(all.length - 1, Math.max(0, at + by))]?.focus();
}

document.addEventListener("keydown", (event) => {
  if (event.target.matches("input, select") || event.ctrlKey || event.metaKey ||
    event.altKey || $("large").open) return;
  if (/^[0-9]$/.test(event.key)) {
    const name = event.key === "0" ? "" : categories[Number(event.key) - 1];
    if (name === undefined) say(`There is no label ${event.key}`);
    else label(name);
  } else if (event.key === "s") similar();
  else if (event.key === "l") lasso(!map.lassoing);
  else if (event.key === "Escape") select([]);
  else if (event.key === "ArrowRight") step(1);
  else if (event.key === "ArrowLeft") step(-1);
  else return;
  event.preventDefault();
});
$("add").onsubmit = (event) => {
  event.preventDefault();
  const name = $("name").value.trim().replace(/\s+/g, " ");
  if (name && !categories.includes(name)) categories.push(name);
  $("name").value = "";
  showCategories();
  colour();
  if (name && chosen().length) label(name);
};
$("colours").onchange = colour;
$("lasso").onclick = () => lasso(!map.lassoing);
$("in").onclick = () => map.zoom(1.6);
$("out").onclick = () => map.zoom(1 / 1.6);
$("whole").onclick = () => map.whole();
$("similar").onclick = similar;
$("clear").onclick = () => select([]);
$("ask").onclick = questions;
$("large").querySelector("button").onclick = () => $("large").close();
attempt(begin);
