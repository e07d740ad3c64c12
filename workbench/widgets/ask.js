/**
 * Phrases and photographs: where each phrase is, which photograph shows it best, and what each word of it is worth.
 *
 *   mount(el, host) -> view with destroy()
 *
 * `host` is described in loader.js. Packs hold patches in the space of texts; the blob "vectors" holds the phrases,
 * turned as the codes of packs are, and `answers` says which row is which (workbench/ask.py). Everything else is
 * computed here; only a new phrase is asked for, by setting `phrases` and `asked`. A saved file has nobody to ask.
 */

import { displayedToPixel, gridBox, patchToPolygon, pixelToDisplayed, pixelToPatch } from "./geometry.js";
import { COLORMAPS, gradient } from "./colors.js";
import { createEngine, openPack } from "./pack.js";
import { Layer, steps } from "./heat.js";
import { COLORS, make, style, update } from "./page.js";

const DEFAULTS = {
  model: {}, // {name, temperature, licence, numbers}
  phrases: [], // [{text, role}]: "ask", or "contrast" for what is only compared with
  answers: {}, // {version, phrases: {text: {plain, templated, without, scores}}}
  chosen: 0, // number of the phrase whose map is shown
  photo: 0,
  show: "cosine",
  temperature: null, // of the shares; null: the model's own
  templates: true,
  opacity: 0.7,
  colormap: "viridis",
  smooth: true,
  told: "", // a sentence
  asked: {},
};
const SHOWS = { cosine: "Cosine", share: "Share among phrases", labels: "Likeliest phrase" };
// Okabe and Ito's, as workbench/clips.py has them, and five more for the phrases beyond seven.
export const PHRASES = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#f0e442", "#332288", "#882255", "#117733", "#aa4499", "#999933"];
const RGB = PHRASES.map((color) => [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16)));
const BEST = 0.05; // of the patches: those that a phrase answers best, by which its words are judged
const FINE = 6; // pixels along a patch where phrases are told apart
const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const SAVED = "A saved view knows these phrases only. To ask for others, open it in a notebook or in the app.";
const WARNING = "The model learned from whole photographs and their captions, so where a phrase lies is a by-product: trust a map less than the order of the photographs.";
const KEYS = "Enter in the field asks. On the picture arrows walk the patches, with Shift by five; Escape lets go. 1 to 9 choose a phrase, C shows cosines, S shares, L labels; hold Space for the photograph alone.";
const option = (value, text = value) => `<option value="${value}">${text}</option>`;
const PAGE = `
  <form class="gs-bar gs-asking">
    <input type="text" class="gs-text" maxlength="200" placeholder="a phrase, such as: a dog on the grass" aria-label="A phrase">
    <button type="submit" class="gs-go">Ask</button>
    <button type="button" class="gs-against" title="A phrase that is not looked for, but compared with">Add as contrast</button>
    <span class="gs-told" role="status"></span>
  </form>
  <div class="gs-asked">
    <figure><figcaption><span></span></figcaption>
      <div class="gs-stage"><canvas tabindex="0" role="application" aria-roledescription="map of patches"></canvas></div>
      <div class="gs-legend"><div class="gs-gradient"></div><div class="gs-numbers"><span></span><span></span><span></span></div></div>
    </figure>
    <div class="gs-side">
      <div class="gs-phrases" role="radiogroup" aria-label="Phrases"></div>
      <p class="gs-read" aria-live="polite"></p>
      <p class="gs-words"></p>
    </div>
  </div>
  <div class="gs-ranked" role="radiogroup" aria-label="Photographs, those that show the phrase best first"></div>
  <div class="gs-bar">
    <label>Show <select class="gs-show">${Object.entries(SHOWS).map(([value, text]) => option(value, text)).join("")}</select></label>
    <label class="gs-warmth">Temperature <input type="range" min="-3" max="0" step="0.02" aria-label="Temperature of the shares"><output></output></label>
    <label title="The mean of several sentences with the phrase in them, such as: a photo of ..."><input type="checkbox" class="gs-templates"> Templates</label>
    <label>Colours <select class="gs-colormap">${COLORMAPS.map((name) => option(name)).join("")}</select></label>
    <label>Between patches <select class="gs-between">${option("nearest")}${option("bilinear")}</select></label>
    <label>Opacity <input type="range" class="gs-opacity" min="0" max="1" step="0.05"></label>
    <details><summary>Keys</summary><p>${KEYS}</p></details>
  </div>
  <p class="gs-note"></p>`;

