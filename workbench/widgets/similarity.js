/**
 * Hover a patch of a photograph and see what the model finds alike, in any number of linked panes.
 *
 *   mount(el, host) -> view with destroy()
 *
 * Features come once, as packs; from then on the page answers alone. Points are pixels of a photograph, so they stay
 * where they are when model, layer or input size change. `host` is described in loader.js: the same module draws in
 * notebooks, in the app and in a saved file. The last two take over the view in the address that opened them, unless
 * host.address says otherwise.
 */

import { patchCentre, pixelToPatch } from "./geometry.js";
import { createEngine, openPack, queryVector } from "./pack.js";
import { COLORMAPS } from "./colors.js";
import { decodeView, encodeView, factsOf, packsOf } from "./address.js";
import { make, style, update } from "./page.js";
import { Pane } from "./pane.js";

export { decodeView, encodeView } from "./address.js";
export { ranks } from "./heat.js";

const DEFAULTS = {
  panes: [], // [{pack, show, other, split, under, camera}]; none: one pane a pack
  queries: [], // [{image, x, y, sign}]: pixels of the picture with this digest; sign -1 subtracts
  threshold: null,
  opacity: 0.7,
  colormap: "viridis",
  limits: [0, 1],
  smooth: false,
  camera: { x: 0.5, y: 0.5, zoom: 1 }, // centre as a share of the picture, of all panes without one of their own
  selection: [], // [[pack, row, col]]: outlined, as by a lasso in the patch cloud
  fit: "contain",
};
const LIMITS = [[0, 1], [-1, 1], [-2, 2], [0.5, 1]];
const KEYS =
  "Hover: preview. Click: pin. Shift: add. Alt or right button: subtract. Click again or Esc: clear. Wheel or + and " +
  "−: zoom. Double click or 0: all of it. Drag: pan, or move a pinned patch. Arrows: walk the patches, with Shift " +
  "by ten. Enter: one query more, for the arrows to move; with Alt it subtracts. Hold Space: the photo alone; hold " +
  "B: the other map; [ and ]: the divider. Touch: tap pins, hold previews, two fingers zoom.";

const option = (value, text = value) => `<option value="${value}">${text}</option>`;
const BAR = `
  <label>Colours <select>${COLORMAPS.map((name) => option(name)).join("")}</select></label>
  <label>Limits <select>${LIMITS.map((limits) => option(limits, limits.join(" to "))).join("")}</select></label>
  <label>Between patches <select>${option("nearest")}${option("bilinear")}</select></label>
  <label>Opacity <input type="range" min="0" max="1" step="0.05"></label>
  <label><input type="checkbox"> Linked zoom</label>
  <label>Patch <input placeholder="row, column" size="9" title="Type a row and a column, then Enter"></label>
  <button type="button" title="Let go of all pinned patches (Esc)">Clear</button>
  <button type="button" title="The whole photograph (0, or double click)">1:1</button>
  <button type="button" title="This view alone on the screen">Full screen</button>
  <button type="button" title="Copy an address that brings this view back">Copy link</button>
  <details><summary>Keys</summary><p>${KEYS}</p></details>`;

export function mount(el, host) {
  return new View(el, host);
}

class View {
  constructor(el, host) {
    this.host = host;
    this.engine = createEngine(host.state.get("engine") ?? "auto");
    this.packs = [];
    this.failures = []; // sentences, one a pack that is not there
    this.panes = [];
    this.drafts = {}; // values that a drag is changing, not yet told to the host
    this.hover = null; // {image, x, y, pixel, preview}: never told to the host
    this.held = null; // the key that is held: " " or "b"
    this.maps = new WeakMap(); // pack -> {key, values, buffer}
    this.ended = new AbortController();
    this.build(el);
    this.unlisten = ["pack_ids", ...Object.keys(DEFAULTS)].map((name) => host.state.on(name, () => this.heard(name)));
    const followed = host.kind !== "notebook" && host.address === undefined;
    const follow = () => (this.opening = this.start(location.hash));
    if (followed) addEventListener("hashchange", follow, { signal: this.ended.signal });
    this.opening = this.start(followed ? location.hash : host.address ?? "");
  }

