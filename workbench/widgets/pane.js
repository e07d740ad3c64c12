/** One pane of the similarity view: a photograph under a map, and what pointer and keys do to it. */

import { carriedIndex, displayedToPixel, gridBox, patchCentre, patchToPolygon } from "./geometry.js";
import { pixelToDisplayed, pixelToPatch } from "./geometry.js";
import { pcaColors, topK } from "./pack.js";
import { Layer, ranks } from "./heat.js";
import { Legend, SHOWS } from "./legend.js";
import { COLORS, make, update } from "./page.js";
import { Pointer } from "./pointer.js";

const BETWEEN = { difference: " − ", rank: " − ", swipe: " | " }; // show two packs; so their names are joined
const DIFFERENCE = { colormap: "blue-white-red", limits: [-0.5, 0.5], threshold: null };
const WHOLE = { x: 0.5, y: 0.5, zoom: 1 };
const CLOSEST = 40; // times
const SEEN = 10; // css pixels: smaller cells get a frame of this size
const NONE = []; // matches
const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const PANE = `
  <figcaption><span></span><select title="What this pane shows" aria-label="What this pane shows"></select></figcaption>
  <div class="gs-stage">
    <canvas tabindex="0" role="application" aria-roledescription="map of patches"></canvas>
    <div class="gs-status" role="alert" hidden></div>
  </div>`;

export class Pane {
  constructor(view) {
    this.view = view;
    this.figure = make("figure", { innerHTML: PANE });
    const parts = this.figure.querySelectorAll("span, select, canvas, .gs-status");
    [this.title, this.menu, this.canvas, this.status] = parts;
    this.context = this.canvas.getContext("2d");
    this.ground = make("canvas"); // the photograph alone
    this.legend = new Legend(this);
    view.grid.append(this.figure);
    this.menu.onchange = () => {
      const [show, other] = this.menu.value.split(":");
      view.change(this, { show, other: other === undefined ? null : Number(other) });
    };
    this.canvas.addEventListener("keydown", (event) => this.pack && this.key(event));
    new Pointer(this);
  }

  /** Gives the pane what it has to show. */
  assign(spec, index) {
    const { packs } = this.view;
    const [pack, other, under] = [spec.pack, spec.other, spec.under].map((number) => packs[number] ?? null);
    // `under` is a coarser map, seen where this one has no patch yet.
    Object.assign(this, { spec, index, pack, other, under, show: spec.show ?? "similarity", split: spec.split ?? 0.5 });
    this.layers = new Map(); // pack -> what is painted of it
    this.carried = this.compared = this.best = null;
    this.menu.replaceChildren();
    update(this.title, { textContent: "", title: "" });
    if (!pack) return;
    const { header, geometry } = pack, compares = other && this.show in BETWEEN;
    this.image = header.picture.digest;
    this.size = [geometry.width, geometry.height];
    this.figure.style.setProperty("--gs-aspect", geometry.width / geometry.height);
    const called = compares ? name(pack, [other]) + BETWEEN[this.show] + name(other, [pack]) : name(pack, packs);
    const facts = `${header.picture.name} · ${pack.rows} × ${pack.cols} · ${factsOf(pack).join(" · ")}`;
    update(this.title, { textContent: called, title: facts });
    const offer = (value, textContent) => this.menu.append(make("option", { value, textContent }));
    for (const show of ["similarity", "pca", "photo"]) if (show !== "pca" || pack.basis) offer(show, SHOWS[show]);
    packs.forEach((other, at) => {
      if (!other || other === pack || other.header.picture.digest !== this.image) return;
      for (const show of Object.keys(BETWEEN)) offer(`${show}:${at}`, `${SHOWS[show]} ${name(other, [pack])}`);
    });
    this.menu.value = this.show in BETWEEN ? `${this.show}:${spec.other}` : this.show;
  }

  /** Why there is less to see than was wanted, in a sentence; "" when all is well. */
  get trouble() {
    const { view, spec, show } = this;
    const lost = (number) => (view.packs[number] ? "" : `There is no pack ${number} in this view.`);
    const absent = (number) => view.failures[number] ?? lost(number);
    if (!(show in SHOWS)) return `A pane shows ${Object.keys(SHOWS).join(", ")}; not ${show}.`;
    if (absent(spec.pack)) return absent(spec.pack);
    if (show === "pca" && !this.pack.basis) return "This pack holds no colours: give a basis to make_pack.";
    if (show in BETWEEN && spec.other == null) return "There is nothing to compare with: name another pack.";
    return show in BETWEEN ? absent(spec.other) : "";
  }

