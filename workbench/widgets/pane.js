/** One pane of the similarity view: a photograph under a map, and what stands beside it in words and numbers. */

import { carriedIndex, displayedToPixel, gridBox, patchCentre, patchToPolygon, pixelToDisplayed, pixelToPatch } from "./geometry.js";
import { pcaColors, standing, topK } from "./pack.js";
import { gradient } from "./colors.js";
import { bars, Layer, ranks } from "./heat.js";
import { COLORS, make, update } from "./page.js";
import { Pointer } from "./pointer.js";

const SHOWS = { similarity: "Similarity", pca: "PCA colours", photo: "Photo", difference: "Difference to", rank: "Rank difference to", swipe: "Swipe with" };
const BETWEEN = { difference: " − ", rank: " − ", swipe: " | " }; // what shows two packs, and how its title joins them
const DIFFERENCE = 0.5; // differences are coloured from minus to plus this
const WHOLE = { x: 0.5, y: 0.5, zoom: 1 };
const CLOSEST = 40; // times
const SEEN = 10; // css pixels: smaller cells get a frame of this size
const CURVES = "How often each value occurs. Line: random pairs of patches of this photo. Dashed: pairs with other photos.";
const NONE = []; // matches
const PANE = `
  <figcaption><span></span><select title="What this pane shows" aria-label="What this pane shows"></select></figcaption>
  <div class="gs-stage">
    <canvas tabindex="0" role="application" aria-roledescription="map of patches"></canvas>
    <div class="gs-status" role="alert" hidden></div>
  </div>
  <p class="gs-read"></p>
  <div class="gs-legend">
    <div class="gs-gradient"></div>
    <div class="gs-numbers"><span></span><span></span><span></span></div>
    <div class="gs-legend">
      <canvas class="gs-histogram" role="img" title="${CURVES}" aria-label="${CURVES}"></canvas>
      <input type="range" min="-1" max="1" step="0.01" value="0.5" title="Threshold" aria-label="Threshold of the mask">
      <div class="gs-numbers"><span></span><span>0</span><span></span></div>
      <label><input type="checkbox">Mask below the threshold</label>
    </div>
  </div>
  <ol class="gs-matches" aria-label="Patches most alike"></ol>`;
const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

export class Pane {
  constructor(view) {
    this.view = view;
    this.figure = make("figure", { innerHTML: PANE });
    const all = (selector) => [...this.figure.querySelectorAll(selector)];
    [this.canvas, this.histogram] = all("canvas");
    [this.menu, this.level, this.mask] = all("select, input");
    [this.status, this.readout, this.bar, this.list] = all(".gs-status, .gs-read, .gs-gradient, ol");
    [this.legend, this.spread] = all(".gs-legend");
    [this.title, ...this.numbers] = all("span"); // numbers: least, name and most of the colours, then of the histogram
    this.context = this.canvas.getContext("2d");
    this.ground = make("canvas"); // the photograph alone
    view.grid.append(this.figure);
    this.menu.onchange = () => {
      const [show, other] = this.menu.value.split(":");
      view.change(this, { show, other: other === undefined ? null : Number(other) });
    };
    this.mask.onchange = () => view.set("threshold", this.mask.checked ? Number(this.level.value) : null);
    this.level.oninput = () => view.set("threshold", Number(this.level.value), false);
    this.level.onchange = () => view.set("threshold", Number(this.level.value));
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
    if (!pack) {
      update(this.title, { textContent: "", title: "" });
      update(this.readout, { textContent: "" });
      this.list.replaceChildren();
      this.listed = NONE;
      this.menu.replaceChildren();
      return;
    }
    const { header, geometry } = pack;
    this.image = header.picture.digest;
    this.size = [geometry.width, geometry.height];
    this.title.textContent = this.other && this.show in BETWEEN ? name(pack, [other]) + BETWEEN[this.show] + name(other, [pack]) : name(pack, packs);
    this.title.title = `${header.picture.name} · ${pack.rows} × ${pack.cols} · ${factsOf(pack).join(" · ")}`;
    this.figure.style.setProperty("--gs-aspect", geometry.width / geometry.height);
    const plain = ["similarity", ...(pack.basis ? ["pca"] : []), "photo"].map((value) => [value, SHOWS[value]]);
    const pairs = packs.flatMap((other, at) => other && other !== pack && other.header.picture.digest === this.image
      ? Object.keys(BETWEEN).map((show) => [`${show}:${at}`, `${SHOWS[show]} ${name(other, [pack])}`]) : []);
    this.menu.replaceChildren(...[...plain, ...pairs].map(([value, textContent]) => make("option", { value, textContent })));
    this.menu.value = this.show in BETWEEN ? `${this.show}:${spec.other}` : this.show;
  }

