/**
 * The token X-ray: one photograph's lengths of patches, and how alike each patch is to CLS and to every register; with
 * what depends on the place alone, or without it.
 *
 *   mount(el, host) -> view with destroy()
 *
 * `host` is described in loader.js. Its packs are the map as it is and, if there is a second one, without position.
 */

import { displayedToPixel, gridBox, patchToPolygon, pixelToDisplayed, pixelToPatch } from "./geometry.js";
import { COLORMAPS, gradient } from "./colors.js";
import { Layer } from "./heat.js";
import { openPack } from "./pack.js";
import { COLORS, make, style, update } from "./page.js";

const DEFAULTS = {
  stripped: false, // whether the map without position is shown
  share: null, // of the variance that position took
  channels: [], // [[channel, share of the energy]], largest first
  colormap: "viridis",
};
const LENGTHS = "magma"; // colours of lengths
const OUTLIER = 5 * 1.4826; // median absolute deviations above the median
const PANE = `<figcaption><span></span></figcaption><div class="gs-stage"><canvas></canvas></div>
  <div class="gs-legend"><div class="gs-gradient"></div><div class="gs-numbers"><span></span><span></span><span></span></div></div>`;
const BAR = `
  <label><input type="checkbox"> Without position <span></span></label>
  <label>Colours <select>${COLORMAPS.map((name) => `<option>${name}</option>`).join("")}</select></label>`;

export function mount(el, host) {
  return new XrayView(el, host);
}

class XrayView {
  constructor(el, host) {
    this.host = host;
    this.packs = [];
    this.hover = null; // cell
    this.build(el);
    this.unlisten = ["pack_ids", ...Object.keys(DEFAULTS)].map((name) => host.state.on(name, () => this.heard(name)));
    this.opening = this.open();
  }

  destroy() {
    this.gone = true;
    cancelAnimationFrame(this.waiting);
    this.resizes.disconnect();
    this.unlisten.forEach((off) => off());
    for (const pack of this.packs) pack && (pack.revoke(), pack.photo?.close());
    this.root.remove();
  }

  get(name) {
    return this.host.state.get(name) ?? DEFAULTS[name];
  }

  set(name, value) {
    this.host.state.set(name, value);
    this.heard(name);
  }

  heard(name) {
    if (name === "pack_ids") this.opening = this.open();
    this.follow();
    this.redraw();
  }

  async open() {
    const ids = this.get("pack_ids") ?? [];
    try {
      const opened = await Promise.all(ids.map((id) => this.openOne(id)));
      if (this.gone) return;
      this.packs = opened;
      this.arrange();
    } catch (error) {
      update(this.words, { textContent: error.message });
    }
  }

  async openOne(id) {
    const pack = await openPack(this.host.reader(id));
    pack.photo = pack.preview && (await createImageBitmap(await (await fetch(pack.preview)).blob()));
    await pack.load();
    pack.maps = mapsOf(pack);
    return pack;
  }

  get shown() {
    return this.packs[this.get("stripped") && this.packs[1] ? 1 : 0] ?? null;
  }

  build(el) {
    style(el.getRootNode());
    this.bar = make("div", { className: "gs-bar", innerHTML: BAR });
    this.strip = this.bar.querySelector("input");
    this.share = this.bar.querySelector("span");
    this.colors = this.bar.querySelector("select");
    this.strip.onchange = () => this.set("stripped", this.strip.checked);
    this.colors.onchange = () => this.set("colormap", this.colors.value);
    this.grid = make("div", { className: "gs-panes" });
    this.grid.style.setProperty("--gs-columns", 4);
    this.words = make("p", { className: "gs-read", "aria-live": "polite" });
    this.list = make("ol", { "aria-label": "Channels that carry most energy" });
    const named = { className: "gs-view gs-xray", role: "group", "aria-label": "Token X-ray" };
    this.root = make("div", named, [this.bar, this.grid, this.words, this.list]);
    el.append(this.root);
    this.resizes = new ResizeObserver(() => this.redraw());
    this.resizes.observe(this.root);
  }

  /** A pane for the photo and for each map. */
  arrange() {
    const { shown } = this, { width, height } = shown.geometry;
    this.panes = [{ title: "Photo", map: null }, ...shown.maps.map(({ title }, map) => ({ title, map }))].map((pane) => {
      const figure = make("figure", { innerHTML: PANE }), canvas = figure.querySelector("canvas");
      figure.style.setProperty("--gs-aspect", width / height);
      update(figure.querySelector("figcaption span"), { textContent: pane.title });
      update(figure.querySelector(".gs-legend"), { hidden: pane.map === null });
      canvas.onpointermove = (event) => this.point(this.cellAt(canvas, event));
      canvas.onpointerleave = () => this.point(null);
      return { ...pane, figure, canvas, layer: new Layer() };
    });
    this.grid.replaceChildren(...this.panes.map(({ figure }) => figure));
    const lines = this.get("channels").map(([channel, share]) => `channel ${channel}: ${(100 * share).toFixed(1)} % of the energy`);
    this.list.replaceChildren(...lines.map((textContent) => make("li", { textContent })));
    this.follow();
    this.redraw();
  }

  follow() {
    const share = this.get("share");
    update(this.strip, { checked: this.get("stripped") });
    update(this.strip.parentElement, { hidden: this.packs.length < 2 });
    update(this.share, { textContent: share === null ? "" : `Position explains ${(100 * share).toFixed(1)} % of the variance between patches.` });
    update(this.colors, { value: this.get("colormap") });
  }

