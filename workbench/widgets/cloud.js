/**
 * Patches as points: a lasso in the cloud outlines its patches on the photos, and the other way round.
 *
 *   mount(el, host) -> {destroy(), ready}
 *
 * Positions come as blobs (see cloud.py). The host shares selection ([[pack, row, col]]), query ([pack, row, col]),
 * color_by and camera, and hears of them when a gesture ends, never of hovering. Inside, a patch is [pack, cell].
 */

import { patchCentre } from "./geometry.js";
import { createEngine, openPack, pcaColors, queryVector } from "./pack.js";
import { gradient, lookup } from "./colors.js";
import { Photo } from "./photos.js";
import { gestures, loop, mix, outline, packed, Plane, polygon, ranked, shuffle, swatch, unpacked } from "./points.js";

const QUERY = "#e53935", CHOSEN = "#ff9800";
const OKABE_ITO = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#999999"].map(unpacked);
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const STALE = { selection: ["chosen", "words"], query: ["values"], color_by: ["values", "ink"], camera: ["points"] }; // by what

export function mount(el, host) {
  const { state } = host, about = state.get("about"), ended = new AbortController(), { signal } = ended;
  const engine = createEngine(state.get("engine") ?? "auto");
  const root = page(el, about), part = (name) => root.querySelector(`.gc-${name}`);
  const canvas = part("plane"), menu = part("mode"), way = part("way"), plane = new Plane(canvas);
  const hidden = new Set(), stale = new Set(), stops = [];
  let packs = [], photos = [], chosen = 0, here = false, basis;
  let points, marks, values, inks; // for each pack, of its cells
  let packOf, cellOf, tints, shuffled, order, drawn; // of points
  let hover = null, preview = null, asked = null, before = null, clicked = 0; // patches; preview: hovered on a photo
  let path = [], surface, moving = false, frame, settling, told, back, ink, paper, text;

  // ---- what is there

  async function open() {
    const blobs = await Promise.all(["positions", "cells"].map((name) => host.blob(name)));
    packs = await Promise.all(state.get("pack_ids").map((id) => openPack(host.reader(id))));
    if (signal.aborted) return free();
    const numbers = new Uint16Array(blobs[1].slice().buffer); // pack, row, column of each point
    packOf = numbers.filter((_, i) => i % 3 === 0);
    cellOf = Uint32Array.from(packOf, (pack, i) => numbers[3 * i + 1] * packs[pack].cols + numbers[3 * i + 2]);
    points = packs.map((pack) => new Int32Array(pack.valid.length).fill(-1));
    packOf.forEach((pack, i) => (points[pack][cellOf[i]] = i));
    marks = packs.map((pack) => new Uint8Array(pack.valid.length));
    values = packs.map((pack) => new Float32Array(pack.valid.length).fill(NaN));
    tints = new Int32Array(packOf.length);
    shuffled = shuffle(packOf.length); // none lies on top of all
    plane.put(new Float32Array(blobs[0].slice().buffer), packOf);
    basis = packs.find((pack) => pack.basis);
    menu.options[1].disabled = !basis;
    photos = packs.map(photo);
    keys();
    listen();
    here = true;
    Object.keys(STALE).forEach(heard);
    await Promise.all(photos.map((photo) => photo.open()));
    redraw("photos");
    for (const pack of packs) await pack.load({ first: pack.rows >> 1, signal, onRows: () => redraw("values", "ink") });
  }

  const mode = () => (state.get("color_by") === "pca" && !basis ? "image" : state.get("color_by"));
  const inner = (q) => (q && q[1] < packs[q[0]]?.rows && q[2] < packs[q[0]].cols ? [q[0], q[1] * packs[q[0]].cols + q[2]] : null);
  const outer = ([pack, cell]) => [pack, Math.floor(cell / packs[pack].cols), cell % packs[pack].cols];
  const query = () => inner(state.get("query"));
  const patchOf = (point) => (point < 0 ? null : [packOf[point], cellOf[point]]);
  const pointOf = (patch) => (patch ? points[patch[0]][patch[1]] : -1);

  function tell(name, value) {
    told = value; // and comes back
    state.set(name, value);
    heard(name);
  }

  function heard(name) {
    if (!here) return;
    const value = state.get(name);
    if (name === "selection") {
      if (value !== told) mark(value.map(inner).filter(Boolean), "new");
      chosen = value.length;
    }
    if (name === "camera") [moving, plane.camera] = [false, value.zoom ? { ...value } : { ...plane.whole }];
    if (name === "color_by") menu.value = mode();
    redraw(...STALE[name]);
  }

  function mark(patches, how) {
    if (how === "new") marks.forEach((marks) => marks.fill(0));
    for (const [pack, cell] of patches) marks[pack][cell] = how === "remove" ? 0 : 1;
  }

  const marked = (pack) => [...marks[pack].keys()].filter((cell) => marks[pack][cell]).map((cell) => outer([pack, cell]));

  function select(patches, how) {
    mark(patches, how);
    tell("selection", packs.flatMap((_, pack) => marked(pack)));
  }

  /** Makes a patch the query; the same again lets go of it. */
  const ask = (patch) => tell("query", patch && `${patch}` !== `${query()}` ? outer(patch) : null);

  /** Esc: first the lasso, then the selection, then the query. */
  function letGo() {
    if (path.length) stops.forEach((stop) => stop());
    else if (chosen) select([], "new");
    else ask(null);
  }

  // ---- from state to pixels

  function redraw(...names) {
    names.forEach((name) => stale.add(name));
    frame ??= requestAnimationFrame(() => {
      frame = null;
      if (here && canvas.clientWidth) draw();
      else if (here && !signal.aborted) setTimeout(redraw, 250); // hidden, as by JupyterLab changing its theme
    });
  }

  function draw() {
    const did = (name) => stale.delete(name);
    if (did("values")) compare();
    if (did("ink")) (paint(), stale.add("chosen"));
    if (did("chosen")) (tint(), stale.add("points").add("photos"));
    if (did("points")) plane.stamp(drawn, tints, back, mix(back, ink, chosen ? 40 : 110), moving || preview);
    const context = plane.show();
    for (const [patch, color, label] of [[asked, QUERY, "query"], [hover, text, ""]]) {
      if (pointOf(patch) < 0) continue;
      const [x, y] = plane.placeOf(pointOf(patch));
      context.beginPath();
      context.arc(x, y, plane.radius + 4, 0, 7);
      outline(context, color, paper, label, x + plane.radius + 8, y + 4);
    }
    if (surface === canvas) loop(context, path, text);
    const all = did("photos"), colored = mode() === "pca" || (mode() === "cosine" && asked);
    photos.forEach((photo, i) => {
      if (all) photo.drawBelow(colored ? inks[i] : null, chosen ? marks[i] : null, CHOSEN);
      const cell = (patch) => (patch?.[0] === i ? patch[1] : null);
      photo.drawAbove([[cell(asked), QUERY, "query"], [cell(hover), "#fff", ""]], surface === photo.above ? path : []);
    });
    if (all) legend();
    if (did("words")) describe();
    const loading = packs.find((pack) => !pack.complete);
    const hint = loading ? `Features are coming: ${loading.rowsHere} of ${loading.rows} rows.` : "Hover a point or a patch; click to ask about it.";
    part("read").textContent = hover ? sentence(hover) : hint;
  }

  /** Cosines of all patches to the query, or to the patch of a photo under the pointer. */
  function compare() {
    asked = (mode() === "cosine" && preview) || query();
    const unit = asked && packs[asked[0]].unit(...outer(asked).slice(1));
    packs.forEach((pack, i) => (unit ? engine.cosines(pack, queryVector([unit]), values[i]) : values[i].fill(NaN)));
    if (mode() === "cosine") stale.add("ink");
  }

  /** The colour of every cell, and the order of the points: the most alike last, on top. */
  function paint() {
    const colors = lookup("viridis"), table = Int32Array.from({ length: 256 }, (_, i) => packed(...colors.subarray(3 * i, 3 * i + 3)));
    const grey = mix(back, ink, 90), by = mode(), level = (value) => (value > 0 ? (value * 255 + 0.5) | 0 : 0);
    inks = packs.map((pack, i) => {
      if (by === "pca") return new Int32Array(pcaColors(engine, pack, basis.basis).buffer).map((color) => color || grey);
      const inks = new Int32Array(pack.valid.length).fill(by === "image" ? OKABE_ITO[i % 8] : grey);
      if (by === "cosine") values[i].forEach((value, cell) => value === value && (inks[cell] = table[level(value)]));
      return inks;
    });
    order = by === "cosine" ? ranked(shuffled, packOf.map((pack, i) => level(values[pack][cellOf[i]]))) : shuffled;
  }

  /** The colour of every point: selected ones on top, the others then faded. */
  function tint() {
    drawn = new Uint32Array(order.length);
    let count = 0;
    for (const front of chosen ? [0, 1] : [0]) {
      for (let n = 0; n < order.length; n++) {
        const i = order[n], pack = packOf[i], cell = cellOf[i];
        if (marks[pack][cell] !== front || hidden.has(pack)) continue;
        tints[i] = chosen && !front ? mix(back, inks[pack][cell], 46) : inks[pack][cell];
        drawn[count++] = i;
      }
    }
    drawn = drawn.subarray(0, count);
  }

  // ---- pointer and keys

  const how = (event) => (event.altKey ? "remove" : event.shiftKey ? "add" : way.value);

  /** Points at a patch; on a photo it is asked about as well, for as long as it is pointed at. */
  function look(patch, onPhoto) {
    const old = preview;
    hover = patch;
    preview = onPhoto ? patch : null;
    redraw(...(mode() === "cosine" && `${old}` !== `${preview}` ? ["values"] : []));
  }

  function click(patch, event) {
    if (patch && how(event) !== "new") select([patch], how(event));
    else if (patch) ask(patch);
  }

  function move(act) {
    return (...by) => {
      plane[act](...by);
      moving = true;
      redraw("points");
      clearTimeout(settling);
      settling = setTimeout(() => tell("camera", { ...plane.camera }), 250);
    };
  }

  const pan = move("pan"), zoom = move("zoom");

  function reset() {
    clearTimeout(settling);
    tell("camera", {});
  }

  /** Keys of cloud and photos; `step` answers the arrows. */
  function key(event, step, more = {}) {
    const toggle = () => hover && select([hover], marks[hover[0]][hover[1]] ? "remove" : "add");
    const acts = { Enter: () => hover && ask(hover), s: toggle, Escape: letGo, ...more };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (ARROWS[event.key]) step(ARROWS[event.key], event.shiftKey);
    else if (acts[event.key]) acts[event.key]();
    else return;
    event.preventDefault();
  }

  function drawing(target, inside, more) {
    const trace = (grown) => ([path, surface] = [grown, target], look(null));
    stops.push(gestures(target, { trace, lasso: (path, event) => select(inside(polygon(path)), how(event)), ...more }, signal));
  }

  function listen() {
    const on = (target, name, act) => target.addEventListener(name, act, { signal });
    const walk = (step) => {
      const from = pointOf(hover ?? query()), next = from < 0 ? plane.near(plane.middle) : plane.next(from, step);
      look(patchOf(next < 0 ? from : next));
    };
    on(canvas, "keydown", (event) => key(event, (step, shift) => (shift ? pan(-60 * step[0], -60 * step[1]) : walk(step)),
      { "+": () => zoom(1.3), "=": () => zoom(1.3), "-": () => zoom(1 / 1.3), 0: reset }));
    on(canvas, "dblclick", () => {
      if (`${state.get("query")}` !== `${before}`) tell("query", before); // its first click was no question
      reset();
    });
    on(menu, "change", () => tell("color_by", menu.value));
    on(part("reset"), "click", reset);
    on(part("clear"), "click", letGo);
    drawing(canvas, (holds) => plane.inside(holds).map(patchOf), {
      hover: (place) => look(place && patchOf(plane.near(place, 14))),
      click(place, event) {
        if (event.timeStamp > clicked + 400) before = state.get("query");
        clicked = event.timeStamp;
        click(patchOf(plane.near(place, event.pointerType === "touch" ? 28 : 14)), event);
      },
      pan,
      zoom,
    });
  }

  // ---- photos, words

  function photo(pack, index) {
    const photo = new Photo(pack, about.names[index]), { above } = photo;
    const patch = (cell) => (cell === null ? null : [index, cell]);
    above.addEventListener("keydown", (event) => key(event, (step, shift) => {
      const cell = photo.step(hover?.[0] === index ? hover[1] : null, step.map((by) => by * (shift ? 10 : 1)));
      if (cell !== null) look([index, cell], true);
    }));
    drawing(above, (holds) => photo.inside(holds).map(patch), {
      hover: (place) => look(place && patch(photo.cellAt(place)), true),
      click: (place, event) => click(patch(photo.cellAt(place)), event),
    });
    part("album").append(photo.figure);
    return photo;
  }

  /** Which marker is which photo; a click hides it. */
  function keys() {
    part("keys").replaceChildren(...packs.map((_, index) => {
      const key = make("button", { type: "button", title: "Show or hide", ariaPressed: true });
      const count = points[index].filter((point) => point >= 0).length.toLocaleString("en");
      key.append(make("canvas"), `${about.names[index]} (${count})`);
      key.onclick = () => {
        key.ariaPressed = hidden.delete(index) || !hidden.add(index);
        redraw("chosen");
      };
      return key;
    }));
  }

  function legend() {
    [...part("keys").children].forEach((key, i) => swatch(key.firstChild, i, mode() === "image" ? OKABE_ITO[i % 8] : ink));
    part("scale").hidden = mode() !== "cosine";
    part("ends").textContent = asked ? "cosine to the query" : "no query yet: click a patch";
    part("share").textContent = mode() === "pca" ? shares() : "";
  }

  function describe() {
    const parts = packs.flatMap((_, pack) => {
      const all = marked(pack), columns = all.map((patch) => patch[2]).sort((a, b) => a - b); // rows are in order
      return all.length ? [`${all.length} in ${about.names[pack]} (rows ${all[0][1]} to ${all.at(-1)[1]}, columns ${columns[0]} to ${columns.at(-1)})`] : [];
    });
    const words = parts.length ? `Selected: ${parts.join("; ")}.` : "Nothing is selected: drag around points or over a photo.";
    part("words").textContent = words;
    canvas.ariaLabel = `${about.caption}, of ${about.names.join(", ")}. ${words}`;
  }

  function shares() {
    const [red, green, blue] = basis.header.basis.explained.map((share) => `${Math.round(100 * share)} %`);
    return `Red ${red}, green ${green}, blue ${blue} of the variance: the basis in ${about.names[packs.indexOf(basis)]}, for all photos.`;
  }

  function sentence(patch) {
    const [pack, row, column] = outer(patch), value = values[pack][patch[1]];
    const [x, y] = patchCentre(packs[pack].geometry, row, column).map(Math.floor);
    const rest = (isNaN(value) ? "" : ` · cosine ${value.toFixed(3)}`) + (pointOf(patch) < 0 ? " · not in the cloud" : "");
    return `${about.names[pack]} · row ${row}, column ${column} · pixel ${x}, ${y}${rest}`;
  }

  function theme() {
    const old = paper;
    paper = getComputedStyle(canvas).backgroundColor;
    text = getComputedStyle(root).color;
    [back, ink] = [paper, text].map((color) => packed(...color.match(/\d+/g)));
    if (paper !== old) redraw("ink");
  }

  function free() {
    photos.forEach((photo) => photo.close());
    packs.forEach((pack) => (engine.release(pack), pack.revoke()));
  }

  theme();
  const sizes = new ResizeObserver(() => redraw("points", "photos")), themes = new MutationObserver(theme);
  sizes.observe(root);
  for (const node of [document.documentElement, document.body]) themes.observe(node, { attributes: true });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", theme, { signal });
  const offs = Object.keys(STALE).map((name) => state.on(name, () => heard(name)));
  const ready = open().catch((error) => signal.aborted || (part("words").textContent = error.message));
  const destroy = () => {
    ended.abort();
    cancelAnimationFrame(frame);
    clearTimeout(settling);
    for (const end of [() => sizes.disconnect(), () => themes.disconnect(), ...offs, free, () => root.remove()]) end();
  };
  return { ready, destroy };
}