export function mount(el, host) {
  return new AskView(el, host);
}

class AskView {
  constructor(el, host) {
    this.host = host;
    this.engine = createEngine(host.state.get("engine") ?? "auto");
    this.packs = [];
    this.vectors = null;
    this.drafts = {};
    this.maps = new Map(); // what is computed, by what it is computed from
    this.hover = this.held = null;
    this.count = 0;
    this.layer = new Layer();
    this.build(el);
    this.unlisten = ["pack_ids", ...Object.keys(DEFAULTS)].map((name) => host.state.on(name, () => this.heard(name)));
    this.opening = this.open();
    this.fetching = this.fetchAnswers();
  }

  destroy() {
    this.gone = true;
    cancelAnimationFrame(this.waiting);
    this.resizes.disconnect();
    this.unlisten.forEach((off) => off());
    this.packs.forEach((pack) => this.release(pack));
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
    if (this.gone) return;
    if (name === "pack_ids") this.opening = this.open();
    if (name === "answers") this.fetching = this.fetchAnswers();
    this.follow();
    this.redraw();
  }

  /** Whether there is somebody who can turn a phrase into a vector. */
  get alive() {
    return this.host.kind !== "file";
  }

  get pack() {
    return this.packs[this.photo] ?? null;
  }

  get photo() {
    return Math.min(this.get("photo"), Math.max(this.packs.length - 1, 0));
  }

  get chosen() {
    return Math.min(this.get("chosen"), Math.max(this.get("phrases").length - 1, 0));
  }

  get temperature() {
    return this.get("temperature") ?? this.get("model").temperature ?? 0.07;
  }

  // ---------------------------------------------------------------- what comes from Python

  async open() {
    const ids = this.get("pack_ids") ?? [], turn = (this.turn = {}), former = this.packs;
    const found = await Promise.all(ids.map((id) => former.find((pack) => pack?.id === id) ?? this.openOne(id)));
    if (this.gone || turn !== this.turn) return found.forEach((pack) => former.includes(pack) || this.release(pack));
    for (const pack of former) if (!found.includes(pack)) this.release(pack);
    this.packs = found;
    this.maps.clear();
    this.hover = null;
    this.follow();
    this.redraw();
  }

  async openOne(id) {
    try {
      const pack = await openPack(this.host.reader(id));
      pack.photo = pack.preview && (await createImageBitmap(await (await fetch(pack.preview)).blob()));
      await pack.load();
      return pack;
    } catch (error) {
      this.say(error.message);
      return null;
    }
  }

  release(pack) {
    if (!pack) return;
    this.engine.release(pack);
    pack.revoke();
    pack.photo?.close();
  }

  async fetchAnswers() {
    const answers = this.get("answers");
    if (!answers.version) return;
    try {
      const bytes = await this.host.blob("vectors");
      if (this.gone || this.get("answers").version !== answers.version) return;
      this.vectors = new Float32Array(bytes.slice().buffer);
      this.known = answers.phrases;
      this.maps.clear();
    } catch (error) {
      this.say(error.message);
    }
    this.follow();
    this.redraw();
  }

  say(words) {
    this.words = words;
    this.follow();
  }

  // ---------------------------------------------------------------- phrases

  /** Adds a phrase, or gives one that is there another role, and chooses it. */
  add(text, role) {
    text = text.split(/\s+/).filter(Boolean).join(" ");
    if (!this.alive) return this.say(SAVED);
    if (!text) return this.say("Type a phrase first.");
    const phrases = this.get("phrases"), at = phrases.findIndex((phrase) => phrase.text === text);
    if (at < 0 && phrases.length >= PHRASES.length) return this.say(`There is room for ${PHRASES.length} phrases; take one away first.`);
    const next = at < 0 ? [...phrases, { text, role }] : phrases.map((phrase, index) => (index === at ? { text, role } : phrase));
    this.parts.text.value = "";
    this.tell(next, at < 0 ? next.length - 1 : at);
  }