  // ---------------------------------------------------------------- places (css pixels of the canvas) and pixels

  /** Reads the size of the canvas: before anything is written, or the page would be laid out twice. */
  measure() {
    const [width, height] = this.size ?? [1, 1], { clientWidth, clientHeight } = this.canvas;
    this.box = { box_width: clientWidth || 1, box_height: clientHeight || 1, width, height, fit: this.view.get("fit") };
    this.legend.measure();
  }

  get camera() {
    return this.spec.camera ?? this.view.get("camera"); // of its own when zoom is not linked
  }

  /** Width and height of the picture in css pixels, before zoom. */
  get extent() {
    const [left, top] = pixelToDisplayed(0, 0, this.box), [right, bottom] = pixelToDisplayed(...this.size, this.box);
    return [right - left, bottom - top];
  }

  /** A corner, and the box that shows the picture from there: the canvas, or a larger one when zoomed. */
  get frame() {
    const { x, y, zoom } = this.camera, { box_width, box_height } = this.box;
    if (zoom === 1) return [0, 0, this.box];
    const [across, down] = this.extent.map((side) => side * zoom);
    const box = { ...this.box, box_width: across, box_height: down, fit: "fill" };
    return [box_width / 2 - x * across, box_height / 2 - y * down, box];
  }

  /** Where a pixel of the photograph is shown. */
  placeOf(x, y) {
    const [left, top, box] = this.frame, place = pixelToDisplayed(x, y, box);
    return [left + place[0], top + place[1]];
  }

  /** The pixel of the photograph at a place of the canvas, or null beside it. */
  pixelAt([x, y]) {
    const [left, top, box] = this.frame, { box_width, box_height } = this.box;
    const outside = this.camera.zoom !== 1 && (x < 0 || y < 0 || x > box_width || y > box_height);
    return outside ? null : displayedToPixel(x - left, y - top, box);
  }

  /** The place of an event, whatever zoom or transform the page applies to the canvas. */
  place({ clientX, clientY }) {
    this.measure();
    const { left, top, width, height } = this.canvas.getBoundingClientRect();
    return [((clientX - left) * this.box.box_width) / width, ((clientY - top) * this.box.box_height) / height];
  }

  /** What is asked at a place: the middle of its patch, so that all grids over the photograph agree on it; or null. */
  pointAt(place) {
    const pixel = this.pixelAt(place), cell = pixel && pixelToPatch(this.pack.geometry, ...pixel);
    return cell && { ...this.middleOf(cell), pixel };
  }

  middleOf(cell) {
    const [x, y] = patchCentre(this.pack.geometry, ...cell);
    return { image: this.image, x, y };
  }

  /** The cell of a point, or null where it lies in another photograph or outside of what the model saw. */
  cellOf(point) {
    return point && point.image === this.image ? pixelToPatch(this.pack.geometry, point.x, point.y) : null;
  }

  get pinned() {
    return this.view.get("queries").filter((query) => query.image === this.image);
  }

  // ---------------------------------------------------------------- what a pointer does, see pointer.js

  hover(place, preview = false) {
    const point = place && this.pointAt(place);
    this.view.hover = point && { ...point, preview };
    this.canvas.style.cursor = place && this.onDivider(place) ? "ew-resize" : place && this.pinAt(place) ? "grab" : "";
    this.view.redraw();
  }

  ask(place, how) {
    const point = this.pointAt(place);
    if (point) this.view.ask(this, point, how);
  }

  pinAt(place) {
    const cell = this.cellOf(this.pointAt(place));
    return cell && this.pinned.findLast((query) => `${this.cellOf(query)}` === `${cell}`);
  }

  /** Moves a pin as long as there is picture below; returns it as it is now. */
  movePin(pin, place) {
    const point = this.pointAt(place), { view } = this;
    if (!point) return pin;
    const moved = { image: point.image, x: point.x, y: point.y, sign: pin.sign };
    view.set("queries", view.get("queries").map((query) => (query === pin ? moved : query)), false);
    return moved;
  }