  destroy() {
    this.ended.abort();
    cancelAnimationFrame(this.waiting);
    clearTimeout(this.settling);
    clearTimeout(this.fading);
    this.resizes.disconnect();
    this.unlisten.forEach((off) => off());
    this.packs.forEach((pack) => this.release(pack));
    this.root.remove();
  }

  get(name) {
    return this.drafts[name] ?? this.host.state.get(name) ?? DEFAULTS[name];
  }

  /** Changes the view at once; the host hears of it with `tell`. */
  set(name, value, tell = true) {
    if (tell) {
      delete this.drafts[name];
      this.host.state.set(name, value);
    } else this.drafts[name] = value;
    this.changed(name);
  }

  /** The host changed something, or was told to. */
  heard(name) {
    if (name === "pack_ids") {
      delete this.drafts.pack_ids;
      this.opening = this.start("");
    }
    this.changed(name);
  }

  changed(name) {
    if (name === "panes") this.arrange();
    this.follow();
    this.redraw();
  }

  // ---------------------------------------------------------------- packs

  /** Opens what the host has; with an address, as its view as soon as the packs for it are here. */
  async start(address) {
    const text = address.split("#view=")[1];
    try {
      if (text) this.awaited = await decodeView(text);
    } catch (error) {
      this.remark(error.message, true);
    }
    await this.open();
  }

  async open() {
    const ids = this.get("pack_ids") ?? [], former = this.packs;
    const turn = (this.turn = {});
    const opened = await Promise.all(ids.map((id, index) => this.openOne(id, former, index)));
    const packs = opened.map((pack) => (pack instanceof Error ? null : pack));
    const late = turn !== this.turn || this.ended.signal.aborted;
    const [kept, old] = late ? [this.packs, packs] : [packs, this.packs];
    for (const pack of old) if (!kept.includes(pack)) this.release(pack);
    if (late) return;
    this.packs = packs;
    this.failures = opened.map((pack) => (pack instanceof Error ? pack.message : null));
    if (this.awaited && ids.length && this.adopt(this.awaited)) return this.open();
    this.arrange();
    await Promise.all(packs.map((pack) => pack && this.load(pack)));
  }

  /** Takes over the view of an address, if its packs are here; else says which are not. */
  adopt(record) {
    try {
      const packs = packsOf(record, this.packs.filter(Boolean));
      this.drafts.pack_ids = packs.map(({ id }) => id); // panes count in its order
    } catch (error) {
      return this.remark(`This address shows another view: ${error.message}.`, true);
    }
    this.awaited = null;
    this.remark("");
    for (const [name, initial] of Object.entries(DEFAULTS)) {
      this.set(name, alike(record.state[name], initial) ? record.state[name] : initial);
    }
    return true;
  }

  async openOne(id, former, index) {
    const known = former.find((pack) => pack?.id === id);
    if (known) return known;
    try {
      const pack = await openPack(this.host.reader(id), { previous: former[index] ?? null });
      pack.ended = new AbortController();
      pack.photo = pack.preview && (await createImageBitmap(await (await fetch(pack.preview)).blob()));
      return pack;
    } catch (error) {
      return error;
    }
  }

  /** Brings the codes, those around the first query first. */
  async load(pack) {
    if (pack.loading) return;
    pack.loading = true;
    const query = this.get("queries").find((query) => query.image === pack.header.picture.digest);
    const cell = query && pixelToPatch(pack.geometry, query.x, query.y);
    const onRows = (start, end, done, total) => {
      pack.progress = [done, total];
      this.redraw();
    };
    try {
      await pack.load({ first: cell?.[0] ?? Math.floor(pack.rows / 2), onRows, signal: pack.ended.signal });
    } catch (error) {
      if (!pack.ended.signal.aborted) this.failures[this.packs.indexOf(pack)] = error.message;
    }
    pack.loading = false;
    this.redraw();
  }