  remove(at) {
    const phrases = this.get("phrases").filter((_, index) => index !== at);
    this.tell(phrases, Math.max(0, this.chosen - (at <= this.chosen && this.chosen > 0 ? 1 : 0)));
  }

  /** Phrases as they are now, of which Python hears; `chosen` before it, so that no map of another one flashes. */
  tell(phrases, chosen) {
    this.words = "";
    if (chosen !== this.get("chosen")) this.set("chosen", chosen);
    this.set("phrases", phrases);
    this.count += 1;
    if (this.alive) this.set("asked", { id: `${Date.now()}-${this.count}`, action: "phrases" });
  }

  flip(at) {
    const phrases = this.get("phrases");
    this.tell(phrases.map((phrase, index) => (index === at ? { ...phrase, role: phrase.role === "ask" ? "contrast" : "ask" } : phrase)), this.chosen);
  }

  // ---------------------------------------------------------------- numbers

  row(at) {
    const dim = this.packs.find(Boolean)?.dim;
    return dim && this.vectors ? this.vectors.subarray(at * dim, (at + 1) * dim) : null;
  }

  /** The cosines of a pack with a row of vectors, once; null while something is missing. */
  cosines(pack, at) {
    const vector = pack && at != null ? this.row(at) : null;
    if (!vector || vector.length !== pack.dim) return null;
    const key = `${pack.id} ${at}`;
    if (!this.maps.has(key)) this.maps.set(key, this.engine.cosines(pack, vector, new Float32Array(pack.rows * pack.cols)));
    return this.maps.get(key);
  }

  /** The row of a phrase as templates want it. */
  rowOf({ text }) {
    return this.known?.[text]?.[this.get("templates") ? "templated" : "plain"];
  }

  /** The cosine map of each phrase, null where it is not known yet. */
  all(pack) {
    return this.get("phrases").map((phrase) => this.cosines(pack, this.rowOf(phrase)));
  }

  /** What part of each patch each phrase gets: softmax of the cosines of all phrases over the temperature. */
  shares(pack) {
    const maps = this.all(pack);
    if (!maps.length || maps.some((map) => !map)) return null;
    const key = `shares ${pack.id} ${this.get("phrases").map((phrase) => this.rowOf(phrase))} ${this.temperature}`;
    if (!this.maps.has(key)) {
      const found = maps.map((map) => new Float32Array(map.length));
      for (let cell = 0; cell < maps[0].length; cell++) {
        const most = Math.max(...maps.map((map) => map[cell]));
        const parts = maps.map((map) => Math.exp((map[cell] - most) / this.temperature));
        const sum = parts.reduce((total, part) => total + part, 0);
        parts.forEach((part, at) => (found[at][cell] = part / sum));
      }
      this.maps.set(key, found);
    }
    return this.maps.get(key);
  }

  /** Lowest and highest cosine of a row over all photographs: one scale, or they could not be compared. */
  range(at) {
    let [low, high] = [Infinity, -Infinity];
    for (const pack of this.packs) for (const value of this.cosines(pack, at) ?? []) {
      if (value < low) low = value;
      if (value > high) high = value;
    }
    return low < high ? [low, high] : [-1, 1];
  }

  /** Photographs as [[number, cosine with the chosen phrase]], best first; in their order where nothing is asked. */
  ranking() {
    const phrase = this.get("phrases")[this.chosen];
    const scores = this.known?.[phrase?.text]?.scores?.[this.get("templates") ? "templated" : "plain"];
    const rows = this.packs.map((_, at) => [at, scores?.[at] ?? null]);
    return scores ? rows.sort(([, a], [, b]) => b - a) : rows;
  }

  /** Each word of the chosen phrase, and by how much cosines of its best patches fall without it. */
  worths() {
    const phrase = this.get("phrases")[this.chosen], told = this.known?.[phrase?.text], { pack } = this;
    const whole = told && this.cosines(pack, told.plain);
    if (!whole || !told.without.length) return [];
    const order = [...whole.keys()].filter((cell) => whole[cell] === whole[cell]).sort((a, b) => whole[b] - whole[a]);
    const best = order.slice(0, Math.max(1, Math.round(BEST * order.length)));
    return told.without.map(([word, at]) => {
      const map = this.cosines(pack, at);
      return { word, worth: best.reduce((sum, cell) => sum + whole[cell] - map[cell], 0) / best.length };
    });
  }

