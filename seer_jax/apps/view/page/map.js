"use strict";
// A map of up to a million points on a canvas: zoom, pan, hover, lasso.

const PALETTE = [
  "#4e79a7", "#f28e2b", "#d1495b", "#3a9d8f", "#59a14f", "#c9a227", "#b07aa1",
  "#e07ba0", "#9c755f", "#7f8fa6", "#2f6fde", "#e4572e", "#17a398", "#76b041",
  "#9b5de5", "#f15bb5", "#00a6d6", "#a44a3f", "#6c757d", "#8ab17d",
];
const NOTHING = "#9a9aa2";
// Up to so many points in sight are shown as pictures.
const FEW = 120;
const PICTURE = 46;
// Of a larger selection the others fade; rings would hide the points.
const RINGS = 400;
const FADED = 0x30000000;

function rgba(hex) {
  const value = parseInt(hex.slice(1), 16);
  const [r, g, b] = [value >> 16, (value >> 8) & 255, value & 255];
  return (255 << 24) | (b << 16) | (g << 8) | r; // Little-endian.
}

class PointMap {
  // `places` is x, y of each point, within 0 and 1.
  constructor(canvas, places, thumbnail) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.places = places;
    this.count = places.length / 2;
    this.thumbnail = thumbnail;
    this.colours = new Uint32Array(this.count).fill(rgba(NOTHING));
    this.selected = new Set();
    this.pictures = new Map();
    this.onselect = () => {};
    this.onhover = () => {};
    this.lassoing = false;
    this.pointers = new Map();
    this.waiting = false;
    for (const name of ["pointerdown", "pointermove", "pointerup"])
      canvas.addEventListener(name, (event) => this[name](event));
    canvas.addEventListener("pointercancel", (event) => this.pointerup(event));
    canvas.addEventListener("pointerleave", () => this.onhover(-1));
    canvas.addEventListener("wheel", (event) => this.wheel(event),
      { passive: false });
    new ResizeObserver(() => this.resize()).observe(canvas);
    this.resize();
    this.whole();
  }

  resize() {
    const ratio = window.devicePixelRatio || 1;
    const { clientWidth, clientHeight } = this.canvas;
    this.width = this.canvas.width = Math.max(1, clientWidth * ratio | 0);
    this.height = this.canvas.height = Math.max(1, clientHeight * ratio | 0);
    this.ratio = ratio;
    this.image = this.context.createImageData(this.width, this.height);
    this.pixels = new Uint32Array(this.image.data.buffer);
    if (!this.scale) this.whole();
    this.draw();
  }

  whole() {
    this.scale = Math.min(this.width, this.height) * 0.94;
    this.left = (this.width - this.scale) / 2;
    this.top = (this.height - this.scale) / 2;
    this.draw();
  }

  zoom(factor, x = this.width / 2, y = this.height / 2) {
    const least = Math.min(this.width, this.height) / 2;
    const scale = Math.min(Math.max(this.scale * factor, least), least * 4e4);
    const real = scale / this.scale;
    this.left = x - (x - this.left) * real;
    this.top = y - (y - this.top) * real;
    this.scale = scale;
    this.draw();
  }

  x(i) { return this.left + this.places[2 * i] * this.scale; }
  y(i) { return this.top + (1 - this.places[2 * i + 1]) * this.scale; }

  draw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.paint(); });
  }

  paint() {
    this.pixels.fill(0);
    const radius = Math.max(1, Math.round(this.ratio * Math.min(6,
      0.6 * Math.sqrt(this.width * this.height / this.count) / this.ratio / 6
      + Math.log2(this.scale / Math.min(this.width, this.height) + 1))));
    const disc = [];
    for (let dy = -radius; dy <= radius; dy++)
      for (let dx = -radius; dx <= radius; dx++)
        if (dx * dx + dy * dy <= radius * radius + 0.5)
          disc.push(dy * this.width + dx);
    const seen = [], fade = this.selected.size > RINGS;
    for (let i = 0; i < this.count; i++) {
      const x = this.x(i) | 0, y = this.y(i) | 0;
      if (x < radius || y < radius || x >= this.width - radius ||
        y >= this.height - radius) continue;
      if (seen.length <= FEW) seen.push(i);
      const at = y * this.width + x, faded = fade && !this.selected.has(i);
      const colour = faded ? this.colours[i] & 0xffffff | FADED
        : this.colours[i];
      for (const offset of disc) this.pixels[at + offset] = colour;
    }
    this.context.putImageData(this.image, 0, 0);
    if (seen.length <= FEW) this.paintPictures(seen);
    this.paintSelected(radius);
    if (this.path) this.paintPath();
  }

  paintPictures(rows) {
    const side = PICTURE * this.ratio;
    for (const row of rows) {
      const image = this.picture(row);
      if (!image.complete || !image.naturalWidth) continue;
      const fit = side / Math.max(image.naturalWidth, image.naturalHeight);
      const w = image.naturalWidth * fit, h = image.naturalHeight * fit;
      const x = this.x(row) - w / 2, y = this.y(row) - h / 2;
      this.context.drawImage(image, x, y, w, h);
      this.context.strokeStyle =
        "#" + (this.colours[row] & 0xffffff).toString(16).padStart(6, "0")
          .replace(/(..)(..)(..)/, "$3$2$1");
      this.context.lineWidth = 2 * this.ratio;
      this.context.strokeRect(x, y, w, h);
    }
  }

  picture(row) {
    if (!this.pictures.has(row)) {
      if (this.pictures.size > 600) this.pictures.clear();
      const image = new Image();
      image.onload = () => this.draw();
      image.src = this.thumbnail(row);
      this.pictures.set(row, image);
    }
    return this.pictures.get(row);
  }

  paintSelected(radius) {
    const style = getComputedStyle(this.canvas);
    this.context.strokeStyle = style.getPropertyValue("--text");
    this.context.lineWidth = 1.5 * this.ratio;
    if (this.selected.size > RINGS) return;
    for (const row of this.selected) {
      this.context.beginPath();
      this.context.arc(this.x(row), this.y(row), radius + 2 * this.ratio, 0,
        2 * Math.PI);
      this.context.stroke();
    }
  }

  paintPath() {
    const accent = getComputedStyle(this.canvas).getPropertyValue("--accent");
    this.context.strokeStyle = accent;
    this.context.lineWidth = 2 * this.ratio;
    this.context.beginPath();
    for (const [x, y] of this.path) this.context.lineTo(x, y);
    this.context.closePath();
    this.context.stroke();
  }

  nearest(x, y, reach = 12 * this.ratio) {
    let best = -1, least = reach * reach;
    for (let i = 0; i < this.count; i++) {
      const dx = this.x(i) - x, dy = this.y(i) - y, d = dx * dx + dy * dy;
      if (d < least) { least = d; best = i; }
    }
    return best;
  }

  inside(path) {
    const xs = path.map((p) => p[0]), ys = path.map((p) => p[1]);
    const [x0, x1] = [Math.min(...xs), Math.max(...xs)];
    const [y0, y1] = [Math.min(...ys), Math.max(...ys)];
    const found = [];
    for (let i = 0; i < this.count; i++) {
      const x = this.x(i), y = this.y(i);
      if (x < x0 || x > x1 || y < y0 || y > y1) continue;
      let odd = false;
      for (let a = 0, b = path.length - 1; a < path.length; b = a++) {
        const [ax, ay] = path[a], [bx, by] = path[b];
        if ((ay > y) !== (by > y) &&
          x < (bx - ax) * (y - ay) / (by - ay) + ax) odd = !odd;
      }
      if (odd) found.push(i);
    }
    return found;
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * this.ratio,
      (event.clientY - box.top) * this.ratio];
  }

  pointerdown(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, this.point(event));
    this.moved = false;
    if (this.pointers.size === 1 && (this.lassoing || event.shiftKey))
      this.path = [this.point(event)];
    else this.path = null; // Two fingers zoom.
  }

  pointermove(event) {
    const now = this.point(event), before = this.pointers.get(event.pointerId);
    if (!before) { this.onhover(this.nearest(...now), event); return; }
    if (this.pointers.size === 2) this.pinch(event.pointerId, before, now);
    else if (this.path) { this.path.push(now); this.draw(); }
    else {
      if (Math.hypot(now[0] - before[0], now[1] - before[1]) < 3 && !this.moved)
        return;
      this.left += now[0] - before[0];
      this.top += now[1] - before[1];
      this.draw();
    }
    this.moved = true;
    this.onhover(-1);
    this.pointers.set(event.pointerId, now);
  }

  pinch(id, before, now) {
    const [other] = [...this.pointers].filter(([key]) => key !== id);
    const [x, y] = other[1];
    const length = (p) => Math.max(1, Math.hypot(p[0] - x, p[1] - y));
    this.zoom(length(now) / length(before), x, y);
  }

  pointerup(event) {
    if (!this.pointers.delete(event.pointerId)) return;
    if (this.path && this.path.length > 2) this.onselect(this.inside(this.path));
    else if (!this.moved && event.type === "pointerup") {
      const row = this.nearest(...this.point(event));
      this.onselect(row < 0 ? [] : [row]);
    }
    this.path = null;
    this.draw();
  }

  wheel(event) {
    event.preventDefault();
    this.zoom(Math.exp(-event.deltaY / 400), ...this.point(event));
  }
}
