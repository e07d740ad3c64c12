/**
 * Something in a video, marked in one frame and followed through the others; hovering a patch shows who voted for it.
 *
 *   mount(el, host) -> view with destroy()
 *
 * `host` is described in loader.js; blobs are those of workbench/clips.py. What needs features is asked for by setting
 * `asked`: {id, action}, where action is look, follow, grow, masks, video or cancel. A saved file has nobody to ask.
 */

import { displayedToPixel, Geometry, gridBox, patchToPolygon, pixelToDisplayed, pixelToPatch } from "./geometry.js";
import { COLORS as FRAME, make, style, update } from "./page.js";

const DEFAULTS = {
  clip: null, // what workbench/clips.py's clip_state says
  result: {}, // what its result_state says
  marks: {}, // number of a frame -> a digit a patch: 0 background, 1 to 7 objects
  rules: { context: 7, radius: 12, topk: 5, temperature: 0.2 },
  frame: 0,
  object: 1, // that is painted
  tool: "brush",
  opacity: 0.6,
  colors: true, // whether the principal components stand beside
  progress: {}, // {done, total, what}, empty when nothing is under way
  told: "", // a sentence
  grown: {}, // {id, frame, mark}: the answer to grow
  made: {}, // {id, name, file}: the answer to masks and video, a blob
  asked: {},
};
// Okabe and Ito's, as in workbench/clips.py.
export const OBJECTS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#f0e442"];
const RGB = OBJECTS.map((color) => [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16)));
const TOOLS = { brush: "Brush", box: "Box", grow: "Grow", erase: "Erase" };
const FINE = 8; // pixels of a mask along the side of a patch
const OLDER = 40; // steps that can be undone
const STEPS = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
const WALK = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const RULES = [
  ["topk", "Votes a patch", 1, 16, 1],
  ["context", "Frames of context", 1, 15, 1],
  ["radius", "Radius, patches", 1, 41, 1], // the last: from anywhere
  ["temperature", "Temperature", 0.01, 1, 0.01],
];
const ANYWHERE = 41;
const SAVED = "A saved view plays the clip and shows who voted. To mark and follow anew, open the clip in a notebook or in the app.";
const KEYS = "← → frames, Home and End, P plays. On the picture Shift with arrows moves a patch, Enter marks it; 1 to 7 choose an object, B brush, X box, G grow, E erase; Ctrl+Z takes back, F follows.";
const PAGE = `
  <div class="gs-bar gs-tools">
    <span class="gs-objects" role="radiogroup" aria-label="Object"></span>
    <span class="gs-toolbox" role="radiogroup" aria-label="Tool"></span>
    <label>Size <input type="range" class="gs-size" min="1" max="6" value="2" aria-label="Size of the brush in patches"></label>
    <label>Likeness <input type="range" class="gs-alike" min="0.2" max="0.95" step="0.01" value="0.6" aria-label="Cosine down to which a region grows"><output></output></label>
    <button type="button" class="gs-undo">Undo</button>
    <button type="button" class="gs-clear">Clear frame</button>
  </div>
  <div class="gs-panes">
    <figure><figcaption><span></span></figcaption><div class="gs-stage"><canvas tabindex="0" role="application" aria-roledescription="frame of a video" class="gs-main"></canvas></div></figure>
    <figure class="gs-beside"><figcaption><span>First three principal components, the colours of the first frame</span></figcaption><div class="gs-stage"><canvas class="gs-pca"></canvas></div></figure>
  </div>
  <div class="gs-ribbon gs-line">
    <span><button type="button" class="gs-play">Play</button></span>
    <div><input type="range" class="gs-when-frame" min="0" step="1" aria-label="Frame"><div class="gs-ticks" aria-hidden="true"></div></div>
    <output class="gs-place"></output>
  </div>
  <div class="gs-bar gs-start">
    <button type="button" class="gs-follow">Follow</button>
    <button type="button" class="gs-cancel" hidden>Cancel</button>
    <span class="gs-told" role="status"></span><span class="gs-gap"></span>
    <label>Opacity <input type="range" class="gs-opacity" min="0" max="1" step="0.05"></label>
    <label><input type="checkbox" class="gs-colors"> Colours of parts</label>
  </div>
  <div class="gs-progress" hidden><i></i></div>
  <p class="gs-read" aria-live="polite"></p>
  <div class="gs-votes"></div>
  <details><summary>How votes are counted</summary><div class="gs-bar gs-rules"></div></details>
  <details class="gs-home"><summary>Take it home</summary><div class="gs-bar"><button type="button" class="gs-masks">Masks, PNG</button> <button type="button" class="gs-video">Video, MP4</button></div></details>
  <details><summary>Keys</summary><p>${KEYS}</p></details>
  <p class="gs-note"></p>`;

