/**
 * A run that trains somewhere: how it stands, its curves, its maps of the probe images, and what one may do to it.
 *
 *   mount(el, host) -> view with destroy()
 *
 * It shows the host's `report` (see workbench/follow.py) and asks through `asked`: {action, step, count}.
 */

import { make, style, update } from "./page.js";

const DEFAULTS = { report: null, told: "", asked: {} };
const WIDE = 600, HIGH = 120, EDGE = 4; // of a chart
const COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"]; // Okabe-Ito
const OVER = ["done", "stopped", "cancelled", "failed", "out of memory", "node failed", "out of time", "not submitted"];
const BAD = ["failed", "out of memory", "node failed", "out of time"];

export function mount(el, host) {
  return new Card(el, host);
}

class Card {
  constructor(el, host) {
    this.host = host;
    this.count = 0;
    this.at = null; // the checkpoint whose maps are shown; null: the newest
    this.build(el);
    this.unlisten = Object.keys(DEFAULTS).map((name) => host.state.on(name, () => this.follow()));
    this.follow();
  }

  destroy() {
    this.unlisten.forEach((off) => off());
    this.root.remove();
  }

  get(name) {
    return this.host.state.get(name) ?? DEFAULTS[name];
  }

  ask(action, step = null) {
    this.host.state.set("asked", { action, step, count: ++this.count, when: Date.now() });
  }

  build(el) {
    style(el.getRootNode());
    this.title = make("strong");
    this.state = make("span", { className: "gs-state", role: "status" });
    this.bar = make("div", { className: "gs-progress", role: "progressbar", "aria-valuemin": "0" }, [make("i")]);
    this.facts = make("p", { className: "gs-note" });
    this.reason = make("p", { className: "gs-note" });
    this.chart = make("div", { className: "gs-chart" });
    this.legend = make("p", { className: "gs-keys" });
    this.time = make("input", { type: "range", min: "0", step: "1", "aria-label": "Checkpoint of the maps" });
    this.time.oninput = () => {
      this.at = Number(this.time.value);
      this.maps();
    };
    this.when = make("output");
    this.timeline = make("label", { className: "gs-when" }, ["Maps at ", this.time, this.when]);
    this.pictures = make("div", { className: "gs-maps" });
    this.cancel = make("button", { type: "button", textContent: "Cancel", title: "Save and leave" });
    this.again = make("button", { type: "button", textContent: "Requeue", title: "Stop, and go on from the newest checkpoint" });
    this.fork = make("button", { type: "button", textContent: "Fork", title: "A new run that begins with the teacher of this step" });
    this.from = make("select", { "aria-label": "Step to fork from" });
    this.cancel.onclick = () => this.ask("cancel");
    this.again.onclick = () => this.ask("requeue");
    this.fork.onclick = () => this.ask("fork", Number(this.from.value));
    this.forking = make("label", {}, ["from step ", this.from]);
    this.told = make("span", { className: "gs-note", role: "status" });
    this.log = make("pre", { className: "gs-log" });
    this.words = make("details", {}, [make("summary", { textContent: "Last lines of the log" }), this.log]);
    const head = make("div", { className: "gs-head" }, [this.title, this.state]);
    const bar = make("div", { className: "gs-bar" }, [this.cancel, this.again, this.fork, this.forking, this.told]);
    const parts = [head, this.bar, this.facts, this.reason, this.legend, this.chart, this.timeline, this.pictures, bar, this.words];
    this.root = make("div", { className: "gs-view gs-card", role: "group", "aria-label": "A run" }, parts);
    this.root.dataset.lmSuppressShortcuts = "true";
    el.append(this.root);
  }

  follow() {
    const told = this.get("report");
    update(this.root, { hidden: !told });
    if (!told) return;
    const over = OVER.includes(told.state), bad = BAD.includes(told.state);
    update(this.title, { textContent: told.name });
    update(this.state, { textContent: told.state });
    this.root.classList.toggle("gs-bad", bad);
    this.root.classList.toggle("gs-live", told.state === "running");
    const share = told.steps ? told.step / told.steps : 0;
    this.bar.firstChild.style.width = `${100 * share}%`;
    this.bar.setAttribute("aria-valuemax", told.steps);
    this.bar.setAttribute("aria-valuenow", told.step);
    update(this.facts, { textContent: factsOf(told).join(" · ") });
    update(this.reason, { textContent: told.reason, hidden: !told.reason });
    this.draw(told.curves);
    this.maps();
    update(this.cancel, { disabled: over });
    update(this.again, { disabled: !told.jobs.length });
    update(this.fork, { disabled: !told.teachers.length });
    const steps = told.teachers.map(String);
    if (`${[...this.from.options].map((option) => option.value)}` !== `${steps}`) {
      const chosen = this.from.value;
      this.from.replaceChildren(...steps.map((step) => make("option", { value: step, textContent: step })));
      this.from.value = steps.includes(chosen) ? chosen : steps.at(-1) ?? "";
    }
    update(this.forking, { hidden: !steps.length });
    update(this.told, { textContent: this.get("told") });
    update(this.log, { textContent: told.log });
    update(this.words, { hidden: !told.log });
    if (bad && !this.shown) this.words.open = this.shown = true; // once: it may be closed again
  }

