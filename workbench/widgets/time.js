/**
 * A photograph through the checkpoints of a run: a slider over time, query and colours held fixed, and under it a
 * ribbon of what was measured at each checkpoint.
 *
 *   mount(el, host) -> view with destroy()
 *
 * The map itself is the similarity view, which is lent the packs around the slider. `host` is described in loader.js.
 */

import { mount as mountSimilarity } from "./similarity.js";
import { Ribbon } from "./ribbon.js";
import { make, style, update } from "./page.js";

const DEFAULTS = {
  moments: [], // [{run, step}]
  images: [], // names of the probe images
  curves: [], // see ribbon.js
  time: 0, // number of a moment
  image: 0,
  show: "similarity",
  against: null, // number of the moment to compare with; or the name of a run: its moment of the step nearest to now
  compare: "beside", // how: beside, swipe, difference, rank
  metric: "", // name of the curve that best and worst speak of
};
const AROUND = 3; // moments on either side that are brought before they are asked for
const PACE = 600; // ms a moment while it plays
const COMPARE = { beside: "side by side", swipe: "swipe", difference: "difference", rank: "rank difference" };
const SHOWS = { similarity: "Similarity", pca: "PCA colours", photo: "Photo" };
const KEYS =
  "Comma and full stop: one checkpoint back, one on. Home and End: the first, the last. P: play. Hold G: the " +
  "checkpoint before. The keys of the map work as ever.";

const options = (entries) => entries.map(([value, text]) => `<option value="${value}">${text}</option>`).join("");
const BAR = `
  <label>Image <select></select></label>
  <label>Show <select>${options(Object.entries(SHOWS))}</select></label>
  <label>Compare with <select></select></label>
  <label>by <select>${options(Object.entries(COMPARE))}</select></label>
  <span class="gs-gap"></span>
  <button type="button" title="The checkpoint with the best value of the marked curve">Best</button>
  <button type="button" title="The checkpoint with the worst value of the marked curve">Worst</button>`;

export function mount(el, host) {
  return new TimeView(el, host);
}

/** What an entry of the menu of comparisons stands for. */
function chosenOf(value) {
  return value === "" ? null : value.startsWith("run ") ? value.slice(4) : Number(value);
}

class TimeView {
  constructor(el, host) {
    this.host = host;
    this.drafts = {}; // values that are not yet told to the host
    this.ids = []; // packs that the map is lent
    this.listeners = {}; // of the map, by name of what it listens to
    this.ghost = false;
    this.build(el);
    this.unlisten = Object.keys(DEFAULTS).concat("pack_ids").map((name) => host.state.on(name, () => this.heard(name)));
    this.inner = mountSimilarity(this.stage, this.lent());
    this.fill();
    this.follow();
    this.bring();
  }

  destroy() {
    clearInterval(this.playing);
    clearTimeout(this.settling);
    this.gone = true;
    this.unlisten.forEach((off) => off());
    this.ribbon.resizes?.disconnect();
    this.inner.destroy();
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
    if (["moments", "images", "curves", "pack_ids"].includes(name)) this.fill();
    if (name === "time") delete this.drafts.time;
    this.follow();
    this.tell("panes");
    this.bring();
  }

  // ---------------------------------------------------------------- what the map is lent

  /** The host of the map: its packs and panes follow the slider, the rest is the host's own. */
  lent() {
    const own = { pack_ids: () => this.ids, panes: () => this.panes() };
    const { state } = this.host;
    return {
      kind: "notebook", // which has no link of its own to copy
      address: "",
      reader: (id) => this.host.reader(id),
      state: {
        get: (name) => (name in own ? own[name]() : state.get(name)),
        set: (name, value) => (name in own ? this.taken(name, value) : state.set(name, value)),
        on: (name, callback) => {
          if (!(name in own)) return state.on(name, callback);
          this.listeners[name] = callback;
          return () => delete this.listeners[name];
        },
      },
    };
  }

  tell(name) {
    this.listeners[name]?.();
  }

  /** The map changed a pane: the place of the divider is kept, the rest is the slider's. */
  taken(name, panes) {
    if (name === "panes") this.split = panes.at(-1)?.split ?? this.split;
  }

  idAt(time, image = this.get("image")) {
    return this.get("pack_ids")?.[time * this.get("images").length + image];
  }