export function mount(el, host) {
  return new FollowView(el, host);
}

class FollowView {
  constructor(el, host) {
    this.host = host;
    this.pictures = [];
    this.former = []; // marks before each of the last steps
    this.hover = this.cursor = null; // cells
    this.drafts = {};
    this.count = 0;
    this.overlays = new Map(); // what is drawn of frames
    this.build(el);
    this.unlisten = Object.keys(DEFAULTS).map((name) => host.state.on(name, () => this.heard(name)));
    this.opening = this.open();
  }

  destroy() {
    this.gone = true;
    clearInterval(this.playing);
    clearTimeout(this.settling);
    this.resizes.disconnect();
    this.unlisten.forEach((off) => off());
    this.pictures.forEach((picture) => picture.close());
    this.root.remove();
  }

  get(name) {
    return this.drafts[name] ?? this.host.state.get(name) ?? DEFAULTS[name];
  }

  set(name, value) {
    delete this.drafts[name];
    this.host.state.set(name, value);
    this.heard(name);
  }

  heard(name) {
    if (this.gone) return;
    if (name === "frame") delete this.drafts.frame;
    if (name === "clip") this.opening = this.open();
    if (name === "result") this.fetching = this.fetchResult();
    if (name === "marks") this.overlays.clear();
    if (name === "grown") this.takeGrown();
    if (name === "made") this.download();
    this.follow();
    this.redraw();
  }

  /** Whether there is somebody who can look at frames and follow. */
  get alive() {
    return this.host.kind !== "file";
  }

  get busy() {
    return Boolean(this.get("progress").total);
  }

  get frames() {
    return this.get("clip")?.ends.length ?? 0;
  }

  // ---------------------------------------------------------------- what comes from Python

  async open() {
    const clip = this.get("clip"), turn = (this.turn = (this.turn ?? 0) + 1);
    this.geometry = clip && new Geometry(clip.geometry);
    this.palette = null;
    this.overlays.clear();
    if (!clip) return this.follow();
    try {
      const bytes = await this.host.blob("pictures");
      const starts = [0, ...clip.ends];
      const parts = clip.ends.map((end, at) => new Blob([bytes.slice(starts[at], end)], { type: "image/jpeg" }));
      const pictures = await Promise.all(parts.map((part) => createImageBitmap(part)));
      const palette = clip.looked ? await this.host.blob("colors") : null;
      if (this.gone || turn !== this.turn) return pictures.forEach((picture) => picture.close());
      this.pictures.forEach((picture) => picture.close());
      const same = `${clip.ends}` === `${this.shown?.ends}`; // only its features are new
      Object.assign(this, { pictures, palette, shown: clip, former: same ? this.former : [], hover: null });
      await this.fetchResult();
    } catch (error) {
      this.say(error.message);
    }
    this.follow();
    this.redraw();
  }

  async fetchResult() {
    const result = this.get("result");
    if (!result.version) this.found = null;
    else {
      const [labels, voters, weights] = await Promise.all(["labels", "voters", "weights"].map((name) => this.host.blob(name)));
      if (this.gone || this.get("result").version !== result.version) return;
      const whole = (bytes) => bytes.slice().buffer; // aligned
      this.found = { ...result, labels, voters: new Int32Array(whole(voters)), weights: new Uint16Array(whole(weights)), count: result.labels };
    }
    this.overlays.clear();
    this.follow();
    this.redraw();
  }