  /** Every term on an axis of its own, from its least to its largest value: they have nothing in common but the steps. */
  draw(curves) {
    update(this.chart, { hidden: !curves.length });
    update(this.legend, { hidden: !curves.length });
    const drawn = JSON.stringify(curves);
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    const last = Math.max(...curves.map(({ steps }) => steps.at(-1)), 1);
    const lines = curves.map(({ steps, values }, index) => {
      const low = Math.min(...values), span = Math.max(...values) - low || 1;
      const points = steps.map((step, at) => `${((step / last) * WIDE).toFixed(1)},${(HIGH - EDGE - ((values[at] - low) / span) * (HIGH - 2 * EDGE)).toFixed(1)}`);
      return `<polyline points="${points.join(" ")}" stroke="${COLORS[index % COLORS.length]}"/>`;
    });
    this.chart.innerHTML = `<svg viewBox="0 0 ${WIDE} ${HIGH}" preserveAspectRatio="none" role="img"
      aria-label="Loss terms over steps 0 to ${last}">${lines.join("")}</svg>
      <p class="gs-numbers"><span>step 0</span><span>${last}</span></p>`;
    this.legend.replaceChildren(...curves.map(({ name, values }, index) => {
      const key = make("i");
      key.style.background = COLORS[index % COLORS.length];
      return make("span", { title: "Each on an axis of its own, from its least to its largest value" }, [key, `${name} ${Number(values.at(-1).toPrecision(4))}`]);
    }));
  }

  maps() {
    const maps = this.get("report")?.maps ?? [], last = maps.length - 1;
    for (const part of [this.timeline, this.pictures]) update(part, { hidden: last < 0 });
    if (last < 0) return;
    const at = Math.min(this.at ?? last, last);
    if (at === last) this.at = null; // follows what comes
    update(this.time, { max: `${last}`, value: `${at}`, disabled: last === 0 });
    update(this.when, { textContent: `step ${maps[at].step}` });
    const shown = maps[at].images;
    while (this.pictures.children.length < shown.length) this.pictures.append(make("img"));
    while (this.pictures.children.length > shown.length) this.pictures.lastChild.remove();
    shown.forEach(({ name, picture }, index) => update(this.pictures.children[index], { src: picture, alt: `${name} in PCA colours`, title: name }));
  }
}

/** What is known of the run's pace, in words. */
function factsOf({ step, steps, left, speed, restarts, jobs }) {
  const facts = [`step ${step} of ${steps}`];
  if (speed.images_per_second !== undefined) facts.push(`${Number(speed.images_per_second.toPrecision(3))} images/s`);
  if (left !== null) facts.push(`${durationOf(left)} left`);
  if (speed.data_share !== undefined) facts.push(`${Math.round(100 * speed.data_share)} % waiting for data`);
  if (speed.cpus_busy !== undefined) facts.push(`${speed.cpus_busy.toFixed(1)} cores busy`);
  if (speed.gpu_busy !== undefined) facts.push(`GPU ${Math.round(100 * speed.gpu_busy)} % busy`);
  if (speed.memory_gib !== undefined) facts.push(`${speed.memory_gib.toFixed(1)} GiB`);
  if (restarts) facts.push(`started again ${restarts} ${restarts === 1 ? "time" : "times"}`);
  const job = jobs.at(-1);
  if (job) facts.push(`${job.target} ${job.id}`);
  return facts;
}

function durationOf(seconds) {
  const minutes = Math.max(Math.round(seconds / 60), 1);
  if (minutes < 60) return `${minutes} min`;
  return minutes < 2880 ? `${Math.floor(minutes / 60)} h ${`${minutes % 60}`.padStart(2, "0")} min` : `${Math.floor(minutes / 1440)} d`;
}