  // ---------------------------------------------------------------- the page

  build(el) {
    style(el.getRootNode());
    const named = { className: "gs-view gs-ask", role: "group", "aria-label": "Ask in words", innerHTML: PAGE };
    this.root = make("div", named);
    this.root.dataset.lmSuppressShortcuts = "true";
    const part = (name) => this.root.querySelector(`.gs-${name}`);
    const names = ["text", "go", "against", "told", "phrases", "read", "words", "ranked", "show", "warmth", "templates", "colormap", "between", "opacity", "note", "gradient", "legend"];
    this.parts = Object.fromEntries(names.map((name) => [name, part(name)]));
    const { parts } = this;
    Object.assign(parts, { form: part("asking"), canvas: this.root.querySelector("canvas"), figure: this.root.querySelector("figure"), title: this.root.querySelector("figcaption span") });
    parts.numbers = this.root.querySelectorAll(".gs-numbers span");
    [parts.heat, parts.degree] = parts.warmth.querySelectorAll("input, output");
    this.context = parts.canvas.getContext("2d");
    parts.form.onsubmit = (event) => {
      event.preventDefault();
      this.add(parts.text.value, "ask");
    };
    parts.against.onclick = () => this.add(parts.text.value, "contrast");
    parts.show.onchange = () => this.set("show", parts.show.value);
    parts.heat.oninput = () => this.set("temperature", warmth(parts.heat.value), false);
    parts.heat.onchange = () => this.set("temperature", warmth(parts.heat.value));
    parts.templates.onchange = () => this.set("templates", parts.templates.checked);
    parts.colormap.onchange = () => this.set("colormap", parts.colormap.value);
    parts.between.onchange = () => this.set("smooth", parts.between.value === "bilinear");
    parts.opacity.oninput = () => this.set("opacity", Number(parts.opacity.value), false);
    parts.opacity.onchange = () => this.set("opacity", Number(parts.opacity.value));
    parts.canvas.onpointermove = (event) => this.point(this.cellAt(event));
    parts.canvas.onpointerdown = (event) => this.point(this.cellAt(event));
    parts.canvas.onpointerleave = () => this.point(null);
    this.root.addEventListener("keydown", (event) => this.key(event));
    this.root.addEventListener("keyup", (event) => event.key === this.held && this.hold(null));
    this.root.addEventListener("focusout", () => this.hold(null));
    el.append(this.root);
    this.resizes = new ResizeObserver(() => this.redraw());
    this.resizes.observe(this.root);
    this.follow();
  }

  /** Everything beside the picture. */
  follow() {
    const { parts, pack, alive } = this, phrases = this.get("phrases"), show = this.get("show"), known = this.known ?? {};
    for (const name of ["text", "go", "against"]) update(parts[name], { disabled: !alive });
    const waits = phrases.some(({ text }) => !known[text]) && alive;
    const empty = phrases.length ? "" : "Ask for something: a dog, the sky, a wheel.";
    update(parts.told, { textContent: this.words || this.get("told") || (waits ? "Reading the phrase …" : alive ? empty : SAVED) });
    this.enumerate(phrases);
    update(parts.show, { value: show });
    update(parts.warmth, { hidden: show === "cosine" && phrases.length < 2 });
    update(parts.heat, { value: `${Math.log10(this.temperature)}` });
    update(parts.degree, { textContent: this.temperature.toPrecision(2) });
    update(parts.templates, { checked: this.get("templates") });
    update(parts.colormap, { value: this.get("colormap") });
    update(parts.between, { value: this.get("smooth") ? "bilinear" : "nearest" });
    update(parts.opacity, { value: `${this.get("opacity")}` });
    this.rank();
    const chosen = phrases[this.chosen]?.text ?? "";
    const name = pack?.header.picture.name ?? "";
    update(parts.title, { textContent: chosen ? `${name} · ${show === "labels" ? "the likeliest of all phrases" : chosen}` : name });
    if (pack) parts.figure.style.setProperty("--gs-aspect", pack.geometry.width / pack.geometry.height);
    parts.canvas.setAttribute("aria-label", pack ? `${SHOWS[show]} of ${chosen || "nothing"} on ${name}` : "No photograph");
    const worths = this.worths();
    const most = Math.max(...worths.map(({ worth }) => Math.abs(worth)), 1e-6);
    parts.words.replaceChildren(...(worths.length ? ["What each word is worth: ", ...worths.flatMap(({ word, worth }) => {
      const shown = make("span", { textContent: word, title: `cosines of the best patches ${worth >= 0 ? "fall" : "rise"} by ${Math.abs(worth).toFixed(3)} without it` });
      shown.style.setProperty("--gs-worth", `${Math.round((60 * Math.max(worth, 0)) / most)}%`);
      return [shown, make("small", { textContent: signed(worth) }), " "];
    })] : []));
    const { numbers = {}, name: model, licence } = this.get("model");
    update(parts.note, { textContent: [model && `Answers come from ${model}`, numbers.sentence, WARNING, licence && `Licence: ${licence}`].filter(Boolean).join(" · ") });
  }

