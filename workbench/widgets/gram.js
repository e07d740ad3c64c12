/**
 * The Gram lens: a photograph beside the matrix of all cosines between its patches, or beside how that of one
 * checkpoint differs from that of another.
 *
 *   mount(el, host) -> view with destroy()
 *
 * The matrix is never built. What a picture of it needs is the mean over blocks, and that is the product of the means
 * of unit patches: exact at every size, for a map of 64 x 64 as for a photograph of 4K. A row is the similarity map.
 * `host` is described in loader.js.
 */

import { carriedIndex, displayedToPixel, gridBox, patchToPolygon, pixelToDisplayed, pixelToPatch } from "./geometry.js";
import { measures, simulate } from "./dial.js";
import { Layer } from "./heat.js";
import { blockMeans, changes, clusterOrder, grams, hilbertOrder } from "./grams.js";
import { COLORMAPS, gradient, lookup } from "./colors.js";
import { createEngine, openPack } from "./pack.js";
import { COLORS, make, style, update } from "./page.js";

const DEFAULTS = {
  titles: [], // of the packs, in words
  pack: 0,
  against: null, // number of the pack that is subtracted
  order: "raster",
  clusters: 6,
  window: [0, 1], // the shares of the order that rows and columns show
  selection: [], // [[row, col]]: brushed patches
  colormap: "viridis",
  limits: [0, 1],
  simulate: { cls: 0, noise: 0, place: 0 }, // see dial.js
};
const BLOCKS = 384; // along a side of the picture of the matrix
const ORDERS = { raster: "Row by row", hilbert: "Hilbert curve", cluster: "Clusters" };
const DIFFERENCE = { colormap: "blue-white-red", limits: [-0.5, 0.5] };
const LISTED = 6; // patches that changed most
const KEYS =
  "Hover the matrix: both patches, and the row as a map. Hover the photo: its row. Drag along the matrix: choose " +
  "patches. Drag over the photo: choose a part. Wheel or + and −: zoom the matrix. 0: all of it. Arrows: walk the " +
  "rows. Esc: choose nothing.";
const options = (entries) => entries.map(([value, text]) => `<option value="${value}">${text}</option>`).join("");
const BAR = `
  <label>Map <select></select></label>
  <label>minus <select></select></label>
  <label>Order <select>${options(Object.entries(ORDERS))}</select></label>
  <label>Clusters <input type="range" min="2" max="16" step="1"></label>
  <label>Colours <select>${options(COLORMAPS.map((name) => [name, name]))}</select></label>
  <button type="button" title="All of the matrix (0)">1:1</button>
  <button type="button" title="Choose no patches (Esc)">Clear</button>`;
const DIAL = `
  <b>Simulation</b>
  <label title="Draws every patch to the CLS token, as decay does">Towards CLS <input type="range" min="0" max="1" step="0.01"></label>
  <label title="Gives every patch a direction of its own">Noise <input type="range" min="0" max="2" step="0.02"></label>
  <label title="Adds what depends on the place alone">Place <input type="range" min="0" max="2" step="0.02"></label>
  <button type="button" title="The map as it is">As it is</button>
  <div><table><tbody></tbody></table></div>`;
const MEASURES = {
  cls_patch_cosine: "CLS-patch cosine ↑",
  local_distant: "Local minus distant (LDS) ↓",
  spatial_contrast: "Spatial contrast (RMSC) ↓",
  mean_cosine: "Mean cosine ↑",
};
const PANE = `
  <figcaption><span></span></figcaption>
  <div class="gs-stage"><canvas tabindex="0" role="application"></canvas></div>`;

export function mount(el, host) {
  return new GramView(el, host);
}

class GramView {
  constructor(el, host) {
    this.host = host;
    this.engine = createEngine(host.state.get("engine") ?? "auto");
    this.packs = [];
    this.drafts = {};
    this.hover = null; // {row: place in the order, col: place or null}
    this.layer = new Layer();
    this.build(el);
    this.unlisten = ["pack_ids", ...Object.keys(DEFAULTS)].map((name) => host.state.on(name, () => this.heard(name)));
    this.opening = this.open();
  }

  destroy() {
    this.gone = true;
    cancelAnimationFrame(this.waiting);
    this.resizes.disconnect();
    this.unlisten.forEach((off) => off());
    for (const pack of this.packs) pack && (this.engine.release(pack), pack.revoke(), pack.photo?.close());
    this.root.remove();
  }