  dropPin() {
    this.view.set("queries", this.view.get("queries"));
    this.view.tell(this);
  }

  onDivider([x]) {
    return this.show === "swipe" && Math.abs(x - this.split * this.box.box_width) < 14;
  }

  moveDivider([x]) {
    this.split = clamp(Math.round((x / this.box.box_width) * 1000) / 1000, 0, 1);
    this.view.redraw();
  }

  dropDivider() {
    this.view.change(this, { split: this.split });
  }

  /** Zooms so that what is at one place comes to lie at another; the picture's rim never comes into the pane. */
  zoom(factor, from, to = from) {
    const { x, y, zoom } = this.camera, next = clamp(zoom * factor, 1, CLOSEST);
    const { box_width, box_height } = this.box, extent = this.extent;
    const aim = (centre, side, axis) => {
      const seen = side / (extent[axis] * next); // the share of the picture that the pane shows
      const point = centre + (from[axis] - side / 2) / (extent[axis] * zoom);
      const wanted = point - (to[axis] - side / 2) / (extent[axis] * next);
      return seen >= 1 || next === 1 ? 0.5 : clamp(wanted, seen / 2, 1 - seen / 2);
    };
    this.view.aim(this, { x: aim(x, box_width, 0), y: aim(y, box_height, 1), zoom: next });
  }

  wholePicture() {
    this.view.aim(this, WHOLE);
  }

  // ---------------------------------------------------------------- keys

  key(event) {
    const { view } = this, { key, shiftKey, altKey } = event;
    const centre = [this.box.box_width / 2, this.box.box_height / 2];
    if (event.ctrlKey || event.metaKey) return; // the browser's own
    if (key in ARROWS) this.walk(...ARROWS[key].map((step) => step * (shiftKey ? 10 : 1)));
    else if (key === "Enter") this.copyPin(altKey ? -1 : 1);
    else if (key === " " || key === "b") view.hold(key);
    else if (key === "Escape" && view.get("queries").length) view.set("queries", []);
    else if (key === "+" || key === "=") this.zoom(1.25, centre);
    else if (key === "-") this.zoom(0.8, centre);
    else if (key === "0") this.wholePicture();
    else if ((key === "[" || key === "]") && this.show === "swipe") {
      this.moveDivider([(this.split + (key === "[" ? -0.05 : 0.05)) * this.box.box_width]);
      this.dropDivider();
    } else return;
    event.preventDefault();
  }

  /** Moves the query asked last by whole patches; without one in this photograph it begins in the middle. */
  walk(down, right) {
    const { view, pinned } = this, last = pinned.at(-1), cell = this.cellOf(last);
    const { geometry } = this.pack, [left, top, end, bottom] = geometry.crop;
    const [first, most] = [pixelToPatch(geometry, left, top), pixelToPatch(geometry, end, bottom)];
    const middle = [0, 1].map((axis) => (first[axis] + most[axis]) >> 1);
    const target = cell ? [down, right].map((step, axis) => clamp(cell[axis] + step, first[axis], most[axis])) : middle;
    const query = { ...this.middleOf(target), sign: last?.sign ?? 1 };
    view.set("queries", last ? view.get("queries").map((other) => (other === last ? query : other)) : [query]);
    view.tell(this);
  }

  /** One query more at the place of the last one, for arrows to walk on with. */
  copyPin(sign) {
    const { view, pinned } = this;
    if (!pinned.length) return this.walk(0, 0);
    view.set("queries", [...view.get("queries"), { ...pinned.at(-1), sign }]);
    view.tell(this);
  }

  // ---------------------------------------------------------------- drawing

  /** What is coloured as {key, values}: cosines, or how two packs of one picture differ in them or in their ranks. */
  answer() {
    const { view, pack, other } = this, own = view.cosines(pack);
    if (!this.signed) return this.under && this.show === "similarity" ? this.filled(own) : own;
    const theirs = view.cosines(other);
    const key = `${own.key} ${theirs.key}`;
    if (!own.values || !theirs.values) return { key, values: null };
    if (this.compared?.key !== key) {
      this.carried ??= carriedIndex(other.geometry, pack.geometry);
      const [a, b] = this.show === "rank" ? [ranks(own.values), ranks(theirs.values)] : [own.values, theirs.values];
      this.compared = { key, values: a.map((value, cell) => value - b[this.carried[cell]]) };
    }
    return this.compared;
  }