  boxOf(canvas) {
    const { width, height } = this.shown.geometry;
    return { box_width: canvas.clientWidth || 1, box_height: canvas.clientHeight || 1, width, height, fit: "contain" };
  }

  cellAt(canvas, { clientX, clientY }) {
    const { left, top, width, height } = canvas.getBoundingClientRect(), box = this.boxOf(canvas);
    const pixel = displayedToPixel(((clientX - left) / width) * box.box_width, ((clientY - top) / height) * box.box_height, box);
    return pixel && pixelToPatch(this.shown.geometry, ...pixel);
  }

  point(cell) {
    if (`${this.hover}` === `${cell}`) return;
    this.hover = cell;
    this.redraw();
  }

  redraw() {
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = null;
      if (this.panes && this.shown && !this.gone) this.draw();
    });
  }

  draw() {
    const pack = this.shown, ratio = window.devicePixelRatio || 1;
    for (const { map, figure, canvas, layer } of this.panes) {
      const box = this.boxOf(canvas), context = canvas.getContext("2d");
      const place = (x, y) => pixelToDisplayed(x, y, box);
      update(canvas, { width: Math.round(box.box_width * ratio), height: Math.round(box.box_height * ratio) });
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      context.clearRect(0, 0, box.box_width, box.box_height);
      const over = ([x, y, x2, y2], picture, smooth) => {
        const [a, b] = place(x, y), [c, d] = place(x2, y2);
        context.imageSmoothingEnabled = smooth;
        context.drawImage(picture, a, b, c - a, d - b);
      };
      if (pack.photo) over([0, 0, pack.geometry.width, pack.geometry.height], pack.photo, true);
      const frame = ([row, col], color, weight) => {
        const [first, , last] = patchToPolygon(pack.geometry, row, col), [x, y] = place(...first), [x2, y2] = place(...last);
        for (const [strokeStyle, lineWidth] of [["rgba(0,0,0,.7)", weight + 2], [color, weight]]) {
          Object.assign(context, { strokeStyle, lineWidth });
          context.strokeRect(x, y, x2 - x, y2 - y);
        }
      };
      if (map !== null) {
        const { values, limits, outliers } = pack.maps[map], colormap = outliers ? LENGTHS : this.get("colormap");
        layer.heat(values, pack, { colormap, limits, opacity: 0.85, threshold: null, smooth: false });
        over(gridBox(pack.geometry), layer.canvas, false);
        for (const cell of outliers ?? []) frame([Math.floor(cell / pack.cols), cell % pack.cols], COLORS.match, 1.5);
        const { background } = figure.querySelector(".gs-gradient").style;
        if (background !== gradient(colormap)) figure.querySelector(".gs-gradient").style.background = gradient(colormap);
        const middle = outliers ? `length · ${outliers.length} outliers` : "cosine";
        const numbers = [limits[0].toFixed(2), middle, limits[1].toFixed(2)];
        figure.querySelectorAll(".gs-numbers span").forEach((span, at) => update(span, { textContent: numbers[at] }));
      }
      if (this.hover) frame(this.hover, COLORS.hover, 2);
    }
    this.tell();
  }

  tell() {
    const pack = this.shown, { hover } = this;
    if (!hover) return update(this.words, { textContent: "Hover a patch." });
    const at = hover[0] * pack.cols + hover[1];
    const told = pack.maps.map(({ title, values }) => `${title} ${values[at] === values[at] ? values[at].toFixed(3) : "–"}`);
    update(this.words, { textContent: [`row ${hover[0]}, col ${hover[1]}`, ...told].join(" · ") });
  }
}

/** What of a pack can be shown: lengths with their outliers, and cosines to CLS and to each register. */
export function mapsOf(pack) {
  const { norms, valid, blocks, dim } = pack;
  const here = [...norms.keys()].filter((cell) => valid[cell]), lengths = here.map((cell) => norms[cell]);
  const middle = median(lengths), spread = median(lengths.map((length) => Math.abs(length - middle)));
  const outliers = here.filter((cell) => norms[cell] > middle + OUTLIER * spread);
  const ends = [Math.min(...lengths), Math.max(...lengths)];
  const values = Float32Array.from(norms, (length, cell) => (valid[cell] ? length : NaN));
  const maps = [{ title: "Length", values, limits: ends[0] < ends[1] ? ends : [ends[0], ends[0] + 1], outliers }];
  const tokens = [["CLS", blocks.cls]];
  const count = (blocks.registers?.length ?? 0) / dim;
  for (let at = 0; at < count; at++) tokens.push([`Register ${at + 1}`, blocks.registers.subarray(at * dim, (at + 1) * dim)]);
  for (const [title, token] of tokens) {
    if (!token || token.some((value) => value !== value)) continue;
    maps.push({ title, values: cosines(pack, token), limits: [-1, 1] });
  }
  return maps;
}

function cosines({ rows, cols, dim, codes, lengths, valid }, token) {
  const length = Math.hypot(...token) || 1;
  return Float32Array.from({ length: rows * cols }, (_, cell) => {
    if (!valid[cell]) return NaN;
    let sum = 0;
    for (let d = 0, at = cell * dim; d < dim; d++) sum += codes[at + d] * token[d];
    return lengths[cell] ? sum / (lengths[cell] * length) : 0;
  });
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[(sorted.length - 1) >> 1];
}
