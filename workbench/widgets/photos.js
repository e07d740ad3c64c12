/** A photograph and the patches of its pack: colours and outlined regions on it, and what lies under a place. */

import { displayedToPixel, gridBox, gridLines, patchCentre, patchToPolygon, pixelToDisplayed, pixelToPatch } from "./geometry.js";
import { fit, loop, outline } from "./points.js";

const HEIGHT = 300; // css pixels, at most

/** Two canvases over one another: `below` changes rarely, `above` while the pointer moves. Patches are cells. */
export class Photo {
  constructor(pack, name) {
    this.pack = pack;
    [this.xs, this.ys] = gridLines(pack.geometry);
    const make = (tag, properties = {}) => Object.assign(document.createElement(tag), properties);
    this.below = make("canvas");
    this.above = make("canvas", { tabIndex: 0, ariaLabel: name });
    this.above.setAttribute("role", "application");
    this.small = make("canvas", { width: pack.cols, height: pack.rows });
    this.figure = make("figure");
    const frame = make("div"), { width, height } = pack.geometry;
    frame.style.cssText = `position: relative; aspect-ratio: ${width} / ${height}; width: min(100%, ${(HEIGHT * width) / height}px)`;
    for (const canvas of [this.below, this.above]) canvas.style.cssText = "position: absolute; inset: 0; height: 100%; outline-offset: -2px; touch-action: manipulation";
    frame.append(this.below, this.above);
    this.figure.append(frame, make("figcaption", { textContent: name }));
  }

  async open() {
    this.picture = await createImageBitmap(await (await fetch(this.pack.preview)).blob());
  }

  close() {
    this.picture?.close();
  }

  get box() {
    const { width, height } = this.pack.geometry;
    return { box_width: this.above.clientWidth || 1, box_height: this.above.clientHeight || 1, width, height, fit: "fill" };
  }

  /** What says where a pixel is shown: it asks the page for its layout once. */
  get placing() {
    const { box } = this;
    return ([x, y]) => pixelToDisplayed(x, y, box);
  }

  rowAndColumn(cell) {
    return [Math.floor(cell / this.pack.cols), cell % this.pack.cols];
  }

  /** The cell under a place in css pixels, or null. */
  cellAt([x, y]) {
    const pixel = displayedToPixel(x, y, this.box), at = pixel && pixelToPatch(this.pack.geometry, ...pixel);
    return at && at[0] * this.pack.cols + at[1];
  }

  /** The cells whose centre is inside a lasso; padding is none. */
  inside(holds) {
    const { valid, geometry } = this.pack, { placing } = this;
    return [...valid.keys()].filter((cell) => valid[cell] && holds(placing(patchCentre(geometry, ...this.rowAndColumn(cell)))));
  }

  /** The cell some steps away, at most at the rim; null in the padding. Without a cell it begins in the middle. */
  step(cell, [right, down]) {
    const { rows, cols, valid } = this.pack, [row, col] = this.rowAndColumn(cell ?? (rows >> 1) * cols + (cols >> 1));
    const [to, side] = [[row + down, rows], [col + right, cols]].map(([at, end]) => Math.min(Math.max(at, 0), end - 1));
    return valid[to * cols + side] ? to * cols + side : null;
  }

  /** inks: a packed colour a cell, or null; marks: 1 for each selected cell, or null where nothing is selected at all. */
  drawBelow(inks, marks, color) {
    if (!this.picture) return;
    const context = cleared(this.below);
    context.drawImage(this.picture, 0, 0, this.below.clientWidth, this.below.clientHeight);
    if (inks) this.cover(context, inks, 0.7);
    if (!marks) return;
    this.cover(context, Int32Array.from(marks, (on) => (on ? 0 : 255 << 24)), 0.5);
    context.beginPath();
    const { rows, cols } = this.pack, { placing, xs, ys } = this;
    const on = (row, col) => row >= 0 && row < rows && col >= 0 && col < cols && marks[row * cols + col];
    for (const cell of marks.keys()) {
      const [row, col] = this.rowAndColumn(cell);
      if (!marks[cell]) continue;
      for (const [down, right] of [[-1, 0], [1, 0], [0, -1], [0, 1]]) { // where a region ends, not around every patch
        if (on(row + down, col + right)) continue;
        const [x, y] = [col + (right > 0), row + (down > 0)];
        context.moveTo(...placing([xs[x], ys[y]]));
        context.lineTo(...placing([xs[x + !right], ys[y + !down]]));
      }
    }
    outline(context, color, "#000", "", 0, 0, Math.min(2, Math.max(0.6, this.below.clientWidth / cols / 5)));
  }

  cover(context, colors, alpha) {
    const [left, top, right, bottom] = gridBox(this.pack.geometry), [x, y] = this.placing([left, top]), [x2, y2] = this.placing([right, bottom]);
    this.small.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(colors.buffer), this.pack.cols), 0, 0);
    Object.assign(context, { imageSmoothingEnabled: false, globalAlpha: alpha });
    context.drawImage(this.small, x, y, x2 - x, y2 - y);
    context.globalAlpha = 1;
  }

  /** frames: [cell or null, color, label] each; path: of a lasso on its way. */
  drawAbove(frames, path) {
    const context = cleared(this.above);
    for (const [cell, color, label] of frames) {
      if (cell === null) continue;
      const [[x, y], , [x2, y2]] = patchToPolygon(this.pack.geometry, ...this.rowAndColumn(cell)).map(this.placing);
      const grow = Math.max(0, 9 - x2 + x) / 2; // a patch of a large picture is a few pixels
      context.beginPath();
      context.rect(x - grow, y - grow, x2 - x + 2 * grow, y2 - y + 2 * grow);
      outline(context, color, "#000", label, Math.min(x2 + grow + 5, this.above.clientWidth - 38), Math.max(y + 6, 12));
    }
    loop(context, path, "#fff");
  }
}

function cleared(canvas) {
  const context = canvas.getContext("2d"), ratio = fit(canvas);
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.imageSmoothingEnabled = true;
  context.clearRect(0, 0, canvas.clientWidth, canvas.clientHeight);
  return context;
}