  ask(action, more = {}) {
    this.count += 1;
    this.set("asked", { id: `${Date.now()}-${this.count}`, action, ...more });
  }

  /** A region has grown: it becomes part of what is marked. */
  takeGrown() {
    const { frame, mark, id } = this.get("grown");
    if (!mark || id === this.grownId) return;
    this.grownId = id;
    if (frame === this.get("frame")) this.paint([...mark].flatMap((digit, place) => (digit === "1" ? [place] : [])));
  }

  async download() {
    const { id, name, file } = this.get("made");
    if (!file || id === this.madeId) return;
    this.madeId = id;
    const url = URL.createObjectURL(new Blob([await this.host.blob(file)]));
    make("a", { href: url, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  }

  // ---------------------------------------------------------------- marks

  /** The digits of a frame: what is marked there, or what was followed to it, or nothing. */
  digits(frame = this.get("frame")) {
    const marked = this.get("marks")[frame];
    if (marked) return [...marked].map(Number);
    const { rows, cols } = this.geometry, patches = rows * cols;
    if (!this.found || frame < this.found.first) return new Array(patches).fill(0);
    return Array.from({ length: patches }, (_, place) => this.likeliest(frame, place));
  }

  likeliest(frame, place) {
    const { labels, count } = this.found, at = (frame * this.geometry.rows * this.geometry.cols + place) * count;
    let best = 0;
    for (let object = 1; object < count; object++) if (labels[at + object] > labels[at + best]) best = object;
    return best;
  }

  /** Gives patches (numbers) the chosen object, or takes it from them; `begins` a step that can be undone. */
  paint(places, begins = true, object = this.get("tool") === "erase" ? 0 : this.get("object")) {
    if (!this.alive || this.busy || !this.geometry) return;
    const frame = this.get("frame"), marks = this.get("marks"), digits = this.digits(frame);
    if (begins) this.former = [...this.former.slice(-OLDER), marks];
    for (const place of places) digits[place] = object;
    this.set("marks", { ...marks, [frame]: digits.join("") });
  }

  undo() {
    if (this.former.length) this.set("marks", this.former.pop());
  }

  clear() {
    const { [this.get("frame")]: gone, ...rest } = this.get("marks");
    if (!gone) return;
    this.former = [...this.former, this.get("marks")];
    this.set("marks", rest);
  }

  /** The patches under a brush around a cell. */
  brushed([row, col]) {
    const { rows, cols } = this.geometry, size = Number(this.parts.size.value), reach = size - 1, places = [];
    for (let y = Math.max(0, row - reach); y <= Math.min(rows - 1, row + reach); y++) {
      for (let x = Math.max(0, col - reach); x <= Math.min(cols - 1, col + reach); x++) {
        if ((y - row) ** 2 + (x - col) ** 2 < (size - 0.5) ** 2) places.push(y * cols + x);
      }
    }
    return places;
  }

  boxed([row, col], [row2, col2]) {
    const { cols } = this.geometry, places = [];
    for (let y = Math.min(row, row2); y <= Math.max(row, row2); y++) {
      for (let x = Math.min(col, col2); x <= Math.max(col, col2); x++) places.push(y * cols + x);
    }
    return places;
  }

  grow(cell) {
    if (this.alive && !this.busy) this.ask("grow", { frame: this.get("frame"), cell, threshold: Number(this.parts.alike.value) });
  }

  // ---------------------------------------------------------------- the page

  build(el) {
    style(el.getRootNode());
    this.root = make("div", { className: "gs-view gs-video-view", innerHTML: PAGE, role: "group", "aria-label": "Follow an object through a video" });
    this.root.dataset.lmSuppressShortcuts = "true";
    const part = (name) => this.root.querySelector(`.gs-${name}`);
    const names = ["objects", "toolbox", "size", "alike", "undo", "clear", "main", "beside", "pca", "play", "ticks", "place", "told", "opacity", "colors", "progress", "read", "votes", "rules", "masks", "video", "note", "tools", "home", "cancel", "panes"];
    this.parts = Object.fromEntries(names.map((name) => [name, part(name)]));
    Object.assign(this.parts, { when: part("when-frame"), follow: part("follow"), title: this.root.querySelector("figcaption span"), line: part("line"), start: part("start") });
    const { parts } = this;
    parts.panes.style.setProperty("--gs-columns", 2);
    this.chips = OBJECTS.map((color, at) => this.choice(parts.objects, "object", at + 1, `${at + 1}`, color));
    this.tools = Object.entries(TOOLS).map(([tool, name]) => this.choice(parts.toolbox, "tool", tool, name));
    this.sliders = RULES.map(([name, title, min, max, step]) => {
      const range = make("input", { type: "range", "aria-label": title }), value = make("output");
      Object.assign(range, { min, max, step });
      const told = () => (name === "radius" && Number(range.value) === ANYWHERE ? null : Number(range.value));
      range.oninput = () => update(value, { textContent: `${told() ?? "anywhere"}` });
      range.onchange = () => this.set("rules", { ...this.get("rules"), [name]: told() });
      parts.rules.append(make("label", {}, [title, range, value]));
      return { name, range, value };
    });
    parts.alike.oninput = () => update(parts.alike.nextElementSibling, { textContent: Number(parts.alike.value).toFixed(2) });
    parts.alike.oninput();
    parts.undo.onclick = () => this.undo();
    parts.clear.onclick = () => this.clear();
    parts.play.onclick = () => this.play();
    parts.when.oninput = () => this.go(Number(parts.when.value), false);
    parts.when.onchange = () => this.go(Number(parts.when.value));
    parts.follow.onclick = () => this.start();
    parts.cancel.onclick = () => this.ask("cancel");
    parts.opacity.oninput = () => this.set("opacity", Number(parts.opacity.value));
    parts.colors.onchange = () => this.set("colors", parts.colors.checked);
    parts.masks.onclick = () => this.ask("masks");
    parts.video.onclick = () => this.ask("video");
    this.context = parts.main.getContext("2d");
    this.hands();
    this.root.addEventListener("keydown", (event) => this.key(event));
    el.append(this.root);
    this.resizes = new ResizeObserver(() => this.redraw());
    this.resizes.observe(this.root);
  }

  choice(place, name, value, text, color = null) {
    const button = make("button", { type: "button", textContent: text, role: "radio", "aria-label": color ? `Object ${text}` : text });
    if (color) button.style.setProperty("--gs-object", color);
    button.onclick = () => this.set(name, value);
    place.append(button);
    return { button, value };
  }

  start() {
    if (!this.alive || this.busy) return;
    this.say("");
    this.ask("follow");
  }

  say(words) {
    this.words = words;
    this.follow();
  }

  /** Everything beside the pictures. */
  follow() {
    const { parts, frames, alive, busy } = this, clip = this.get("clip"), frame = this.get("frame"), marks = this.get("marks");
    const progress = this.get("progress"), marked = Object.keys(marks).length > 0;
    for (const { button, value } of this.chips) button.setAttribute("aria-checked", `${value === this.get("object")}`);
    for (const { button, value } of this.tools) button.setAttribute("aria-checked", `${value === this.get("tool")}`);
    update(parts.tools, { hidden: !alive || !clip });
    for (const name of ["line", "start", "panes"]) update(parts[name], { hidden: !clip });
    update(parts.size.parentElement, { hidden: !["brush", "erase"].includes(this.get("tool")) });
    update(parts.alike.parentElement, { hidden: this.get("tool") !== "grow" });
    update(parts.undo, { disabled: !this.former.length || busy });
    update(parts.clear, { disabled: !marks[frame] || busy });
    update(parts.when, { max: `${Math.max(frames - 1, 0)}`, value: `${frame}` });
    parts.when.setAttribute("aria-valuetext", `frame ${frame + 1} of ${frames}`);
    update(parts.place, { textContent: `${frame + 1} / ${frames}` });
    const ticks = Object.keys(marks).map((at) => `<i style="left:calc(8px + (100% - 16px) * ${at / Math.max(frames - 1, 1)})" title="marked"></i>`).join("");
    if (this.drawnTicks !== ticks) parts.ticks.innerHTML = this.drawnTicks = ticks;
    const corrects = this.found && marks[frame] && frame > this.found.first && marks[frame] !== this.found.marks[frame];
    update(parts.follow, { textContent: corrects ? "Go on from here" : "Follow", disabled: !alive || busy || !marked, hidden: !alive });
    update(parts.cancel, { hidden: !busy || !alive });
    update(parts.progress, { hidden: !busy });
    parts.progress.firstElementChild.style.width = busy ? `${(100 * progress.done) / progress.total}%` : "0";
    const hint = !clip ? "" : !alive ? SAVED : marked ? (this.stale ? "What is marked has changed: follow again." : "") : "Mark something in a frame, then follow it.";
    const under = busy ? `${progress.what} · ${progress.done} of ${progress.total}` : "";
    update(parts.told, { textContent: under || this.get("told") || this.words || hint });
    update(parts.opacity, { value: `${this.get("opacity")}` });
    update(parts.colors, { checked: this.get("colors") });
    update(parts.colors.parentElement, { hidden: !this.palette });
    update(parts.beside, { hidden: !this.palette || !this.get("colors") });
    parts.panes.style.setProperty("--gs-columns", parts.beside.hidden ? 1 : 2);
    for (const { name, range, value } of this.sliders) {
      const set = this.get("rules")[name];
      update(range, { value: `${set ?? ANYWHERE}`, disabled: !alive || busy });
      update(value, { textContent: `${set ?? "anywhere"}` });
    }
    update(parts.home, { hidden: !alive });
    for (const name of ["masks", "video"]) update(parts[name], { disabled: !this.found || busy });
    update(parts.title, { textContent: clip ? clip.name : "" });
    const { rows, cols } = this.geometry ?? {};
    update(parts.note, { textContent: clip ? [`${frames} frames · ${cols} × ${rows} patches`, ...clip.notes].join(" · ") : "" });
    parts.main.setAttribute("aria-label", clip ? `Frame ${frame + 1} of ${frames} of ${clip.name}` : "No clip");
    if (this.geometry) for (const figure of parts.panes.children) figure.style.setProperty("--gs-aspect", this.geometry.width / this.geometry.height);
  }

  /** Whether marks or rules are others than those that were followed. */
  get stale() {
    const same = (a, b) => Object.keys({ ...a, ...b }).every((key) => (a ?? {})[key] === (b ?? {})[key]);
    return this.found && !(same(this.found.marks, this.get("marks")) && same(this.found.rules, this.get("rules")));
  }

  // ---------------------------------------------------------------- time

  go(frame, tell = true) {
    const moved = Math.min(Math.max(Math.round(frame), 0), Math.max(this.frames - 1, 0));
    clearTimeout(this.settling);
    if (tell) return this.set("frame", moved);
    this.drafts.frame = moved;
    this.settling = setTimeout(() => this.set("frame", moved), 200);
    this.follow();
    this.redraw();
  }

  play() {
    if (this.playing) this.playing = clearInterval(this.playing);
    else if (this.frames) {
      if (this.get("frame") >= this.frames - 1) this.go(0, false);
      const calm = matchMedia("(prefers-reduced-motion: reduce)").matches, pace = 1000 / Math.min(this.get("clip").rate || 10, 30);
      this.playing = setInterval(() => {
        this.go(this.get("frame") + 1, false);
        if (this.get("frame") >= this.frames - 1) this.play();
      }, calm ? Math.max(pace, 600) : pace);
    }
    update(this.parts.play, { textContent: this.playing ? "Pause" : "Play" });
  }

  // ---------------------------------------------------------------- pointer and keys

  get box() {
    const { clientWidth, clientHeight } = this.parts.main, { width, height } = this.geometry;
    return { box_width: clientWidth || 1, box_height: clientHeight || 1, width, height, fit: "contain" };
  }

  cellAt({ clientX, clientY }, canvas = this.parts.main) {
    if (!this.geometry) return null;
    const { left, top, width, height } = canvas.getBoundingClientRect(), box = this.box;
    const pixel = displayedToPixel(((clientX - left) / width) * box.box_width, ((clientY - top) / height) * box.box_height, box);
    return pixel && pixelToPatch(this.geometry, ...pixel);
  }

  hands() {
    const { main, pca } = this.parts;
    const act = (cell, begins) => {
      if (this.get("tool") === "box") this.corner = begins ? cell : this.corner;
      else if (this.get("tool") === "grow") begins && this.grow(cell);
      else this.paint(this.brushed(cell), begins);
    };
    main.onpointerdown = (event) => {
      const cell = this.cellAt(event);
      if (event.button || !cell || !this.alive) return;
      event.preventDefault();
      main.focus({ preventScroll: true });
      main.setPointerCapture(event.pointerId);
      this.pressed = true;
      act(cell, true);
      this.point(cell);
    };
    main.onpointermove = (event) => {
      const cell = this.cellAt(event);
      if (this.pressed && cell && this.get("tool") !== "grow") this.stroke(this.hover ?? cell, cell, act);
      this.point(cell);
    };
    main.onpointerup = main.onpointercancel = () => {
      if (this.pressed && this.corner && this.hover) this.paint(this.boxed(this.corner, this.hover));
      this.pressed = this.corner = null;
      this.redraw();
    };
    main.onpointerleave = () => !this.pressed && this.point(null);
    pca.onpointermove = (event) => this.point(this.cellAt(event, pca));
    pca.onpointerleave = () => this.point(null);
  }

  /** Every cell between two, so that a quick stroke has no gaps. */
  stroke([row, col], [row2, col2], act) {
    const steps = Math.max(Math.abs(row2 - row), Math.abs(col2 - col));
    for (let at = 1; at <= steps; at++) {
      act([Math.round(row + ((row2 - row) * at) / steps), Math.round(col + ((col2 - col) * at) / steps)], false);
    }
  }

  point(cell) {
    if (`${this.hover}` === `${cell}`) return;
    this.hover = cell;
    this.redraw();
  }

  key(event) {
    const { key, target } = event, onPicture = target === this.parts.main;
    if (target.matches("input:not([type=range], [type=checkbox]), select") || event.altKey) return;
    if ((event.ctrlKey || event.metaKey) && key.toLowerCase() === "z") this.undo();
    else if (event.ctrlKey || event.metaKey || (target.matches("input[type=range]") && key in STEPS)) return;
    else if (onPicture && event.shiftKey && key in WALK) this.walk(WALK[key]);
    else if (key in STEPS) this.go(Math.min(Math.max(this.get("frame") + STEPS[key], 0), this.frames - 1));
    else if (onPicture && key === "Enter" && this.alive) this.press();
    else if (onPicture && key === "Escape") [this.corner, this.hover] = [null, null];
    else if (key >= "1" && key <= "7") this.set("object", Number(key));
    else if (key in { b: 1, x: 1, g: 1, e: 1 }) this.set("tool", { b: "brush", x: "box", g: "grow", e: "erase" }[key]);
    else if (key === "p") this.play();
    else if (key === "f") this.start();
    else return;
    event.preventDefault();
    this.redraw();
  }

  walk([down, right]) {
    const { rows, cols } = this.geometry, [row, col] = this.hover ?? [rows >> 1, cols >> 1];
    this.point([Math.min(Math.max(row + down, 0), rows - 1), Math.min(Math.max(col + right, 0), cols - 1)]);
  }

  /** Enter: what a click does; the first corner of a box, then the second. */
  press() {
    const cell = this.hover ?? [this.geometry.rows >> 1, this.geometry.cols >> 1], tool = this.get("tool");
    this.hover = cell;
    if (tool === "grow") this.grow(cell);
    else if (tool !== "box") this.paint(this.brushed(cell));
    else if (!this.corner) this.corner = cell;
    else this.corner = this.paint(this.boxed(this.corner, cell)) ?? null;
  }

  // ---------------------------------------------------------------- drawing

  redraw() {
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = null;
      if (!this.gone && this.geometry && this.pictures.length) this.draw();
    });
  }