  /** A line a phrase: its colour, its text, its role, what it has under the pointer, and a way to be rid of it. */
  enumerate(phrases) {
    const key = JSON.stringify([phrases, this.alive]);
    if (this.listed !== key) {
      this.listed = key;
      this.lines = phrases.map((phrase, at) => {
        const asked = phrase.role === "ask";
        const name = make("button", { type: "button", role: "radio", textContent: phrase.text, className: "gs-name" });
        name.onclick = () => this.set("chosen", at);
        name.style.setProperty("--gs-object", asked ? PHRASES[at] : "transparent");
        const role = make("button", { type: "button", textContent: asked ? "ask" : "contrast", title: "Ask for it, or only compare with it", className: "gs-role", disabled: !this.alive });
        role.setAttribute("aria-label", `${phrase.text}: ${asked ? "asked for" : "a contrast"}`);
        role.onclick = () => this.flip(at);
        const away = make("button", { type: "button", textContent: "×", "aria-label": `Take away: ${phrase.text}`, className: "gs-away", hidden: !this.alive });
        away.onclick = () => this.remove(at);
        const bar = make("i"), value = make("output");
        const line = make("div", { className: "gs-phrase" }, [name, role, make("span", { className: "gs-part" }, [bar]), value, away]);
        bar.style.background = asked ? PHRASES[at] : "var(--gs-soft)";
        return { line, name, bar, value };
      });
      this.parts.phrases.replaceChildren(...this.lines.map(({ line }) => line));
    }
    this.lines.forEach(({ name }, at) => name.setAttribute("aria-checked", `${at === this.chosen}`));
  }

  /** The photographs in a row, best first. */
  rank() {
    const rows = this.ranking(), key = JSON.stringify([rows, this.photo, this.packs.map((pack) => pack?.id)]);
    if (this.rankedAs === key) return;
    this.rankedAs = key;
    update(this.parts.ranked, { hidden: rows.length < 2 });
    this.parts.ranked.replaceChildren(...rows.map(([at, score], place) => {
      const pack = this.packs[at], picture = make("img", { src: pack?.preview ?? "", alt: "" });
      const words = score === null ? "" : `${place + 1} · ${score.toFixed(3)}`;
      const button = make("button", { type: "button", role: "radio", title: pack?.header.picture.name ?? "" }, [picture, make("span", { textContent: words })]);
      button.setAttribute("aria-label", `${pack?.header.picture.name ?? "a lost photograph"}${score === null ? "" : `, place ${place + 1}, cosine ${score.toFixed(3)}`}`);
      button.setAttribute("aria-checked", `${at === this.photo}`);
      button.onclick = () => {
        this.hover = null;
        this.set("photo", at);
      };
      return button;
    }));
  }

  // ---------------------------------------------------------------- pointer and keys

  get box() {
    const { clientWidth, clientHeight } = this.parts.canvas, { width, height } = this.pack.geometry;
    return { box_width: clientWidth || 1, box_height: clientHeight || 1, width, height, fit: "contain" };
  }