  /** Why there is less to see than was wanted, in a sentence; "" when all is well. */
  get trouble() {
    const { view, spec, show } = this;
    const absent = (number) => view.failures[number] ?? (view.packs[number] ? "" : `There is no pack ${number} in this view.`);
    if (!(show in SHOWS)) return `A pane shows ${Object.keys(SHOWS).join(", ")}; not ${show}.`;
    if (absent(spec.pack)) return absent(spec.pack);
    if (show === "pca" && !this.pack.basis) return "This pack holds no colours: give a basis to make_pack.";
    if (show in BETWEEN && spec.other == null) return "There is nothing to compare with: name another pack.";
    return show in BETWEEN ? absent(spec.other) : "";
  }

  // ---------------------------------------------------------------- places: css pixels of the canvas, pixels of the photo

  /** Reads the size of the canvas: before anything is written, or the page would be laid out twice. */
  measure() {
    const [width, height] = this.size ?? [1, 1];
    this.box = { box_width: this.canvas.clientWidth || 1, box_height: this.canvas.clientHeight || 1, width, height, fit: this.view.get("fit") };
    this.breadth = this.histogram.clientWidth;
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
    return [box_width / 2 - x * across, box_height / 2 - y * down, { ...this.box, box_width: across, box_height: down, fit: "fill" }];
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
      return seen >= 1 || next === 1 ? 0.5 : clamp(point - (to[axis] - side / 2) / (extent[axis] * next), seen / 2, 1 - seen / 2);
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
    const target = [down, right].map((step, axis) => (cell ? clamp(cell[axis] + step, first[axis], most[axis]) : (first[axis] + most[axis]) >> 1));
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

  get signed() {
    return (this.show === "difference" || this.show === "rank") && this.other !== null;
  }

  draw() {
    const trouble = this.trouble;
    const { canvas, context, view, show, split } = this, { box_width, box_height } = this.box;
    update(this.status, { textContent: trouble, hidden: !trouble });
    update(this.legend, { hidden: !this.pack || show === "pca" || show === "photo" });
    const ratio = window.devicePixelRatio || 1;
    update(canvas, { width: Math.round(box_width * ratio), height: Math.round(box_height * ratio) });
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, box_width, box_height);
    if (!this.pack) return;
    canvas.style.touchAction = this.camera.zoom > 1 ? "none" : "";
    this.photograph(ratio);
    const answer = this.answer();
    if (view.held === "b" && this.other) this.paint(this.other, view.cosines(this.other));
    else if (view.held !== " " && show === "swipe" && this.other) {
      this.within([0, 0, split * box_width, box_height], () => this.paint(this.pack, answer));
      this.within([split * box_width, 0, box_width, box_height], () => this.paint(this.other, view.cosines(this.other)));
      Object.assign(context, { fillStyle: "#fff", strokeStyle: "#000", lineWidth: 1 });
      for (const [wide, high] of [[2, box_height], [8, 28]]) {
        context.fillRect(split * box_width - wide / 2, (box_height - high) / 2, wide, high);
        context.strokeRect(split * box_width - wide / 2, (box_height - high) / 2, wide, high);
      }
    } else if (view.held !== " " && show !== "photo") {
      this.paint(this.pack, answer, true);
    }
    if (view.held !== " ") this.marks(answer);
    this.describe(answer);
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
    const { view, signed } = this, [colored, compared] = [own && this.show === "pca", own && signed];
    if (colored ? !pack.basis : !values) return;
    const [smooth, opacity] = [view.get("smooth"), view.get("opacity")];
    const style = compared
      ? { colormap: "blue-white-red", limits: [-DIFFERENCE, DIFFERENCE], opacity, threshold: null, smooth }
      : { colormap: view.get("colormap"), limits: view.get("limits"), opacity, threshold: view.get("threshold"), smooth };
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
    this.within(box, () => this.stretch(layer.canvas, gridBox(pack.geometry), smooth));
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
    const { view, pack, signed } = this;
    if (!values || signed || this.show === "photo" || !pack.complete || !view.get("queries").length || view.hover?.preview) return NONE;
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
    const at = [frame[0] + frame[2] + room > box_width ? frame[0] - room : frame[0] + frame[2] + 3, clamp(frame[1] + 9, 11, box_height - 3)];
    for (const [style, line] of [["rgba(0,0,0,.7)", weight + 2], [color, weight]]) {
      Object.assign(context, { strokeStyle: style, lineWidth: line });
      context.strokeRect(...frame);
    }
    Object.assign(context, { strokeStyle: "rgba(0,0,0,.8)", lineWidth: 3, fillStyle: color });
    context.strokeText(label, ...at);
    context.fillText(label, ...at);
  }

  // ---------------------------------------------------------------- words and numbers