  get(name) {
    return this.drafts[name] ?? this.host.state.get(name) ?? DEFAULTS[name];
  }

  set(name, value, tell = true) {
    if (tell) {
      delete this.drafts[name];
      this.host.state.set(name, value);
    } else this.drafts[name] = value;
    this.heard(name);
  }

  heard(name) {
    if (name === "pack_ids") this.opening = this.open();
    this.follow();
    this.redraw();
  }

  async open() {
    const ids = this.get("pack_ids") ?? [], former = this.packs;
    const opened = await Promise.all(ids.map((id) => former.find((pack) => pack?.id === id) ?? this.openOne(id)));
    if (this.gone) return;
    this.packs = opened;
    this.fill();
    this.redraw();
  }

  async openOne(id) {
    try {
      const pack = await openPack(this.host.reader(id));
      pack.photo = pack.preview && (await createImageBitmap(await (await fetch(pack.preview)).blob()));
      await pack.load();
      return pack;
    } catch (error) {
      update(this.words, { textContent: error.message });
      return null;
    }
  }

  /** The map as it is. */
  get base() {
    return this.packs[this.get("pack")] ?? null;
  }

  /** The map on show: as it is, or as the dial makes it. */
  get shown() {
    const { base } = this;
    if (!base?.complete) return base;
    const turned = simulate(base, this.get("simulate"));
    if (this.turned && this.turned !== turned && this.turned.simulated) this.engine.release(this.turned);
    return (this.turned = turned);
  }

  get other() {
    const against = this.get("against");
    return against === null ? null : this.packs[against] ?? null;
  }

  // ---------------------------------------------------------------- the order of patches, and places in it

  /**
   * The valid patches of the map in the order of rows and columns, as indices; made once for each order, and of the map
   * as it is, so that patches keep their places while the dial is turned.
   */
  get order() {
    const pack = this.base, kind = this.get("order"), key = [pack.id, kind, kind === "cluster" && this.get("clusters")].join();
    if (this.ordered?.key !== key) {
      const make = { raster: (cells) => ({ cells }), hilbert: hilbertOrder, cluster: clusterOrder }[kind];
      const valid = [...pack.lengths.keys()].filter((index) => pack.valid[index] && pack.lengths[index]);
      const { cells, bounds = [] } = make(Int32Array.from(valid), pack, this.get("clusters"));
      const places = new Int32Array(pack.rows * pack.cols).fill(-1);
      cells.forEach((index, place) => (places[index] = place));
      this.ordered = { key, cells, places, bounds };
    }
    return this.ordered;
  }

  /** First place of the order that is shown, and the one after the last. */
  get range() {
    const [from, to] = this.get("window"), count = this.order.cells.length;
    const first = Math.min(Math.floor(from * count), count - 1);
    return [first, Math.max(Math.ceil(to * count), first + 1)];
  }

  /** The patch of another map at the place of one of the shown map. */
  carried(index) {
    const [here, there] = [this.shown, this.other], key = `${here.id} ${there.id}`;
    if (this.moved?.key !== key) this.moved = { key, index: carriedIndex(there.geometry, here.geometry) };
    return this.moved.index[index];
  }

  /** Means over blocks of the part of the matrix that is shown: {side, values}; made once for each part. */
  matrix() {
    const { cells, key } = this.order, [from, to] = this.range, other = this.other;
    const wanted = [key, from, to, other?.id].join();
    if (this.made?.key === wanted) return this.made;
    const part = cells.subarray(from, to), side = Math.min(BLOCKS, part.length);
    const values = grams(blockMeans(this.shown, part, side), side);
    if (other) {
      const theirs = grams(blockMeans(other, part.map((index) => this.carried(index)), side), side);
      for (let at = 0; at < values.length; at++) values[at] -= theirs[at];
    }
    this.made = { key: wanted, side, values };
    return this.made;
  }

  /** The exact row of a patch as a map: its cosines, or how they differ. */
  row(index) {
    const pack = this.shown, map = (of, cell) => {
      const buffer = new Float32Array(of.rows * of.cols);
      this.engine.cosines(of, of.unit(Math.floor(cell / of.cols), cell % of.cols), buffer, { limit: 1 });
      return buffer;
    };
    const values = map(pack, index), other = this.other;
    if (!other) return values;
    const theirs = map(other, this.carried(index));
    return values.map((value, at) => value - theirs[this.carried(at)]);
  }