  cellAt({ clientX, clientY }) {
    if (!this.pack) return null;
    const { left, top, width, height } = this.parts.canvas.getBoundingClientRect(), { box } = this;
    const pixel = displayedToPixel(((clientX - left) / width) * box.box_width, ((clientY - top) / height) * box.box_height, box);
    return pixel && pixelToPatch(this.pack.geometry, ...pixel);
  }

  point(cell) {
    if (`${this.hover}` === `${cell}`) return;
    this.hover = cell;
    this.redraw();
  }

  hold(key) {
    if (this.held === key) return;
    this.held = key;
    this.redraw();
  }

  key(event) {
    const { key, target, shiftKey } = event, onPicture = target === this.parts.canvas;
    if (target.matches("input:not([type=range], [type=checkbox]), select") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (onPicture && key in STEPS && this.pack) {
      const { rows, cols } = this.pack, [row, col] = this.hover ?? [rows >> 1, cols >> 1];
      const [down, right] = STEPS[key].map((step) => step * (shiftKey ? 5 : 1));
      this.point([Math.min(Math.max(row + down, 0), rows - 1), Math.min(Math.max(col + right, 0), cols - 1)]);
    } else if (onPicture && key === "Escape") this.point(null);
    else if (onPicture && key === " ") this.hold(key);
    else if (key >= "1" && key <= "9" && this.get("phrases")[key - 1]) this.set("chosen", key - 1);
    else if (key in { c: 1, s: 1, l: 1 }) this.set("show", { c: "cosine", s: "share", l: "labels" }[key]);
    else return;
    event.preventDefault();
  }

  // ---------------------------------------------------------------- drawing

  redraw() {
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = null;
      if (!this.gone && this.pack) this.draw();
    });
  }

  draw() {
    const { parts, context, pack, box } = this, ratio = window.devicePixelRatio || 1;
    update(parts.canvas, { width: Math.round(box.box_width * ratio), height: Math.round(box.box_height * ratio) });
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, box.box_width, box.box_height);
    const over = ([x, y, x2, y2], picture, smooth) => {
      const [a, b] = pixelToDisplayed(x, y, box), [c, d] = pixelToDisplayed(x2, y2, box);
      context.imageSmoothingEnabled = smooth;
      context.drawImage(picture, a, b, c - a, d - b);
    };
    const { width, height, crop } = pack.geometry;
    if (pack.photo) over([0, 0, width, height], pack.photo, true);
    const drawn = this.held !== " " && this.colored(pack);
    if (drawn) {
      const [x, y] = pixelToDisplayed(crop[0], crop[1], box), [x2, y2] = pixelToDisplayed(crop[2], crop[3], box);
      context.save();
      context.beginPath();
      context.rect(x, y, x2 - x, y2 - y);
      context.clip();
      over(gridBox(pack.geometry), this.layer.canvas, this.get("smooth"));
      context.restore();
    }
    if (this.hover) this.outline(this.hover, box);
    this.legend(drawn);
    this.read();
  }

  /** Paints the layer; whether there is anything on it, and for what values its colours stand. */
  colored(pack) {
    const show = this.get("show"), phrase = this.get("phrases")[this.chosen];
    const style = { colormap: this.get("colormap"), opacity: this.get("opacity"), threshold: null, smooth: this.get("smooth") };
    if (!phrase) return null;
    if (show === "labels") return this.labels(pack, style.opacity) && { limits: null };
    const at = this.rowOf(phrase);
    const values = show === "cosine" ? this.cosines(pack, at) : this.shares(pack)?.[this.chosen];
    if (!values) return null;
    const limits = show === "cosine" ? this.range(at) : [0, 1];
    this.layer.heat(values, pack, { ...style, limits });
    return { limits };
  }

  /** Every place in the colour of its likeliest phrase; clear where that is a contrast. False while one is missing. */
  labels(pack, opacity) {
    const maps = this.all(pack), phrases = this.get("phrases"), { rows, cols, valid } = pack;
    if (maps.some((map) => !map)) return false;
    const fine = this.get("smooth") ? FINE : 1, pixels = this.layer.sheet(cols * fine, rows * fine), alpha = Math.round(opacity * 255) << 24;
    const inks = phrases.map(({ role }, at) => (role === "ask" ? alpha | (RGB[at][2] << 16) | (RGB[at][1] << 8) | RGB[at][0] : 0));
    const [tops, bottoms, downs] = steps(rows, fine), [lefts, rights, acrosses] = steps(cols, fine);
    for (let y = 0, place = 0; y < rows * fine; y++) {
      const [top, bottom, down] = [tops[y], bottoms[y], downs[y]];
      for (let x = 0; x < cols * fine; x++, place++) {
        const [left, right, across] = [lefts[x], rights[x], acrosses[x]], cell = Math.floor(y / fine) * cols + Math.floor(x / fine);
        let best = -1, most = -Infinity;
        for (let at = 0; at < maps.length; at++) {
          const map = maps[at], mix = (a, b, share) => (a !== a ? b : b !== b ? a : a * (1 - share) + b * share);
          const value = mix(mix(map[top * cols + left], map[top * cols + right], across), mix(map[bottom * cols + left], map[bottom * cols + right], across), down);
          if (value > most) [most, best] = [value, at];
        }
        pixels[place] = best < 0 || !valid[cell] ? 0 : inks[best];
      }
    }
    this.layer.show();
    return true;
  }

  outline(cell, box) {
    const { context } = this, [first, , last] = patchToPolygon(this.pack.geometry, ...cell);
    const [x, y] = pixelToDisplayed(...first, box), [x2, y2] = pixelToDisplayed(...last, box);
    for (const [strokeStyle, lineWidth] of [["rgba(0,0,0,.7)", 4], [COLORS.hover, 2]]) {
      Object.assign(context, { strokeStyle, lineWidth });
      context.strokeRect(x, y, x2 - x, y2 - y);
    }
  }

  /** The scale in words: without it a map of cosines says nothing. */
  legend(drawn) {
    const { parts } = this, limits = drawn?.limits;
    parts.gradient.style.visibility = limits ? "" : "hidden"; // its room stays
    const labels = drawn ? "every place in the colour of its likeliest phrase; contrasts stay clear" : "";
    if (!limits) return ["", labels, ""].forEach((textContent, at) => update(parts.numbers[at], { textContent }));
    if (this.gradient !== this.get("colormap")) parts.gradient.style.background = gradient((this.gradient = this.get("colormap")));
    const cosine = this.get("show") === "cosine", many = this.packs.length > 1;
    const scale = cosine ? `cosine, from the lowest to the highest of this phrase ${many ? "in all photographs" : "here"}` : `share of the patch, softmax at temperature ${this.temperature.toPrecision(2)}`;
    [limits[0].toFixed(2), scale, limits[1].toFixed(2)].forEach((textContent, at) => update(parts.numbers[at], { textContent }));
  }

  /** What each phrase has under the pointer, else in the whole photograph at its best patch. */
  read() {
    const { hover, pack, parts } = this, maps = this.all(pack), shares = maps.length > 1 ? this.shares(pack) : null;
    const cell = hover && hover[0] * pack.cols + hover[1];
    const valid = cell !== null && pack.valid[cell];
    this.lines.forEach(({ bar, value }, at) => {
      const map = maps[at];
      const shown = !map ? NaN : valid ? map[cell] : hover ? NaN : largest(map);
      const share = valid && shares ? shares[at][cell] : NaN;
      update(value, { textContent: shown === shown ? `${shown.toFixed(3)}${share === share ? ` · ${Math.round(100 * share)} %` : ""}` : "" });
      bar.style.width = share === share ? `${100 * share}%` : "0";
    });
    const place = hover ? `row ${hover[0]}, col ${hover[1]}${valid ? " · cosines, and shares of this patch" : " · outside of the photograph"}` : "";
    update(parts.read, { textContent: place || (maps.length ? "Cosines of the best patch. Hover the picture for those under the pointer." : "") });
  }
}

const largest = (values) => values.reduce((most, value) => (value > most ? value : most), -Infinity);
const warmth = (exponent) => Number((10 ** Number(exponent)).toPrecision(3));
const signed = (value) => `${value >= 0 ? "+" : "−"}${Math.abs(value).toFixed(3)}`;