  /** Everything beside the picture: read-out, legend, histogram, list of matches. */
  describe(answer) {
    const { view, signed, show } = this;
    const negative = view.asked.some((query) => query.sign < 0), threshold = view.get("threshold");
    const [low, high] = signed ? [-DIFFERENCE, DIFFERENCE] : view.get("limits");
    const name = show === "rank" ? "difference of ranks" : signed ? "difference of cosines" : negative ? "cosine − cosine" : "cosine";
    const limit = (sign, value) => (signed ? sign : "") + fixed(value, 2);
    const colormap = signed ? "blue-white-red" : view.get("colormap");
    update(this.spread, { hidden: signed });
    if (this.gradient !== colormap) this.bar.style.background = gradient((this.gradient = colormap));
    const reach = negative ? 2 : 1, numbers = [limit("≤ ", low), name, limit("≥ ", high), `${-reach}`, "0", `${reach}`];
    numbers.forEach((textContent, index) => update(this.numbers[index], { textContent }));
    update(this.level, { min: `${-reach}`, max: `${reach}`, value: `${threshold ?? this.level.value}`, className: threshold == null ? "gs-off" : "" });
    update(this.mask, { checked: threshold != null });
    const key = [answer.key, threshold, reach, colormap, low, high, this.breadth, devicePixelRatio].join();
    if (!signed && this.breadth && this.barred !== key) {
      this.barred = key;
      const curves = [{ values: this.pack.nullSame, dash: [] }, { values: this.pack.nullOther, dash: [3, 3] }];
      const comparable = curves.filter(({ values }) => values?.length && !negative);
      bars(this.histogram, this.breadth, answer.values, { reach, curves: comparable, threshold, colormap, limits: [low, high] });
    }
    update(this.readout, { textContent: this.words(answer.values, name) });
    const label = `${SHOWS[show]}: ${this.title.textContent}. ${this.readout.textContent}`;
    if (this.canvas.getAttribute("aria-label") !== label) this.canvas.setAttribute("aria-label", label);
    const matches = this.matches(answer);
    if (this.listed !== matches) this.list.replaceChildren(...matches.map((match) => make("li", { textContent: this.line(match) })));
    this.listed = matches;
  }

  line({ row, col, cosine }) {
    const rank = this.standing(cosine);
    return `row ${row}, col ${col}: ${fixed(cosine, 3)}${rank ? `, above ${rank.percentile.toFixed(1)} %` : ""}`;
  }

  /** The patch under the pointer, else the one pinned last: where it is, its value, and whether that is much. */
  words(values, name) {
    const { view, pack } = this;
    const [done, total] = pack.progress ?? [];
    const coming = done < total ? `Features are coming: ${done} of ${total} rows. ` : "";
    const point = view.hover?.image === this.image ? view.hover : this.pinned.at(-1);
    if (!point && view.asked.length) return coming + (values ? "Hover to read a value." : "The query lies in a photograph that these weights have not seen.");
    if (!point) return `${coming}Hover a patch; click to pin it.`;
    const cell = this.cellOf(point);
    if (!cell) return "Outside of what the model saw.";
    const [x, y] = (point.pixel ?? [point.x, point.y]).map(Math.floor);
    const place = `row ${cell[0]}, col ${cell[1]} · pixel ${x}, ${y}`;
    const known = values?.[cell[0] * pack.cols + cell[1]] ?? NaN;
    if (known !== known) return `${coming}${place} · no value`;
    const rank = this.signed ? null : this.standing(known);
    const above = rank ? ` · above ${rank.percentile.toFixed(1)} % of random pairs${rank.others ? " with other photos" : ""}` : "";
    const usual = rank ? this.usual(cell) : "";
    return `${coming}${place} · ${name} ${fixed(known, 3)}${above}${rank?.z ? `, z ${fixed(rank.z, 1)}` : ""}${usual}`;
  }

  /** Whether a cosine is high: {percentile, z} among random pairs, with other photos where the query lies in one. */
  standing(cosine) {
    const { view, pack } = this;
    const reference = view.asked.every((query) => query.image === this.image) ? pack.nullSame : pack.nullOther;
    const plain = view.asked.every((query) => query.sign > 0); // else it is no cosine, but a difference of two
    return plain && reference?.length ? { ...standing(cosine, reference), others: reference === pack.nullOther } : null;
  }

  /** The mean cosine of two patches as far apart as this one and the only query. */
  usual([row, col]) {
    const [query, more] = this.view.asked, from = !more && this.cellOf(query);
    const usual = from ? this.pack.nullDistance?.[Math.abs(row - from[0]) + Math.abs(col - from[1]) - 1] : NaN;
    return usual === usual && usual !== undefined ? ` · usual at this distance ${fixed(usual, 2)}` : "";
  }
}

/** What tells packs apart: model, layer, input size, norm, patch size. */
function factsOf({ header, geometry }) {
  const { model, layer, norm } = header, side = Math.max(geometry.input_width, geometry.input_height);
  const tensor = norm == null ? "unknown norm" : `${norm ? "after" : "before"} the norm`;
  return [model.name, layer == null ? "unknown layer" : `layer ${layer + 1}`, `${side} px`, tensor, `patches of ${geometry.patch_size} px`];
}

/** A pack by what is not the same in all of these; by layer and input size if all of it is. */
function name(pack, others) {
  const all = others.filter(Boolean).map(factsOf), own = factsOf(pack);
  const telling = own.filter((fact, index) => all.some((other) => other[index] !== fact));
  return (telling.length ? telling : own.slice(1, 3)).join(" · ");
}

/** A number without the sign of a zero. */
const fixed = (value, digits) => (Number(value.toFixed(digits)) || 0).toFixed(digits);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