  /** The cosines, with those of the coarser map wherever this one has no patch yet. */
  filled(own) {
    const { pack, under } = this, coarse = this.view.cosines(under), key = `${own.key} ${coarse.key}`;
    if (!coarse.values || (own.values && pack.complete && !pack.hollow?.length)) return own;
    if (this.compared?.key !== key) {
      this.carried ??= carriedIndex(under.geometry, pack.geometry);
      const values = Float32Array.from(this.carried, (cell, at) => {
        const value = own.values ? own.values[at] : NaN;
        return value === value || !pack.valid[at] ? value : coarse.values[cell];
      });
      this.compared = { key, values };
    }
    return this.compared;
  }

  /** Colours, their limits and the threshold. */
  get style() {
    return this.signed ? DIFFERENCE : this.view.style;
  }

  get signed() {
    return (this.show === "difference" || this.show === "rank") && this.other !== null;
  }

  draw() {
    const { canvas, context, view, pack, other, show, split, trouble } = this, { box_width, box_height } = this.box;
    update(this.status, { textContent: trouble, hidden: !trouble });
    const ratio = window.devicePixelRatio || 1;
    update(canvas, { width: Math.round(box_width * ratio), height: Math.round(box_height * ratio) });
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, box_width, box_height);
    if (!pack) return this.legend.clear();
    canvas.style.touchAction = this.camera.zoom > 1 ? "none" : "";
    this.photograph(ratio);