  draw() {
    const { parts, context, geometry } = this, frame = this.get("frame"), { box } = this;
    this.stretchTo(parts.main, context, box);
    const over = (context, [x, y, x2, y2], picture, smooth) => {
      const [a, b] = pixelToDisplayed(x, y, box), [c, d] = pixelToDisplayed(x2, y2, box);
      context.imageSmoothingEnabled = smooth;
      context.drawImage(picture, a, b, c - a, d - b);
    };
    const whole = [0, 0, geometry.width, geometry.height], picture = this.pictures[frame];
    if (picture) over(context, whole, picture, true);
    const overlay = this.overlay(frame);
    context.globalAlpha = this.get("opacity");
    if (overlay) over(context, gridBox(geometry), overlay, true);
    context.globalAlpha = 1;
    if (this.corner && this.hover) for (const place of this.boxed(this.corner, this.hover)) this.outline(context, box, [Math.floor(place / geometry.cols), place % geometry.cols], OBJECTS[this.get("object") - 1], 1);
    if (this.hover) this.outline(context, box, this.hover, FRAME.hover, 2);
    if (this.palette && this.get("colors")) {
      const side = parts.pca.getContext("2d");
      this.stretchTo(parts.pca, side, box);
      over(side, gridBox(geometry), this.painted(frame), false);
      if (this.hover) this.outline(side, box, this.hover, FRAME.hover, 2);
    }
    this.tell(frame);
  }

