/** What stands beside the map of a pane in words and numbers: read-out, colours, histogram, the best matches. */

import { standing } from "./pack.js";
import { gradient } from "./colors.js";
import { bars } from "./heat.js";
import { make, update } from "./page.js";

export const SHOWS = {
  similarity: "Similarity",
  pca: "PCA colours",
  photo: "Photo",
  difference: "Difference to",
  rank: "Rank difference to",
  swipe: "Swipe with",
};
const CURVES = "How often each value occurs. Line: random pairs in this photo. Dashed: pairs with other photos.";
const LEGEND = `
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

export class Legend {
  constructor(pane) {
    this.pane = pane;
    const root = make("div", { innerHTML: LEGEND }), { view } = pane;
    [this.readout, this.bar, this.histogram, this.list] = root.querySelectorAll(".gs-read, .gs-gradient, canvas, ol");
    [this.whole, this.spread] = root.querySelectorAll(".gs-legend");
    [this.level, this.mask] = root.querySelectorAll("input");
    this.numbers = root.querySelectorAll("span"); // below the colours, then below the histogram
    pane.figure.append(...root.children);
    this.mask.onchange = () => view.set("threshold", this.mask.checked ? Number(this.level.value) : null);
    this.level.oninput = () => view.set("threshold", Number(this.level.value), false);
    this.level.onchange = () => view.set("threshold", Number(this.level.value));
  }

  measure() {
    this.width = this.histogram.clientWidth;
  }

  clear() {
    update(this.whole, { hidden: true });
    update(this.readout, { textContent: "" });
    this.enumerate([]);
  }

  draw(answer) {
    const { pane } = this, { view, show, signed } = pane;
    const { colormap, limits, threshold } = pane.style, [low, high] = limits.map((limit) => fixed(limit, 2));
    const negative = view.asked.some(({ sign }) => sign < 0), reach = negative ? 2 : 1;
    const cosine = negative ? "cosine − cosine" : "cosine";
    const name = show === "rank" ? "difference of ranks" : signed ? "difference of cosines" : cosine;
    const ends = signed ? [`≤ ${low}`, name, `≥ ${high}`] : [low, name, high];
    [...ends, `${-reach}`, "0", `${reach}`].forEach((textContent, at) => update(this.numbers[at], { textContent }));
    update(this.whole, { hidden: show === "pca" || show === "photo" });
    update(this.spread, { hidden: signed });
    if (this.gradient !== colormap) this.bar.style.background = gradient((this.gradient = colormap));
    update(this.level, { min: `${-reach}`, max: `${reach}`, className: threshold == null ? "gs-off" : "" });
    if (threshold != null) update(this.level, { value: `${threshold}` });
    update(this.mask, { checked: threshold != null });

    const key = [answer.key, threshold, reach, colormap, low, high, this.width, devicePixelRatio].join();
    if (!signed && this.width && this.barred !== key) {
      this.barred = key;
      const { nullSame, nullOther } = pane.pack;
      const curves = [{ values: nullSame, dash: [] }, { values: nullOther, dash: [3, 3] }];
      const comparable = curves.filter(({ values }) => values?.length && !negative);
      bars(this.histogram, this.width, answer.values, { reach, curves: comparable, threshold, colormap, limits });
    }
    update(this.readout, { textContent: this.words(answer.values, name) });
    const label = `${SHOWS[show]}: ${pane.title.textContent}. ${this.readout.textContent}`;
    if (pane.canvas.getAttribute("aria-label") !== label) pane.canvas.setAttribute("aria-label", label);
    this.enumerate(pane.matches(answer));
  }

  enumerate(matches) {
    if (this.listed === matches) return;
    this.listed = matches;
    const lines = matches.map(({ row, col, cosine }) => {
      const rank = this.standing(cosine);
      return `row ${row}, col ${col}: ${fixed(cosine, 3)}${rank ? `, above ${rank.percentile.toFixed(1)} %` : ""}`;
    });
    this.list.replaceChildren(...lines.map((textContent) => make("li", { textContent })));
  }

  /** The patch under the pointer, else the one pinned last: where it is, its value, and whether that is much. */
  words(values, name) {
    const { pane } = this, { view, pack } = pane, [done, total] = pack.progress ?? [];
    const coming = done < total ? `Features are coming: ${done} of ${total} rows. ` : "";
    const point = view.hover?.image === pane.image ? view.hover : pane.pinned.at(-1);
    if (!point && !view.asked.length) return `${coming}Hover a patch; click to pin it.`;
    const unseen = "The query lies in a photograph that these weights have not seen.";
    if (!point) return coming + (values ? "Hover to read a value." : unseen);
    const cell = pane.cellOf(point);
    if (!cell) return "Outside of what the model saw.";
    const [x, y] = (point.pixel ?? [point.x, point.y]).map(Math.floor);
    const place = `${coming}row ${cell[0]}, col ${cell[1]} · pixel ${x}, ${y}`;
    const value = values?.[cell[0] * pack.cols + cell[1]] ?? NaN;
    if (value !== value) return `${place} · no value`;
    const parts = [place, `${name} ${fixed(value, 3)}`], rank = pane.signed ? null : this.standing(value);
    if (rank) {
      const z = rank.z === rank.z ? `, z ${fixed(rank.z, 1)}` : "", usual = this.usual(cell);
      parts.push(`above ${rank.percentile.toFixed(1)} % of random pairs${rank.others ? " with other photos" : ""}${z}`);
      if (usual === usual) parts.push(`usual at this distance ${fixed(usual, 2)}`);
    }
    return parts.join(" · ");
  }

  /** Whether a cosine is high: {percentile, z} among random pairs, with other photos where the query lies in one. */
  standing(cosine) {
    const { view, pack, image } = this.pane, others = view.asked.some((query) => query.image !== image);
    const reference = others ? pack.nullOther : pack.nullSame;
    const plain = view.asked.every(({ sign }) => sign > 0); // else it is no cosine, but a difference of two
    return plain && reference?.length ? { ...standing(cosine, reference), others } : null;
  }

  /** The mean cosine of two patches as far apart as this one and the only query; NaN where there is no such number. */
  usual([row, col]) {
    const { view, pack } = this.pane, [query, more] = view.asked, from = this.pane.cellOf(query);
    if (!from || more) return NaN;
    return pack.nullDistance?.[Math.abs(row - from[0]) + Math.abs(col - from[1]) - 1] ?? NaN;
  }
}

/** A number without the sign of a zero. */
const fixed = (value, digits) => (Number(value.toFixed(digits)) || 0).toFixed(digits);
