"use strict";
// Draws the curves and the maps; everything else on the page is plain HTML.

const data = JSON.parse(document.getElementById("data").textContent);
const LINES = [0, 1, 2, 3, 4, 5].map((at) => `var(--c${at})`);
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "12 4", "4 4"];
const COLOURS = [0, 1, 2, 3, 4, 6, 7, 8, 9, 5].map((at) => `var(--c${at})`);
const STYLE = {
  background: "transparent",
  color: "var(--text)",
  fontSize: "12px",
  "--plot-background": "var(--back)",
};

function number(value, percent) {
  if (percent) return `${(100 * value).toFixed(1)} %`;
  return Math.abs(value) >= 1000
    ? Math.round(value).toLocaleString("en")
    : String(Number(value.toPrecision(3)));
}

function short(value) {
  return Math.abs(value) >= 1000 ? d3.format("~s")(value) : number(value, false);
}

function drawChart(chart, place) {
  const marks = chart.rules.map(([y]) =>
    Plot.ruleY([y], { stroke: "var(--quiet)", strokeDasharray: "3 3" }),
  );
  for (const [y, words] of chart.rules) {
    marks.push(
      Plot.text([words], {
        y: y, frameAnchor: "right", textAnchor: "end", dy: -7,
        fill: "var(--quiet)",
      }),
    );
  }
  const all = [];
  chart.series.forEach((line, at) => {
    const points = line.points.map(([step, value]) => ({
      step, value,
      title: `${line.name ? line.name + "\n" : ""}step ${step.toLocaleString("en")}: ${number(value, chart.percent)}`,
    }));
    all.push(...points);
    const stroke = LINES[at % LINES.length];
    marks.push(
      Plot.lineY(points, {
        x: "step", y: "value", stroke, strokeWidth: 2,
        strokeDasharray: DASHES[at % DASHES.length],
      }),
    );
    if (points.length <= 30) {
      marks.push(Plot.dot(points, { x: "step", y: "value", fill: stroke, r: 3 }));
    }
  });
  marks.push(Plot.tip(all, Plot.pointer({ x: "step", y: "value", title: "title" })));
  const values = all.map((each) => each.value);
  return Plot.plot({
    width: place.clientWidth,
    height: 220,
    marginLeft: 52,
    style: STYLE,
    x: { label: "step", tickFormat: short, ticks: 5, nice: true },
    y: {
      label: null,
      grid: true,
      ticks: 5,
      type: chart.log && Math.min(...values) > 0 ? "log" : "linear",
      tickFormat: chart.percent ? (value) => number(value, true) : short,
      zero: false,
    },
    marks,
  });
}

// The most frequent labels have a colour of their own, the others share one.
function ranked(points) {
  const counts = d3.rollup(points, (each) => each.length, (each) => each[2]);
  const names = [...counts.keys()].sort((a, b) => counts.get(b) - counts.get(a));
  if (names.length <= COLOURS.length) return names.sort();
  return [...names.slice(0, COLOURS.length - 1).sort(), "other"];
}

function drawMap(map, place, alone) {
  const names = ranked(map.points);
  const group = (label) => (names.includes(label) ? label : "other");
  const points = map.points.map(([x, y, label, id]) => ({
    x, y, label: group(label), title: `${label}\n${id}`,
  }));
  const shown = alone === null ? points : points.filter((each) => each.label === alone);
  const side = Math.min(place.clientWidth, 720);
  const reach = (key) => {
    const [low, high] = d3.extent(points, (each) => each[key]);
    return high - low || 1;
  };
  return Plot.plot({
    width: side,
    height: Math.min(1.5 * side, (side * reach("y")) / reach("x")),
    margin: 6,
    style: STYLE,
    x: { axis: null },
    y: { axis: null },
    marks: [
      Plot.dot(points, { x: "x", y: "y", r: 1.5, fill: "var(--edge)" }),
      Plot.dot(shown, {
        x: "x", y: "y", r: 3.2,
        fill: (each) => COLOURS[names.indexOf(each.label)],
        stroke: "var(--card)", strokeWidth: 0.5,
      }),
      Plot.tip(shown, Plot.pointer({ x: "x", y: "y", title: "title" })),
    ],
  });
}

function legend(map, place) {
  const names = ranked(map.points);
  for (const [at, name] of names.entries()) {
    const button = document.createElement("button");
    const dot = document.createElement("i");
    dot.style.background = COLOURS[at];
    button.append(dot, name);
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      map.alone = map.alone === name ? null : name;
      for (const other of place.children) {
        other.setAttribute("aria-pressed", String(other.textContent === map.alone));
      }
      draw();
    });
    place.append(button);
  }
}

function draw() {
  for (const chart of data.charts) {
    const place = document.getElementById(chart.key);
    place.replaceChildren(drawChart(chart, place));
  }
  for (const map of data.maps) {
    const place = document.getElementById(map.key);
    place.replaceChildren(drawMap(map, place, map.alone ?? null));
  }
}

for (const map of data.maps) legend(map, document.getElementById(`${map.key}-legend`));
draw();
let width = document.body.clientWidth;
addEventListener("resize", () => {
  if (document.body.clientWidth === width) return;
  width = document.body.clientWidth;
  draw();
});
document.body.dataset.ready = "";