  /** The patches whose rows differ most, once for each pair of maps; none without a second one. */
  get changed() {
    const other = this.other, key = `${this.shown.id} ${other?.id}`;
    if (!other) return [];
    if (this.differs?.key !== key) {
      const cells = this.order.cells, moved = cells.map((index) => this.carried(index));
      const sizes = changes(this.shown, cells, other, moved);
      const order = [...sizes.keys()].sort((a, b) => sizes[b] - sizes[a]).slice(0, LISTED);
      this.differs = { key, list: order.map((at) => ({ index: cells[at], size: sizes[at] })) };
    }
    return this.differs.list;
  }

  // ---------------------------------------------------------------- the page

  build(el) {
    style(el.getRootNode());
    this.bar = make("div", { className: "gs-bar", innerHTML: BAR });
    [this.map, this.minus, this.kind, this.colors] = this.bar.querySelectorAll("select");
    this.count = this.bar.querySelector("input");
    const [whole, clear] = this.bar.querySelectorAll("button");
    this.map.onchange = () => this.set("pack", Number(this.map.value));
    this.minus.onchange = () => this.set("against", this.minus.value === "" ? null : Number(this.minus.value));
    this.kind.onchange = () => this.set("order", this.kind.value);
    this.count.onchange = () => this.set("clusters", Number(this.count.value));
    this.colors.onchange = () => this.set("colormap", this.colors.value);
    whole.onclick = () => this.set("window", [0, 1]);
    clear.onclick = () => this.set("selection", []);
    [this.photo, this.square] = [0, 1].map(() => make("figure", { innerHTML: PANE }));
    [this.left, this.right] = [this.photo, this.square].map((figure) => figure.querySelector("canvas"));
    this.square.style.setProperty("--gs-aspect", 1);
    this.words = make("p", { className: "gs-read", "aria-live": "polite" });
    this.scale = make("div", { className: "gs-legend", innerHTML: `<div class="gs-gradient"></div><div class="gs-numbers"><span></span><span></span><span></span></div>` });
    this.list = make("ol", { className: "gs-changes", "aria-label": "Patches whose rows changed most" });
    const panes = make("div", { className: "gs-panes" }, [this.photo, this.square]);
    panes.style.setProperty("--gs-columns", 2);
    this.dial = make("div", { className: "gs-bar gs-dial", innerHTML: DIAL });
    const names = Object.keys(DEFAULTS.simulate), levels = [...this.dial.querySelectorAll("input")];
    this.levels = Object.fromEntries(levels.map((level, at) => [names[at], level]));
    for (const [name, level] of Object.entries(this.levels)) {
      const turn = (tell) => this.set("simulate", { ...this.get("simulate"), [name]: Number(level.value) }, tell);
      level.oninput = () => turn(false);
      level.onchange = () => turn(true);
    }
    this.dial.querySelector("button").onclick = () => this.set("simulate", DEFAULTS.simulate);
    this.table = this.dial.querySelector("tbody");
    const help = make("details", { innerHTML: `<summary>Keys</summary><p>${KEYS}</p>` });
    const named = { className: "gs-view gs-gram", role: "group", "aria-label": "Gram lens" };
    this.root = make("div", named, [this.bar, panes, this.words, this.scale, this.list, this.dial, help]);
    this.root.dataset.lmSuppressShortcuts = "true";
    el.append(this.root);
    this.resizes = new ResizeObserver(() => this.redraw());
    this.resizes.observe(this.root);
    this.listen();
  }

  fill() {
    const titles = this.packs.map((pack, at) => this.get("titles")[at] ?? pack?.header.model.name ?? "missing");
    const entries = titles.map((textContent, value) => [value, textContent]);
    this.map.innerHTML = options(entries);
    this.minus.innerHTML = options([["", "nothing"], ...entries]);
    this.follow();
  }

  follow() {
    const differs = this.get("against") !== null;
    update(this.map, { value: `${this.get("pack")}` });
    update(this.minus, { value: differs ? `${this.get("against")}` : "" });
    update(this.minus.parentElement, { hidden: this.packs.length < 2 });
    update(this.kind, { value: this.get("order") });
    update(this.count, { value: `${this.get("clusters")}` });
    update(this.count.parentElement, { hidden: this.get("order") !== "cluster" });
    update(this.colors, { value: this.get("colormap") });
    update(this.colors.parentElement, { hidden: differs });
    for (const [name, level] of Object.entries(this.levels)) update(level, { value: `${this.get("simulate")[name]}` });
  }