  release(pack) {
    if (!pack) return;
    pack.ended.abort();
    this.engine.release(pack);
    pack.revoke();
    pack.photo?.close();
  }

  // ---------------------------------------------------------------- what is asked, and the answer

  /** The pinned points, or the one under the pointer while none is pinned or a finger rests. */
  get asked() {
    const pinned = this.get("queries");
    return this.hover && (this.hover.preview || !pinned.length) ? [{ ...this.hover, sign: 1 }] : pinned;
  }

  /** Where a pack finds the feature of a point: in its own map, or in that of a pack of the same kind of features. */
  sourceOf(pack, point) {
    const { digest } = pack.header.picture;
    const alike = (other) =>
      ["layer", "norm", "dim", "rotation"].every((key) => other.header[key] === pack.header[key]) &&
      other.header.model.weights === pack.header.model.weights && !other.header.reduced && !pack.header.reduced;
    const source = digest === point.image ? pack
      : this.packs.find((other) => other?.header.picture.digest === point.image && alike(other));
    const cell = source && pixelToPatch(source.geometry, point.x, point.y);
    const index = cell && cell[0] * source.cols + cell[1];
    return cell && source.lengths[index] && source.norms[index] ? { source, cell, sign: point.sign } : null;
  }

  /** The cosine map of what is asked as {key, values}, values null where this pack cannot answer; once for each key. */
  cosines(pack) {
    const asked = this.asked.map((point) => this.sourceOf(pack, point)).filter(Boolean);
    const key = [pack.rowsHere, ...asked.map(({ source, cell, sign }) => [source.id, cell, sign])].join();
    const kept = this.maps.get(pack);
    if (kept?.key === key) return kept;
    const [positive, negative] = [1, -1].map((wanted) =>
      asked.filter(({ sign }) => sign === wanted).map(({ source, cell }) => source.unit(...cell)));
    const buffer = kept?.buffer ?? new Float32Array(pack.rows * pack.cols);
    const limit = negative.length ? 2 : 1;
    if (positive.length) this.engine.cosines(pack, queryVector(positive, negative), buffer, { limit });
    pack.hollow ??= [...pack.norms.keys()].filter((index) => !pack.norms[index]); // of a map that is still growing
    for (const index of pack.hollow) buffer[index] = NaN;
    const map = { key, values: positive.length ? buffer : null, buffer };
    this.maps.set(pack, map);
    return map;
  }

  /** Colours, their limits and the threshold of all maps of cosines. */
  get style() {
    return { colormap: this.get("colormap"), limits: this.get("limits"), threshold: this.get("threshold") };
  }

  /** A click: pin here, add, subtract, or let go of the pinned point under the pointer. */
  ask(pane, { image, x, y }, how) {
    const queries = this.get("queries"), query = { image, x, y, sign: how === "subtract" ? -1 : 1 };
    const held = queries.findLast((other) => `${pane.cellOf(other)}` === `${pane.cellOf(query)}`);
    const rest = queries.filter((other) => other !== held);
    const enough = rest.some((other) => other.sign > 0);
    if (held && (how !== "subtract" || held.sign < 0)) this.set("queries", enough ? rest : []);
    else if (how === "subtract" && !enough) {
      return this.remark("Pin a patch first: then there is something to subtract from.");
    } else this.set("queries", how === "pin" ? [query] : [...rest, query]);
    this.tell(pane);
  }

  /** What the map shows, in words, for whoever cannot see it. */
  tell(pane) {
    const pinned = this.get("queries"), answer = this.cosines(pane.pack);
    if (!pinned.length || !answer.values) return this.say(pinned.length ? "" : "No patch is pinned.");
    const cell = pane.cellOf(pinned.at(-1));
    const words = ({ row, col, cosine }) => `row ${row}, column ${col}, cosine ${cosine.toFixed(2)}`;
    const here = cell ? `Row ${cell[0]}, column ${cell[1]}. ` : "";
    this.say(`${here}Most alike: ${pane.matches(answer).map(words).join("; ")}.`);
  }

