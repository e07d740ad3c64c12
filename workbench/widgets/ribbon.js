/**
 * The slider over the checkpoints of a run, and under it a curve a metric with its value where the slider stands.
 *
 * A curve is {name, title, values, low, high, decay, group, alarm}: a number (or null) a moment and its interval; decay
 * is "rises" or "falls", the way it goes when dense quality falls; curves of one group stand together under its title;
 * alarm, where there is one, is {since, best, words}.
 */

import { make, update } from "./page.js";

const HIGH = 34; // px of a curve
const EDGE = 8; // px: half a thumb, so that curves stand exactly under the slider
const UNITS = 1000; // of an SVG across
const GAP = 6; // px between steps that are written under the slider

export class Ribbon {
  /** actions: go(time, tell), mark(name), play(). */
  constructor(actions) {
    this.actions = actions;
    this.rows = [];
    this.head = make("div", { className: "gs-ribbon" });
    this.root = make("div", { className: "gs-ribbon" });
    this.button = make("button", { type: "button", onclick: () => actions.play() });
    this.range = make("input", { type: "range", min: "0", step: "1", "aria-label": "Checkpoint" });
    this.range.oninput = () => actions.go(Number(this.range.value), false);
    this.range.onchange = () => actions.go(Number(this.range.value));
    this.place = make("output", { className: "gs-place" });
    this.playing(false);
  }

  playing(plays) {
    update(this.button, { textContent: plays ? "Pause" : "Play", title: plays ? "Stop (P)" : "Play through the checkpoints (P)" });
  }

  fill(moments, curves, titles) {
    Object.assign(this, { moments, titles });
    update(this.range, { max: `${Math.max(moments.length - 1, 0)}` });
    this.ticks = make("div", { className: "gs-ticks", "aria-hidden": "true" });
    this.written = ticksOf(moments).map(({ at, text, first }) => {
      const tick = make("span", { textContent: text });
      tick.style.left = `calc(${EDGE}px + (100% - ${2 * EDGE}px) * ${this.share(at)})`;
      return { tick, first };
    });
    this.ticks.append(...this.written.map(({ tick }) => tick));
    this.resizes?.disconnect();
    this.resizes = new ResizeObserver(() => this.fit());
    this.resizes.observe(this.ticks);
    this.head.replaceChildren(make("span", {}, [this.button]), make("div", {}, [this.range, this.ticks]), this.place);
    this.rows = curves.map((curve) => this.row(curve));
    const cells = this.rows.flatMap(({ curve, cells }, at) => {
      const first = curve.group && curve.group !== curves[at - 1]?.group;
      return first ? [make("span", { className: "gs-group", textContent: curve.group }), ...cells] : cells;
    });
    this.root.replaceChildren(...cells);
  }

  /** Hides what would stand on others: the last step comes before where runs begin, and that before steps between. */
  fit() {
    const boxes = this.written.map(({ tick, first }) => ({ tick, first, box: tick.getBoundingClientRect() }));
    const kept = [];
    for (const { tick, box } of boxes.sort((a, b) => b.first - a.first || a.box.left - b.box.left)) {
      const fits = kept.every(({ left, right }) => box.left > right + GAP || box.right < left - GAP);
      if (fits) kept.push(box);
      tick.style.visibility = fits ? "" : "hidden";
    }
  }

  share(at) {
    return this.moments.length > 1 ? at / (this.moments.length - 1) : 0.5;
  }