  listen() {
    const { left, right } = this;
    right.onpointermove = (event) => {
      const [x, y] = this.share(right, event);
      if (this.brush) this.brushed(y);
      else this.point(this.placeAt(y), this.placeAt(x));
    };
    right.onpointerdown = (event) => {
      right.setPointerCapture(event.pointerId);
      this.brush = [this.share(right, event)[1], null];
    };
    right.onpointerup = () => this.endBrush();
    right.onwheel = (event) => {
      event.preventDefault();
      this.zoom(Math.exp(event.deltaY / 300), this.share(right, event)[1]);
    };
    left.onpointermove = (event) => {
      const cell = this.cellAt(event);
      if (this.lasso) this.lassoed(cell);
      else this.point(cell === null ? null : this.order.places[cell], null);
    };
    left.onpointerdown = (event) => {
      left.setPointerCapture(event.pointerId);
      this.lasso = { from: this.cellAt(event), moved: false };
    };
    left.onpointerup = () => this.endLasso();
    for (const canvas of [left, right]) {
      canvas.onpointerleave = () => !this.brush && !this.lasso && this.point(null, null);
      canvas.onkeydown = (event) => this.key(event);
    }
  }

  /** Where an event is on a canvas, as shares of its sides. */
  share(canvas, { clientX, clientY }) {
    const { left, top, width, height } = canvas.getBoundingClientRect();
    return [(clientX - left) / width, (clientY - top) / height];
  }

  /** The place in the order at a share of the matrix's side, or null beside it. */
  placeAt(share) {
    if (!this.shown || share < 0 || share >= 1) return null;
    const [from, to] = this.range;
    return Math.min(from + Math.floor(share * (to - from)), to - 1);
  }

  /** The patch of the photo under an event, as its index, or null. */
  cellAt(event) {
    const pack = this.shown;
    if (!pack) return null;
    const [x, y] = this.share(this.left, event), box = this.boxOf(pack);
    const pixel = displayedToPixel(x * box.box_width, y * box.box_height, box);
    const cell = pixel && pixelToPatch(pack.geometry, ...pixel);
    const index = cell && cell[0] * pack.cols + cell[1];
    return cell && this.order.places[index] >= 0 ? index : null;
  }

  boxOf({ geometry: { width, height } }) {
    return { box_width: this.left.clientWidth || 1, box_height: this.left.clientHeight || 1, width, height, fit: "contain" };
  }

  point(row, col) {
    if (this.hover?.row === row && this.hover?.col === col) return;
    this.hover = row === null ? null : { row, col };
    this.redraw();
  }

  brushed(share) {
    this.brush[1] = Math.min(Math.max(share, 0), 0.999999);
    const [a, b] = [this.placeAt(Math.min(...this.brush)), this.placeAt(Math.max(...this.brush))];
    this.choose([...this.order.cells.subarray(a, b + 1)], false);
  }

  endBrush() {
    if (this.brush?.[1] == null) this.choose([], true);
    else this.set("selection", this.get("selection"));
    this.brush = null;
  }

  lassoed(cell) {
    const { from } = this.lasso, { cols } = this.shown;
    if (from === null || cell === null || (cell === from && !this.lasso.moved)) return;
    this.lasso.moved = true;
    const [rows, columns] = [[from, cell].map((at) => Math.floor(at / cols)), [from, cell].map((at) => at % cols)];
    const inside = (at) => between(Math.floor(at / cols), rows) && between(at % cols, columns);
    this.choose([...this.order.cells].filter(inside), false);
  }

  endLasso() {
    if (!this.lasso) return;
    if (this.lasso.moved) this.set("selection", this.get("selection"));
    else this.choose([], true);
    this.lasso = null;
  }

  /** Chooses patches, given by index. */
  choose(indices, tell) {
    const { cols } = this.shown;
    this.set("selection", indices.map((index) => [Math.floor(index / cols), index % cols]), tell);
  }

  zoom(factor, share) {
    const [from, to] = this.get("window"), at = from + share * (to - from);
    const least = Math.min(8 / this.order.cells.length, 1), width = Math.min(Math.max((to - from) * factor, least), 1);
    const first = Math.min(Math.max(at - share * width, 0), 1 - width);
    this.set("window", [first, first + width]);
  }