  /** Where the map has the pack of a moment, or what stands in its place while it is coming. */
  slotOf(time, former) {
    const id = this.idAt(time), here = this.inner?.packs.findIndex((pack) => pack?.id === id) ?? -1;
    if (here >= 0) return { slot: here, id };
    const failed = this.ids.indexOf(id);
    if (failed >= 0 && this.inner?.failures[failed]) return { slot: failed, id };
    const kept = this.inner?.packs.findIndex((pack) => pack && pack.id === former) ?? -1;
    return { slot: Math.max(kept, 0), id: former };
  }

  panes() {
    const time = Math.max(this.get("time") - (this.ghost ? 1 : 0), 0), against = this.against;
    const now = this.slotOf(time, this.shown);
    this.shown = now.id;
    const pane = { pack: now.slot, show: this.get("show") };
    if (against === null || !(against in this.get("moments"))) return [pane];
    const then = this.slotOf(against, this.compared), how = this.get("compare");
    this.compared = then.id;
    if (how === "beside") return [{ ...pane, pack: then.slot }, pane];
    return [{ ...pane, show: how, other: then.slot, split: this.split ?? 0.5 }];
  }

  /** The moment that is compared with, as a number. */
  get against() {
    const against = this.get("against"), moments = this.get("moments");
    if (typeof against !== "string") return against;
    const away = (at) => Math.abs(moments[at].step - moments[this.get("time")].step);
    const theirs = [...moments.keys()].filter((at) => moments[at].run === against);
    return theirs.length ? theirs.reduce((best, at) => (away(at) < away(best) ? at : best)) : null;
  }

  /** Packs that should be here: those on show, then those around. */
  get wanted() {
    const time = this.get("time"), against = this.against, count = this.get("moments").length;
    const times = [time, ...(against === null ? [] : [against])];
    for (let away = 1; away <= AROUND; away++) times.push(time + away, time - away);
    const ids = times.filter((at) => at >= 0 && at < count).map((at) => this.idAt(at)).filter(Boolean);
    return [...new Set(ids)];
  }

  /** Lends the map what is on show and then what lies around it; one thing at a time, however fast the slider moves. */
  async bring() {
    if (this.bringing) return;
    this.bringing = true;
    const here = (id) => this.ids.includes(id) && (this.inner.packs.some((pack) => pack?.id === id) || this.inner.failures[this.ids.indexOf(id)]);
    while (!this.gone) {
      const wanted = this.wanted, shown = wanted.slice(0, this.against === null ? 1 : 2);
      const next = !shown.every(here) ? [...new Set([...shown, ...this.ids.filter((id) => wanted.includes(id))])] : wanted;
      if (next.every(here) && next === wanted) break;
      this.ids = next;
      this.tell("pack_ids");
      await this.inner.opening;
    }
    this.bringing = false;
    this.tell("panes");
  }

  // ---------------------------------------------------------------- the page

  build(el) {
    style(el.getRootNode());
    this.stage = make("div");
    this.empty = make("p", { textContent: "There are no checkpoints with probes yet." });
    this.bar = make("div", { className: "gs-bar", innerHTML: BAR });
    [this.imageMenu, this.showMenu, this.againstMenu, this.compareMenu] = this.bar.querySelectorAll("select");
    const [best, worst] = this.bar.querySelectorAll("button");
    this.imageMenu.onchange = () => this.set("image", Number(this.imageMenu.value));
    this.showMenu.onchange = () => this.set("show", this.showMenu.value);
    this.againstMenu.onchange = () => this.set("against", chosenOf(this.againstMenu.value));
    this.compareMenu.onchange = () => this.set("compare", this.compareMenu.value);
    best.onclick = () => this.jump(1);
    worst.onclick = () => this.jump(-1);
    this.ribbon = new Ribbon({
      go: (time, tell) => this.go(time, tell),
      mark: (name) => this.set("metric", name),
      play: () => this.play(),
    });
    const help = make("details", { innerHTML: `<summary>Keys of the slider</summary><p>${KEYS}</p>` });
    const named = { className: "gs-view gs-time", role: "group", "aria-label": "Checkpoints of a run" };
    this.body = make("div", { className: "gs-time-body" }, [this.ribbon.head, this.stage, this.ribbon.root]);
    this.root = make("div", named, [this.empty, this.bar, this.body, help]);
    this.root.dataset.lmSuppressShortcuts = "true";
    this.root.addEventListener("keydown", (event) => this.key(event));
    this.root.addEventListener("keyup", (event) => event.key === "g" && this.haunt(false));
    this.root.addEventListener("focusout", () => this.haunt(false));
    el.append(this.root);
  }