const make = (tag, properties = {}) => Object.assign(document.createElement(tag), properties);

function page(el, about) {
  const root = make("div", { className: "gc-cloud", role: "group", ariaLabel: "Patch cloud" });
  root.dataset.lmSuppressShortcuts = "true"; // JupyterLab would take the keys
  root.innerHTML = `<style>${STYLE}</style>
    <div class="gc-bar">
      <label>Colour by <select class="gc-mode"><option value="image">photo<option value="pca">PCA colours<option value="cosine">cosine to the query</select></label>
      <label>Lasso <select class="gc-way"><option value="new">replaces<option value="add">adds (Shift)<option value="remove">removes (Alt)</select></label>
      <button type="button" class="gc-clear" title="The selection, then the query (Esc)">Clear</button>
      <button type="button" class="gc-reset" title="All points (0, or double click)">Reset view</button>
    </div>
    <div class="gc-body">
      <div><canvas class="gc-plane" tabindex="0" role="application" aria-roledescription="scatter plot"></canvas>
        <div class="gc-keys"></div>
        <div class="gc-scale" hidden><div style="background: ${gradient("viridis")}"></div><span>≤ 0</span><span class="gc-ends"></span><span>1</span></div>
        <p class="gc-share"></p><p class="gc-read"></p><p class="gc-words" aria-live="polite">The points are coming.</p></div>
      <div class="gc-album"></div>
    </div>
    <p class="gc-caption"></p><details><summary>Keys and gestures</summary><p>${HELP}</p></details>`;
  root.querySelector(".gc-caption").textContent = about.caption;
  el.append(root);
  return root;
}