  key(event) {
    const { key } = event, steps = { ArrowUp: -1, ArrowLeft: -1, ArrowDown: 1, ArrowRight: 1 };
    if (event.ctrlKey || event.metaKey || event.altKey || !this.shown) return;
    if (key in steps) {
      const last = this.order.cells.length - 1, step = steps[key] * (event.shiftKey ? 10 : 1);
      this.point(Math.min(Math.max((this.hover?.row ?? -step) + step, 0), last), null);
    } else if (key === "Escape") this.set("selection", []);
    else if (key === "+" || key === "=") this.zoom(0.8, 0.5);
    else if (key === "-") this.zoom(1.25, 0.5);
    else if (key === "0") this.set("window", [0, 1]);
    else return;
    event.preventDefault();
  }

  // ---------------------------------------------------------------- frames

  redraw() {
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = null;
      if (this.shown && !this.gone) this.draw();
    });
  }

  get colours() {
    return this.other ? DIFFERENCE : { colormap: this.get("colormap"), limits: this.get("limits") };
  }

  draw() {
    const { geometry } = this.shown, names = this.get("titles");
    this.photo.style.setProperty("--gs-aspect", geometry.width / geometry.height);
    const real = names[this.get("pack")] ?? this.shown.header.model.name;
    const title = this.shown.simulated ? `simulation of ${real}` : real;
    const minus = this.other ? ` − ${names[this.get("against")] ?? this.other.header.model.name}` : "";
    update(this.photo.querySelector("span"), { textContent: this.shown.header.picture.name });
    const [from, to] = this.range, count = this.order.cells.length;
    const part = to - from < count ? ` · ${from} to ${to - 1} of ${count}` : ` · ${count} × ${count}`;
    update(this.square.querySelector("span"), { textContent: `${title}${minus}${part}` });
    this.drawPhoto();
    this.drawMatrix();
    this.tell();
  }

  /** The canvas at the page's resolution, emptied; lengths are css pixels. */
  sheet(canvas) {
    const ratio = window.devicePixelRatio || 1, { clientWidth, clientHeight } = canvas;
    update(canvas, { width: Math.round(clientWidth * ratio), height: Math.round(clientHeight * ratio) });
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, clientWidth, clientHeight);
    return [context, clientWidth, clientHeight];
  }

  drawPhoto() {
    const pack = this.shown, [context] = this.sheet(this.left), box = this.boxOf(pack);
    const place = (x, y) => pixelToDisplayed(x, y, box);
    const over = ([x, y, x2, y2], picture, smooth) => {
      const [a, b] = place(x, y), [c, d] = place(x2, y2);
      context.imageSmoothingEnabled = smooth;
      context.drawImage(picture, a, b, c - a, d - b);
    };
    const { width, height } = pack.geometry;
    if (pack.photo) over([0, 0, width, height], pack.photo, true);
    const frame = (index, color, weight) => {
      const [first, , last] = patchToPolygon(pack.geometry, Math.floor(index / pack.cols), index % pack.cols);
      const [x, y] = place(...first), [x2, y2] = place(...last);
      for (const [strokeStyle, lineWidth] of [["rgba(0,0,0,.7)", weight + 2], [color, weight]]) {
        Object.assign(context, { strokeStyle, lineWidth });
        context.strokeRect(x, y, x2 - x, y2 - y);
      }
      return [(x + x2) / 2, (y + y2) / 2];
    };
    const { cells } = this.order, row = this.hover && cells[this.hover.row];
    if (row !== null && row !== undefined) {
      const values = this.row(row), style = { ...this.colours, opacity: 0.7, threshold: null, smooth: false };
      this.layer.heat(values, pack, style);
      over(gridBox(pack.geometry), this.layer.canvas, false);
      this.value = this.hover.col === null ? null : values[cells[this.hover.col]];
    }
    for (const [r, c] of this.get("selection")) frame(r * pack.cols + c, COLORS.chosen, 1.5);
    if (row === null || row === undefined) return;
    const from = frame(row, COLORS.query, 3);
    if (this.hover.col === null) return;
    const to = frame(cells[this.hover.col], COLORS.match, 2);
    Object.assign(context, { strokeStyle: COLORS.match, lineWidth: 1.5 });
    context.beginPath();
    context.moveTo(...from);
    context.lineTo(...to);
    context.stroke();
  }

  drawMatrix() {
    const [context, width, height] = this.sheet(this.right), { side, values, key } = this.matrix();
    const { colormap, limits: [low, high] } = this.colours, wanted = [key, colormap, low, high].join();
    if (this.painted !== wanted) {
      this.painted = wanted;
      this.picture = paint(values, side, lookup(colormap), low, high);
    }
    context.imageSmoothingEnabled = false;
    context.drawImage(this.picture, 0, 0, width, height);
    const [from, to] = this.range, at = (place) => ((place - from) / (to - from)) * height;
    const { bounds, places } = this.order;
    Object.assign(context, { strokeStyle: "rgba(255,255,255,.6)", lineWidth: 1 });
    for (const bound of bounds) {
      context.beginPath();
      for (const [x, y, x2, y2] of [[at(bound), 0, at(bound), height], [0, at(bound), width, at(bound)]]) {
        context.moveTo(x, y);
        context.lineTo(x2, y2);
      }
      context.stroke();
    }
    context.fillStyle = COLORS.chosen;
    const thick = Math.max(at(from + 1), 1.5);
    for (const [r, c] of this.get("selection")) {
      const place = places[r * this.shown.cols + c];
      if (place < from || place >= to) continue;
      context.fillRect(0, at(place), 6, thick);
      context.fillRect(at(place), 0, thick, 6);
    }
    if (!this.hover) return;
    const lines = [[this.hover.row, COLORS.query, true], [this.hover.col, COLORS.match, false]];
    for (const [place, strokeStyle, across] of lines) {
      if (place === null || place < from || place >= to) continue;
      const middle = (at(place) + at(place + 1)) / 2;
      Object.assign(context, { strokeStyle, lineWidth: 1.5 });
      context.beginPath();
      context.moveTo(across ? 0 : middle, across ? middle : 0);
      context.lineTo(across ? width : middle, across ? middle : height);
      context.stroke();
    }
  }

  /** The table of what the dial does to the metrics; made when the map changed. */
  measure() {
    const { base, shown } = this;
    if (this.measured === shown) return;
    this.measured = shown;
    const [before, after] = shown === base ? [measures(base), null] : [measures(base), measures(shown)];
    this.table.replaceChildren(...Object.entries(MEASURES).map(([name, title]) => {
      const cells = [title, told(before[name]), ...(after ? ["→", told(after[name])] : [])];
      return make("tr", {}, cells.map((textContent) => make("td", { textContent })));
    }));
  }

  /** Read-out, legend and list of changes. */
  tell() {
    const { cols } = this.shown, { cells } = this.order, { colormap, limits } = this.colours;
    const word = (index) => `row ${Math.floor(index / cols)}, col ${index % cols}`;
    const what = this.other ? "difference of cosines" : "cosine";
    const chosen = this.get("selection").length;
    const rest = chosen ? `${chosen} patches are chosen.` : "Hover the matrix or the photo.";
    const { row, col } = this.hover ?? {};
    const pair = col === null || col === undefined ? "" : ` and ${word(cells[col])}: ${what} ${(this.value ?? NaN).toFixed(3)}`;
    update(this.words, { textContent: this.hover ? `${word(cells[row])}${pair}` : rest });
    if (this.graded !== colormap) this.scale.firstChild.style.background = gradient((this.graded = colormap));
    const numbers = [limits[0].toFixed(2), what, limits[1].toFixed(2)];
    this.scale.querySelectorAll("span").forEach((span, at) => update(span, { textContent: numbers[at] }));
    this.measure();
    const changed = this.changed;
    if (this.listed === changed) return;
    this.listed = changed;
    this.list.replaceChildren(...changed.map(({ index, size }) => {
      const line = make("li", { textContent: `${word(index)}: ${size.toFixed(3)}`, tabIndex: 0 });
      line.onmouseenter = line.onfocus = () => this.point(this.order.places[index], null);
      return line;
    }));
  }
}

/** A number for the table; a dash where there is none. */
const told = (value) => (value === null ? "–" : value.toFixed(3));
const between = (value, ends) => value >= Math.min(...ends) && value <= Math.max(...ends);

/** Values as a picture, a pixel each. */
function paint(values, side, table, low, high) {
  const canvas = make("canvas", { width: side, height: side }), context = canvas.getContext("2d");
  const image = context.createImageData(side, side), scale = 255 / Math.max(high - low, 1e-12);
  for (let at = 0; at < values.length; at++) {
    const index = 3 * Math.round(Math.min(Math.max((values[at] - low) * scale, 0), 255));
    image.data.set([table[index], table[index + 1], table[index + 2], 255], 4 * at);
  }
  context.putImageData(image, 0, 0);
  return canvas;
}