  say(words) {
    update(this.live, { textContent: words });
  }

  // ---------------------------------------------------------------- the page

  build(el) {
    style(el.getRootNode());
    this.grid = make("div", { className: "gs-panes" });
    this.live = make("p", { className: "gs-hidden", "aria-live": "polite" });
    this.note = make("p", { className: "gs-note" });
    const named = { className: "gs-view", role: "group", "aria-label": "Patch similarity" };
    this.root = make("div", named, [this.grid, this.toolbar(), this.note, this.live]);
    this.root.dataset.lmSuppressShortcuts = "true"; // of JupyterLab, where B inserts a cell
    el.append(this.root);
    this.resizes = new ResizeObserver(() => this.redraw());
    this.resizes.observe(this.root);
    this.root.addEventListener("keyup", (event) => event.key === this.held && this.hold(null));
    this.root.addEventListener("focusout", () => this.hold(null));
  }

  toolbar() {
    const bar = make("div", { className: "gs-bar", innerHTML: BAR });
    const [map, range, between, opacity, linked, patch] = bar.querySelectorAll("select, input");
    map.onchange = () => this.set("colormap", map.value);
    range.onchange = () => this.set("limits", range.value.split(",").map(Number));
    between.onchange = () => this.set("smooth", between.value === "bilinear");
    opacity.oninput = () => this.set("opacity", Number(opacity.value), false);
    opacity.onchange = () => this.set("opacity", Number(opacity.value));
    linked.onchange = () => this.link(linked.checked);
    patch.onchange = () => this.askTyped(patch.value);
    const [clear, whole, full, share] = bar.querySelectorAll("button");
    clear.onclick = () => this.set("queries", []);
    whole.onclick = () => this.panes.forEach((pane) => pane.wholePicture());
    full.onclick = () => (document.fullscreenElement ? document.exitFullscreen() : this.root.requestFullscreen());
    full.hidden = !document.fullscreenEnabled;
    share.onclick = () => this.share();
    share.hidden = this.host.kind === "notebook"; // which has no address of its own
    this.follow = () => {
      update(map, { value: this.get("colormap") });
      const limits = this.get("limits");
      if (!range.querySelector(`[value="${limits}"]`)) range.append(make("option", { value: `${limits}`, textContent: limits.join(" to ") }));
      update(range, { value: `${limits}` });
      update(between, { value: this.get("smooth") ? "bilinear" : "nearest" });
      update(opacity, { value: `${this.get("opacity")}` });
      update(linked, { checked: !this.panes.some((pane) => pane.spec.camera) });
      update(linked.parentElement, { hidden: this.panes.length < 2 });
    };
    return bar;
  }

  /** Pins the patch whose row and column were typed, in the grid of the first pane. */
  askTyped(text) {
    const pane = this.panes.find((pane) => pane.pack);
    const cell = text.match(/^\s*(\d+)\D+(\d+)\s*$/)?.slice(1).map(Number);
    if (!pane || !cell) return this.remark("A patch is two whole numbers: its row, and its column.");
    try {
      const [x, y] = patchCentre(pane.pack.geometry, ...cell);
      this.set("queries", [{ image: pane.image, x, y, sign: 1 }]);
      this.tell(pane);
    } catch (error) {
      this.remark(error.message);
    }
  }

  async share() {
    const view = `#view=${await encodeView(this.record())}`;
    try {
      await navigator.clipboard.writeText(location.href.split("#")[0] + view);
      this.remark("The address of this view is in the clipboard. It holds no picture.");
    } catch {
      history.replaceState(null, "", view);
      this.remark("This view's address now stands in the address bar.");
    }
  }