    const answer = this.answer(), alone = view.held === " ";
    if (view.held === "b" && other) this.paint(other, view.cosines(other));
    else if (!alone && show === "swipe" && other) {
      const at = split * box_width;
      this.within([0, 0, at, box_height], () => this.paint(pack, answer));
      this.within([at, 0, box_width, box_height], () => this.paint(other, view.cosines(other)));
      Object.assign(context, { fillStyle: "#fff", strokeStyle: "#000", lineWidth: 1 });
      for (const [wide, high] of [[2, box_height], [8, 28]]) {
        const bar = [at - wide / 2, (box_height - high) / 2, wide, high];
        context.fillRect(...bar);
        context.strokeRect(...bar);
      }
    } else if (!alone && show !== "photo") this.paint(pack, answer, true);
    if (!alone) this.marks(answer);
    this.legend.draw(answer);
  }

  /** Draws the photograph; where it stays as it was, from a copy of the canvas, which is several times faster. */
  photograph(ratio) {
    const { canvas, context, ground, pack } = this, { width, height } = canvas;
    const key = [pack.id, width, height, ...Object.values(this.camera), this.box.fit].join();
    if (pack.photo && this.grounded !== key) {
      this.grounded = key;
      this.stretch(pack.photo, [0, 0, ...this.size], true);
      Object.assign(ground, { width, height });
      ground.getContext("2d").drawImage(canvas, 0, 0);
    } else if (pack.photo) context.drawImage(ground, 0, 0, width / ratio, height / ratio);
  }

  /** Draws inside a box of the canvas only. */
  within([left, top, right, bottom], draw) {
    const { context } = this;
    context.save();
    context.beginPath();
    context.rect(left, top, right - left, bottom - top);
    context.clip();
    draw();
    context.restore();
  }

  /** A picture over a box of the photograph. */
  stretch(picture, [left, top, right, bottom], smooth) {
    const [x, y] = this.placeOf(left, top), [x2, y2] = this.placeOf(right, bottom);
    this.context.imageSmoothingEnabled = smooth;
    this.context.drawImage(picture, x, y, x2 - x, y2 - y);
  }

  /** The map of a pack over the photograph: in the way of this pane, or its cosines. */
  paint(pack, { key, values }, own = false) {
    const { view } = this, colored = own && this.show === "pca";
    if (colored ? !pack.basis : !values) return;
    const style = { ...(own ? this.style : view.style), opacity: view.get("opacity"), smooth: view.get("smooth") };
    const wanted = colored ? `pca ${pack.rowsHere}` : `${key} ${Object.values(style)}`;
    if (!this.layers.has(pack)) this.layers.set(pack, new Layer());
    const layer = this.layers.get(pack);
    if (layer.key !== wanted) {
      if (colored) layer.colors(pcaColors(view.engine, pack, pack.basis), pack);
      else layer.heat(values, pack, style);
      layer.key = wanted;
    }
    const [left, top, right, bottom] = pack.geometry.crop;
    const box = [...this.placeOf(left, top), ...this.placeOf(right, bottom)];
    this.within(box, () => this.stretch(layer.canvas, gridBox(pack.geometry), style.smooth));
  }

  /** Frames around patches: chosen ones, the best matches, the queries, and the one under the pointer. */
  marks(answer) {
    const { view, pack } = this, pinned = view.get("queries");
    for (const [index, row, col] of view.get("selection")) {
      if (view.packs[index] === pack && pack.valid[row * pack.cols + col]) this.outline([row, col], COLORS.chosen);
    }
    this.matches(answer).forEach(({ row, col }, index) => this.outline([row, col], COLORS.match, `${index + 1}`));
    for (const query of this.pinned) {
      const name = pinned.length > 1 ? `${query.sign < 0 ? "−" : "+"}${pinned.indexOf(query) + 1}` : "";
      this.outline(this.cellOf(query), query.sign < 0 ? COLORS.negative : COLORS.query, name, 3);
    }
    this.outline(this.cellOf(view.hover), COLORS.hover);
  }

  /** The patches most alike to what is pinned, apart from it and from one another; found once a map. */
  matches({ key, values }) {
    const { view, pack } = this, pinned = view.get("queries").length && !view.hover?.preview;
    if (!values || !pinned || !pack.complete || this.signed || this.show === "photo") return NONE;
    if (this.best?.key !== key) {
      const apart = Math.max(1, Math.round(0.06 * Math.max(pack.rows, pack.cols)));
      const exclude = this.pinned.map((query) => this.cellOf(query)).filter(Boolean);
      this.best = { key, list: topK(values, pack, 5, { exclude, radius: apart, spacing: apart }) };
    }
    return this.best.list;
  }

  outline(cell, color, label = "", weight = 2) {
    if (!cell) return;
    const { context } = this, { box_width, box_height } = this.box;
    const [first, , last] = patchToPolygon(this.pack.geometry, ...cell);
    const [x, y] = this.placeOf(...first), [x2, y2] = this.placeOf(...last);
    const grow = [x2 - x, y2 - y].map((side) => Math.max(0, SEEN - side) / 2);
    const frame = [x - grow[0], y - grow[1], x2 - x + 2 * grow[0], y2 - y + 2 * grow[1]];
    context.font = "600 12px system-ui, sans-serif";
    const room = context.measureText(label).width + 4; // beside the frame, on the other side at the rim
    if (x2 < 0 || y2 < 0 || x > box_width || y > box_height) return; // zoom has put it beside the pane
    const right = frame[0] + frame[2];
    const at = [right + room > box_width ? frame[0] - room : right + 3, clamp(frame[1] + 9, 11, box_height - 3)];
    for (const [style, line] of [["rgba(0,0,0,.7)", weight + 2], [color, weight]]) {
      Object.assign(context, { strokeStyle: style, lineWidth: line });
      context.strokeRect(...frame);
    }
    Object.assign(context, { strokeStyle: "rgba(0,0,0,.8)", lineWidth: 3, fillStyle: color });
    context.strokeText(label, ...at);
    context.fillText(label, ...at);
  }

}

/** What tells packs apart: model, layer, input size, norm, patch size. */
function factsOf({ header, geometry }) {
  const { model, layer, norm } = header, side = Math.max(geometry.input_width, geometry.input_height);
  const block = layer == null ? "unknown layer" : `layer ${layer + 1}`;
  const tensor = norm == null ? "unknown norm" : `${norm ? "after" : "before"} the norm`;
  return [model.name, block, `${side} px`, tensor, `patches of ${geometry.patch_size} px`];
}

/** A pack by what is not the same in all of these; by layer and input size if all of it is. */
function name(pack, others) {
  const all = others.filter(Boolean).map(factsOf), own = factsOf(pack);
  const telling = own.filter((fact, index) => all.some((other) => other[index] !== fact));
  return (telling.length ? telling : own.slice(1, 3)).join(" · ");
}

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