const HELP = "Drag around points or over a photo: select; Shift adds, Alt removes, Esc lets go. Click: query. Wheel, + and −: zoom. Space or right button and drag: move. Double click, 0: all points. Arrows: next point or patch (Shift: move the view, ten patches). Enter: query. S: select. Touch: tap, drag, two fingers.";

const STYLE = `
.gc-cloud { color-scheme: light dark; --gc-soft: light-dark(#6b7280, #9ca3af); --gc-line: light-dark(#d1d5db, #4b5563);
  container-type: inline-size; padding: 1px; color: light-dark(#1f2937, #e5e7eb); font: 13px/1.4 system-ui, sans-serif; font-variant-numeric: tabular-nums;
  p { margin: 4px 0 0; }
  .gc-read { margin-top: 8px; min-height: 1.4em; }
  .gc-bar, .gc-bar label, .gc-keys, .gc-keys button { display: flex; flex-wrap: wrap; gap: 6px; align-items: center; }
  .gc-bar { gap: 6px 16px; margin-bottom: 8px; }
  .gc-bar label, .gc-scale, .gc-share, .gc-words, .gc-caption, figcaption, details { color: var(--gc-soft); font-size: 12px; }
  select, button { font: inherit; color: light-dark(#1f2937, #e5e7eb); background: light-dark(#fff, #1f2937); border: 1px solid var(--gc-line); border-radius: 4px; padding: 2px 7px; }
  :focus-visible { outline: 2px solid #2563eb; outline-offset: 1px; }
  .gc-body { display: grid; grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); gap: 14px; }
  canvas { display: block; width: 100%; cursor: crosshair; touch-action: none; }
  .gc-plane { height: clamp(260px, 50cqw, 560px); background: light-dark(#fff, #111827); box-shadow: 0 0 0 1px var(--gc-line); }
  .gc-keys { margin-top: 6px; button { border-color: transparent; background: none; padding: 1px 6px 1px 0; } }
  .gc-keys button[aria-pressed=false] { opacity: 0.5; text-decoration: line-through; }
  .gc-keys canvas { width: 14px; height: 14px; }
  .gc-scale:not([hidden]) { display: flex; flex-wrap: wrap; justify-content: space-between; margin-top: 6px; div { flex-basis: 100%; height: 8px; border-radius: 4px; } }
  .gc-album { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 170px), 1fr)); gap: 8px; align-content: start; max-height: 680px; overflow-y: auto; }
  figure { margin: 0; min-width: 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
  @container (min-width: 641px) { .gc-album:not(:has(figure:nth-child(3))) { grid-template-columns: 1fr; } }
  @container (max-width: 640px) { .gc-body { grid-template-columns: 1fr; } .gc-plane { height: 80cqw; } .gc-album { grid-template-columns: 1fr 1fr; max-height: none; } select, button { min-height: 32px; } }
}
.dark .gc-cloud, .vscode-dark .gc-cloud, [data-jp-theme-light="false"] .gc-cloud { color-scheme: dark; }
[data-jp-theme-light="true"] .gc-cloud, .vscode-light .gc-cloud, .gradio-container:not(.dark *) .gc-cloud { color-scheme: light; }
`;