  /** Menus and curves, when the series changed. */
  fill() {
    const titles = this.titles;
    for (const part of [this.bar, this.body]) update(part, { hidden: !titles.length });
    update(this.empty, { hidden: titles.length > 0 });
    const images = this.get("images").map((name, at) => make("option", { value: `${at}`, textContent: name }));
    this.imageMenu.replaceChildren(...images);
    const moments = titles.map((title, at) => make("option", { value: `${at}`, textContent: title }));
    const runs = [...new Set(this.get("moments").map(({ run }) => run))];
    const others = runs.length > 1 ? runs.map((run) => make("option", { value: `run ${run}`, textContent: `${run}, same step` })) : [];
    this.againstMenu.replaceChildren(make("option", { value: "", textContent: "nothing" }), ...others, ...moments);
    this.ribbon.fill(this.get("moments"), this.get("curves"), titles);
  }

  /** What each moment is called: its step, and its run where there are several. */
  get titles() {
    const moments = this.get("moments"), several = new Set(moments.map(({ run }) => run)).size > 1;
    return moments.map(({ run, step }) => `${several ? `${run}, ` : ""}step ${step}`);
  }

  /** Everything that says where the slider stands. */
  follow() {
    const against = this.get("against"), compares = this.against !== null;
    update(this.imageMenu, { value: `${this.get("image")}` });
    update(this.imageMenu.parentElement, { hidden: this.get("images").length < 2 });
    update(this.showMenu, { value: this.get("show") });
    update(this.againstMenu, { value: !compares ? "" : typeof against === "string" ? `run ${against}` : `${against}` });
    update(this.compareMenu, { value: this.get("compare") });
    update(this.compareMenu.parentElement, { hidden: !compares });
    this.body.classList.toggle("gs-wide", compares && this.get("compare") === "beside"); // two maps need the room
    this.ribbon.follow(this.get("time"), this.against, this.marked);
  }

  get marked() {
    const curves = this.get("curves"), wanted = this.get("metric");
    return curves.some(({ name }) => name === wanted) ? wanted : curves[0]?.name;
  }

  /** Moves the slider; the host hears of it when the movement rests. */
  go(time, tell = true) {
    const last = this.get("moments").length - 1;
    const moved = Math.min(Math.max(Math.round(time), 0), Math.max(last, 0));
    clearTimeout(this.settling);
    if (tell) return this.set("time", moved);
    this.drafts.time = moved;
    this.settling = setTimeout(() => this.set("time", moved), 200);
    this.follow();
    this.tell("panes");
    this.bring();
  }

  /** To the best (1) or worst (-1) moment of the marked curve, as far as dense quality goes. */
  jump(sign) {
    const curve = this.get("curves").find(({ name }) => name === this.marked);
    const upward = curve && (curve.decay === "rises" ? -sign : sign);
    const places = curve?.values.map((value, at) => [value, at]).filter(([value]) => value !== null);
    if (!places?.length) return;
    this.go(places.reduce((most, other) => (upward * (other[0] - most[0]) > 0 ? other : most))[1]);
  }

  play() {
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (this.playing) this.playing = clearInterval(this.playing);
    else {
      const last = this.get("moments").length - 1;
      if (this.get("time") >= last) this.go(0, false);
      this.playing = setInterval(() => {
        if (this.bringing) return; // what is not here yet is waited for
        this.go(this.get("time") + 1, false);
        if (this.get("time") >= last) this.play();
      }, calm ? 3 * PACE : PACE);
    }
    this.ribbon.playing(Boolean(this.playing));
  }

  haunt(ghost) {
    if (this.ghost === ghost) return;
    this.ghost = ghost;
    this.tell("panes");
  }

  key(event) {
    const typing = event.target.matches("input:not([type=range], [type=checkbox], [type=radio]), select");
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    const steps = { ",": -1, ".": 1, Home: -Infinity, End: Infinity };
    if (event.key in steps) {
      const last = this.get("moments").length - 1;
      this.go(Math.min(Math.max(this.get("time") + steps[event.key], 0), last));
    } else if (event.key === "p") this.play();
    else if (event.key === "g") this.haunt(true);
    else return;
    event.preventDefault();
  }
}
