/** Pictures of values: maps as pixels, how they spread, and their ranks. */

import { lookup } from "./colors.js";
import { COLORS } from "./page.js";

const PADDING = 0xaa000000, MASKED = 0x96000000; // black, as strong as the first two digits; pixels are ABGR
const FINE = 384; // pixels along the longer side of a smooth map; the canvas stretches it from there
const BINS = 80;
const QUIET = "#888f9b"; // of the histogram: shows on light and on dark

/** A map as a canvas with one pixel a patch, or several between patches when smooth. */
export class Layer {
  constructor() {
    this.canvas = document.createElement("canvas");
    this.key = null; // names what is drawn: equal keys need no new drawing
  }

  /** Colours values; padding is dark, what is below the threshold too, and what is not here yet is clear. */
  heat(values, { rows, cols, valid }, { colormap, limits: [low, high], opacity, threshold, smooth }) {
    const factor = smooth ? Math.max(2, Math.min(8, Math.round(FINE / Math.max(rows, cols)))) : 1;
    const pixels = this.sheet(cols * factor, rows * factor);
    const shown = factor > 1 ? between(values, rows, cols, factor) : values;
    const colors = palette(colormap, opacity);
    const scale = 255 / Math.max(high - low, 1e-12), least = threshold ?? -Infinity;
    for (let y = 0, at = 0; y < rows * factor; y++) {
      const first = Math.floor(y / factor) * cols;
      for (let x = 0; x < cols * factor; x++, at++) {
        const cell = first + ((x / factor) | 0);
        const index = Math.min(Math.max((shown[at] - low) * scale + 0.5, 0), 255) | 0;
        if (values[cell] !== values[cell]) pixels[at] = valid[cell] ? 0 : PADDING;
        else pixels[at] = shown[at] < least ? MASKED : colors[index];
      }
    }
    this.show();
  }

  /** Shows one RGBA colour a patch. */
  colors(rgba, { rows, cols }) {
    this.sheet(cols, rows).set(new Uint32Array(rgba.buffer));
    this.show();
  }

  /** The pixels to write to, 32 bits each. */
  sheet(width, height) {
    if (this.image?.width !== width || this.image.height !== height) {
      Object.assign(this.canvas, { width, height });
      this.image = new ImageData(width, height);
      this.pixels = new Uint32Array(this.image.data.buffer);
    }
    return this.pixels;
  }

  show() {
    this.canvas.getContext("2d").putImageData(this.image, 0, 0);
  }
}

function palette(colormap, opacity) {
  const table = lookup(colormap), alpha = Math.round(opacity * 255) << 24;
  return Uint32Array.from({ length: 256 }, (_, index) => {
    const [red, green, blue] = table.subarray(3 * index);
    return alpha | (blue << 16) | (green << 8) | red;
  });
}

/** Values bilinear between the centres of cells, `factor` a cell along both axes; cells without a value do not pull. */
function between(values, rows, cols, factor) {
  const width = cols * factor;
  const [lefts, rights, across] = steps(cols, factor), [tops, bottoms, down] = steps(rows, factor);
  const sums = new Float32Array(rows * width), weights = new Float32Array(rows * width);
  for (let row = 0, at = 0; row < rows; row++) {
    for (let x = 0; x < width; x++, at++) {
      const a = values[row * cols + lefts[x]], b = values[row * cols + rights[x]], share = across[x];
      if (a === a) ((sums[at] += a * (1 - share)), (weights[at] += 1 - share));
      if (b === b) ((sums[at] += b * share), (weights[at] += share));
    }
  }
  const whole = new Float32Array(width * rows * factor);
  for (let y = 0, at = 0; y < rows * factor; y++) {
    const share = down[y];
    for (let a = tops[y] * width, b = bottoms[y] * width, end = a + width; a < end; a++, b++, at++) {
      whole[at] = (sums[a] * (1 - share) + sums[b] * share) / (weights[a] * (1 - share) + weights[b] * share);
    }
  }
  return whole;
}

/** For every place along an axis the cells before and after it, and the share of the latter. */
export function steps(cells, factor) {
  const places = new Float32Array(cells * factor).map((_, at) => {
    return Math.min(Math.max((at + 0.5) / factor - 0.5, 0), cells - 1);
  });
  const before = Int32Array.from(places);
  return [before, before.map((cell) => Math.min(cell + 1, cells - 1)), places.map((place, at) => place - before[at])];
}

/** How values spread from -reach to reach, in the map's colours; beside them the curves [{values, dash}]. */
export function bars(canvas, width, values, { reach, curves, threshold, colormap, limits: [low, high] }) {
  const height = 44, ratio = window.devicePixelRatio || 1, wide = width / BINS;
  Object.assign(canvas, { width: Math.round(width * ratio), height: Math.round(height * ratio) }); // clears it
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  const tops = (counts) => {
    const most = Math.max(...counts, 1);
    return counts.map((count) => height - (count / most) * (height - 4));
  };
  const table = lookup(colormap);
  tops(values ? binned(values, reach) : []).forEach((top, bin) => {
    const share = ((2 * bin + 1) / BINS - 1) * reach;
    const index = 3 * Math.round(255 * Math.min(Math.max((share - low) / (high - low), 0), 1));
    context.fillStyle = `rgb(${table.subarray(index, index + 3)})`;
    context.fillRect(bin * wide, top, wide + 0.5, height - top);
  });
  context.strokeStyle = QUIET;
  for (const { values, dash } of curves) {
    if (!known.has(values)) known.set(values, tops(binned(values, reach)));
    context.setLineDash(dash);
    context.beginPath();
    known.get(values).forEach((top, bin) => {
      context.lineTo(bin * wide, top);
      context.lineTo((bin + 1) * wide, top);
    });
    context.stroke();
  }
  context.fillStyle = COLORS.query;
  if (threshold != null) context.fillRect((threshold / reach + 1) * 0.5 * width - 1, 0, 2, height);
}

const known = new WeakMap(); // curves of packs -> their tops

function binned(values, reach) {
  const counts = new Array(BINS).fill(0), scale = BINS / 2 / reach;
  for (let cell = 0; cell < values.length; cell++) {
    const value = values[cell];
    if (value === value) counts[Math.min(Math.max(Math.floor((value + reach) * scale), 0), BINS - 1)]++;
  }
  return counts;
}

/** The share of values below each one, ties counted half: what is left when only the order matters. */
export function ranks(values) {
  const sorted = values.filter((value) => value === value).sort();
  const below = (passes) => {
    let [low, high] = [0, sorted.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (passes(sorted[middle])) low = middle + 1;
      else high = middle;
    }
    return low;
  };
  const share = (value) => (below((other) => other < value) + below((other) => other <= value)) / 2 / sorted.length;
  return values.map((value) => (value === value ? share(value) : NaN));
}