  stretchTo(canvas, context, { box_width, box_height }) {
    const ratio = window.devicePixelRatio || 1;
    update(canvas, { width: Math.round(box_width * ratio), height: Math.round(box_height * ratio) });
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, box_width, box_height);
  }

  outline(context, box, cell, color, weight) {
    const [first, , last] = patchToPolygon(this.geometry, ...cell);
    const [x, y] = pixelToDisplayed(...first, box), [x2, y2] = pixelToDisplayed(...last, box);
    for (const [strokeStyle, lineWidth] of [["rgba(0,0,0,.7)", weight + 2], [color, weight]]) {
      Object.assign(context, { strokeStyle, lineWidth });
      context.strokeRect(x, y, x2 - x, y2 - y);
    }
  }

  /** The principal components of a frame, a pixel a patch. */
  painted(frame) {
    const { rows, cols } = this.geometry, image = new ImageData(cols, rows);
    for (let at = 0, from = frame * rows * cols * 3; at < rows * cols; at++, from += 3) {
      image.data.set([this.palette[from], this.palette[from + 1], this.palette[from + 2], 255], 4 * at);
    }
    return canvasOf(image);
  }

  /** Objects of a frame as a picture in their colours, with a firm edge; null where there is nothing. */
  overlay(frame) {
    if (!this.overlays.has(frame)) {
      const mask = this.fine(frame);
      if (this.overlays.size > 80) this.overlays.clear();
      this.overlays.set(frame, mask && colored(mask));
    }
    return this.overlays.get(frame);
  }

  /** Which object each pixel is: marks as they were painted, what was followed bilinear and then the likeliest. */
  fine(frame) {
    const { rows, cols } = this.geometry, marked = this.get("marks")[frame], width = cols * FINE, height = rows * FINE;
    if (!marked && !(this.found && frame >= this.found.first)) return null;
    const mask = new Uint8Array(width * height), count = this.found?.count ?? 0, from = frame * rows * cols * count;
    for (let y = 0, at = 0; y < height; y++) {
      const [top, bottom, down] = between(y, rows);
      for (let x = 0; x < width; x++, at++) {
        if (marked) {
          mask[at] = marked.charCodeAt(Math.floor(y / FINE) * cols + Math.floor(x / FINE)) - 48;
          continue;
        }
        const [left, right, across] = between(x, cols), { labels } = this.found;
        let most = -1;
        for (let object = 0; object < count; object++) {
          const value = (row, col) => labels[from + (row * cols + col) * count + object];
          const upper = value(top, left) * (1 - across) + value(top, right) * across;
          const lower = value(bottom, left) * (1 - across) + value(bottom, right) * across;
          const whole = upper * (1 - down) + lower * down;
          if (whole > most) [most, mask[at]] = [whole, object];
        }
      }
    }
    return { mask, width, height };
  }

  /** Who voted for a patch: [{frame, row, col, weight}], strongest first. */
  votesFor(frame, [row, col]) {
    const { rows, cols } = this.geometry, patches = rows * cols, votes = [];
    if (!this.found) return votes;
    const { voters, weights, topk } = this.found, from = (frame * patches + row * cols + col) * topk;
    for (let at = from; at < from + topk; at++) {
      const place = voters[at] % patches;
      if (voters[at] >= 0 && weights[at]) votes.push({ frame: Math.floor(voters[at] / patches), row: Math.floor(place / cols), col: place % cols, weight: weights[at] / 65535 });
    }
    return votes;
  }

  /** What is under the pointer, in words, and beside them the frames that voted for it. */
  tell(frame) {
    const { hover, parts } = this;
    const key = `${hover} ${frame} ${this.found?.version} ${this.get("marks")[frame]}`;
    if (this.toldKey === key) return;
    this.toldKey = key;
    if (!hover) {
      update(parts.read, { textContent: this.found ? "Hover a patch to see who voted for it." : "" });
      return parts.votes.replaceChildren();
    }
    const [row, col] = hover, object = this.digits(frame)[row * this.geometry.cols + col], is = object ? `object ${object}` : "background";
    const votes = this.votesFor(frame, hover), marked = this.get("marks")[frame];
    const share = (weight) => `${Math.round(100 * weight)} %`;
    const said = votes.map((vote) => `frame ${vote.frame + 1} row ${vote.row}, col ${vote.col} ${share(vote.weight)}`).join(" · ");
    const why = marked && !votes.length ? "marked by hand" : votes.length ? `votes: ${said}` : this.found ? "not followed" : "";
    update(parts.read, { textContent: [`row ${row}, col ${col}`, is, why].filter(Boolean).join(" · ") });
    const voted = [...new Set(votes.map((vote) => vote.frame))].sort((a, b) => a - b);
    parts.votes.replaceChildren(...voted.map((other) => this.ballot(other, votes.filter((vote) => vote.frame === other), share)));
  }

  /** A frame that voted, small, with its patches outlined. */
  ballot(frame, votes, share) {
    const { width, height, cols } = this.geometry, wide = 150, high = Math.round((wide * height) / width), ratio = window.devicePixelRatio || 1;
    const canvas = make("canvas", { width: wide * ratio, height: high * ratio }), context = canvas.getContext("2d");
    canvas.style.aspectRatio = `${wide} / ${high}`;
    context.scale(ratio, ratio);
    if (this.pictures[frame]) context.drawImage(this.pictures[frame], 0, 0, wide, high);
    const box = { box_width: wide, box_height: high, width, height, fit: "fill" };
    const colorOf = ({ row, col }) => OBJECTS[this.digits(frame)[row * cols + col] - 1] ?? "#fff";
    for (const vote of votes) this.outline(context, box, [vote.row, vote.col], colorOf(vote), 2);
    const words = `frame ${frame + 1} · ${share(votes.reduce((sum, vote) => sum + vote.weight, 0))}`;
    return make("figure", {}, [canvas, make("figcaption", { textContent: words })]);
  }
}

/** For a pixel of a fine map: the patches before and after it, and the share of the latter. */
function between(pixel, cells) {
  const place = Math.min(Math.max((pixel + 0.5) / FINE - 0.5, 0), cells - 1), before = Math.floor(place);
  return [before, Math.min(before + 1, cells - 1), place - before];
}

function canvasOf(image) {
  const canvas = make("canvas", { width: image.width, height: image.height });
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

function colored({ mask, width, height }) {
  const image = new ImageData(width, height);
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at++) {
      if (!mask[at]) continue;
      const edge = (x && mask[at - 1] !== mask[at]) || (y && mask[at - width] !== mask[at]) || (x + 1 < width && mask[at + 1] !== mask[at]) || (y + 1 < height && mask[at + width] !== mask[at]);
      image.data.set([...(edge ? [255, 255, 255] : RGB[(mask[at] - 1) % RGB.length]), 255], 4 * at);
    }
  }
  return canvasOf(image);
}