  /** One curve: its name, which marks it, the curve, and its value. */
  row(curve) {
    const { name, title, decay, alarm } = curve;
    const way = decay && `${decay} when dense quality falls`;
    const mark = make("input", { type: "radio", name: "gs-metric", value: name, "aria-label": `${title}: mark` });
    mark.onchange = () => this.actions.mark(name);
    const arrow = { rises: " ↑", falls: " ↓" }[decay] ?? "";
    const words = make("span", {}, [title, make("small", { textContent: arrow, title: way ?? "" })]);
    const label = make("label", { title: [title, way, alarm?.words].filter(Boolean).join(". ") }, [mark, words]);
    const value = make("span", { className: "gs-value" });
    const plot = make("div", { className: "gs-curve", innerHTML: drawing(curve, (at) => this.share(at)) });
    const cursor = make("i"), other = make("i", { className: "gs-other" });
    plot.append(other, cursor);
    const move = (event, tell) => {
      const { left, width } = plot.getBoundingClientRect();
      const along = (event.clientX - left - EDGE) / (width - 2 * EDGE);
      this.actions.go(Math.min(Math.max(along, 0), 1) * (this.moments.length - 1), tell);
    };
    plot.onpointerdown = (event) => {
      plot.setPointerCapture(event.pointerId);
      move(event, false);
    };
    plot.onpointermove = (event) => plot.hasPointerCapture(event.pointerId) && move(event, false);
    plot.onpointerup = (event) => move(event, true);
    return { curve, mark, value, cursor, other, cells: [label, plot, value] };
  }

  follow(time, against, marked) {
    update(this.range, { value: `${time}` });
    update(this.place, { textContent: (this.titles?.[time] ?? "").replace(", ", "\n") });
    this.range.setAttribute("aria-valuetext", this.titles?.[time] ?? "");
    const at = (moment) => `calc(${EDGE}px + (100% - ${2 * EDGE}px) * ${this.share(moment)})`;
    for (const { curve, mark, value, cursor, other } of this.rows) {
      update(mark, { checked: curve.name === marked });
      cursor.style.left = at(time);
      other.style.left = at(against ?? 0);
      update(other, { hidden: against === null });
      update(value, { textContent: told(curve.values[time]), title: interval(curve, time) });
    }
  }
}

/**
 * Steps to write under the slider, a handful: the first, the last, and some between; of several runs their names where
 * they begin. What is `first` stays where there is little room.
 */
function ticksOf(moments) {
  const every = Math.max(Math.ceil((moments.length - 1) / 6), 1), ticks = [];
  const several = moments.some(({ run }) => run !== moments[0].run);
  moments.forEach(({ run, step }, at) => {
    const begins = several && run !== moments[at - 1]?.run;
    const last = at === moments.length - 1, near = moments.length - 1 - at < every / 2;
    if (!begins && !last && (at % every || near)) return;
    ticks.push({ at, text: begins ? run : `${step}`, first: last ? 2 : Number(begins) });
  });
  return ticks;
}

/** The curve as SVG: its interval, its line, and in red from where an alarm says that it is worse. */
function drawing({ values, low, high, alarm }, share) {
  const all = [...values, ...(low ?? []), ...(high ?? [])].filter((value) => value !== null);
  const [bottom, top] = [Math.min(...all), Math.max(...all)], span = top - bottom || 1;
  const x = (at) => share(at) * UNITS, y = (value) => HIGH - 4 - ((value - bottom) / span) * (HIGH - 8);
  const points = (list, from = 0) => list.map((value, at) => [value, at]).filter(([value, at]) => value !== null && at >= from)
    .map(([value, at]) => `${x(at).toFixed(1)},${y(value).toFixed(1)}`);
  const band = low && high ? `<polygon points="${[...points(high), ...points(low).reverse()].join(" ")}"/>` : "";
  const bad = alarm ? `<polyline class="gs-bad" points="${points(values, Math.max(alarm.since - 1, 0)).join(" ")}"/>` : "";
  return `<svg viewBox="0 0 ${UNITS} ${HIGH}" preserveAspectRatio="none" aria-hidden="true">
    ${band}<polyline points="${points(values).join(" ")}"/>${bad}</svg>`;
}

/** A number with as many digits as help to tell it from its neighbours. */
function told(value) {
  if (value === null || value === undefined) return "–";
  return Math.abs(value) >= 100 ? value.toFixed(0) : Math.abs(value) >= 10 ? value.toFixed(1) : value.toFixed(3);
}

function interval({ low, high }, time) {
  return low && low[time] !== null ? `95 % of means over images: ${told(low[time])} to ${told(high[time])}` : "";
}