  /** What an address has to say: which packs, and the state of the view. No name of a file, no picture. */
  record() {
    const told = (name) => JSON.stringify(this.get(name)) !== JSON.stringify(DEFAULTS[name]);
    const own = Object.keys(DEFAULTS).filter(told);
    const packs = this.packs.filter(Boolean).map((pack) => ({ id: pack.id, ...factsOf(pack) }));
    return { view: "similarity", packs, state: Object.fromEntries(own.map((name) => [name, this.get(name)])) };
  }

  /** A sentence in place of the footnote: for five seconds, until the next one, or not at all when empty. */
  remark(words, lasting = false) {
    this.remarked = words;
    this.say(words);
    clearTimeout(this.fading);
    if (words && !lasting) this.fading = setTimeout(() => this.remark(""), 5000);
    this.redraw();
  }

  arrange() {
    const specs = this.get("panes");
    const wanted = specs.length ? specs : this.packs.map((_, index) => ({ pack: index, show: "similarity" }));
    while (this.panes.length > wanted.length) this.panes.pop().figure.remove();
    wanted.forEach((spec, index) => {
      this.panes[index] ??= new Pane(this);
      this.panes[index].assign(spec, index);
    });
    this.root.style.setProperty("--gs-columns", wanted.length === 4 ? 2 : Math.min(wanted.length || 1, 3));
    this.follow();
    this.redraw();
  }

  /** Changes what a pane shows. */
  change(pane, spec, tell = true) {
    this.set("panes", this.panes.map((other) => (other === pane ? { ...other.spec, ...spec } : other.spec)), tell);
  }

  /** While a key is held: " " shows the photo alone, "b" the other map of a comparison. */
  hold(key) {
    if (this.held === key) return;
    this.held = key;
    this.redraw();
  }

  // ---------------------------------------------------------------- zoom

  /** Points a pane, and with it all that are linked; the host hears of it when the movement rests. */
  aim(pane, camera) {
    const own = pane.spec.camera;
    if (own) pane.spec = { ...pane.spec, camera };
    else this.set("camera", camera, false);
    this.redraw();
    clearTimeout(this.settling);
    this.settling = setTimeout(() => (own ? this.change(pane, {}) : this.set("camera", this.get("camera"))), 200);
  }

  link(linked) {
    if (linked) this.set("camera", this.panes[0].camera);
    this.set("panes", this.panes.map(({ spec, camera }) => ({ ...spec, camera: linked ? undefined : camera })));
  }

  // ---------------------------------------------------------------- frames

  redraw() {
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = null;
      this.draw();
    });
  }

  draw() {
    for (const pane of this.panes) pane.measure();
    for (const pane of this.panes) {
      try {
        pane.draw();
      } catch (error) {
        update(pane.status, { textContent: error.message, hidden: false }); // the other panes live on
      }
    }
    this.foot();
  }

  foot() {
    const facts = this.packs.filter(Boolean).map(({ header }) => header);
    const worst = Math.max(...facts.map(({ error }) => error.cosine_max));
    const under = new Map(); // licence -> names of models; of many, as along a run, the first and the last
    for (const { model } of facts) {
      const licence = model.licence ?? "licence unknown";
      under.set(licence, (under.get(licence) ?? new Set()).add(model.name));
    }
    const licences = [...under].map(([licence, names]) => {
      const all = [...names];
      return `${all.length > 3 ? `${all[0]} … ${all.at(-1)}` : all.join(", ")}: ${licence}`;
    });
    const cut = facts.find(({ reduced }) => reduced);
    const less = cut ? `, ${cut.reduced.from} channels cut to ${cut.dim}` : "";
    const words = [this.engine.name, `cosines within ${worst.toFixed(4)} of fp32${less}`, ...licences].join(" · ");
    update(this.note, { textContent: this.remarked || (facts.length ? words : ""), title: this.engine.why });
  }
}

/** Whether a value can stand in the place of another one. */
function alike(value, initial) {
  const kind = (of) => (Array.isArray(of) ? "array" : typeof of);
  return value !== undefined && (initial === null || kind(value) === kind(initial));
}
