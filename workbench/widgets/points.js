/**
 * Tens of thousands of points on a canvas without a GPU, and the gestures of a canvas.
 *
 * A marker is stamped into a buffer of pixels for every point; colours are packed into one number, as pixels are.
 */

const { abs, hypot, max, min, round } = Math;
const SHAPES = [ // about one unit around (0, 0), y down: hue alone would not reach everyone
  (x, y) => hypot(x, y) < 1,
  (x, y) => max(abs(x), abs(y)) < 0.88,
  (x, y) => y < 0.75 && abs(x) < (y + 1.15) * 0.62,
  (x, y) => abs(x) + abs(y) < 1.25,
  (x, y) => y > -0.75 && abs(x) < (1.15 - y) * 0.62,
  (x, y) => min(abs(x), abs(y)) < 0.36 && max(abs(x), abs(y)) < 1.15,
  (x, y) => min(abs(x + y), abs(x - y)) < 0.5 && max(abs(x + y), abs(x - y)) < 1.6,
  (x, y) => abs(y) < 0.45 && abs(x) < 1.25,
];
const MANY = 10000; // points

/** The pixels of a marker as offsets in a buffer: those it fills, those it covers in part (to 255), and the rim around. */
export function stampOf(kind, radius, stride, width = 1) {
  const inside = SHAPES[kind % SHAPES.length], reach = Math.ceil((radius + width) * 1.3), [full, part, shares, rim] = [[], [], [], []];
  const cover = (x, y, size) => {
    let count = 0;
    for (let i = 0; i < 16; i++) count += inside((x + (i % 4) / 4 - 0.375) / size, (y + (i >> 2) / 4 - 0.375) / size);
    return count;
  };
  for (let y = -reach; y <= reach; y++) {
    for (let x = -reach; x <= reach; x++) {
      const at = y * stride + x, count = cover(x, y, radius);
      if (count === 16) full.push(at);
      else if (count) (part.push(at), shares.push(16 * count));
      if (count < 16 && cover(x, y, radius + width) > 7) rim.push(at);
    }
  }
  const [fills, parts, covers, rims] = [full, part, shares, rim].map((list) => Int32Array.from(list));
  return { fills, parts, covers, rims };
}

/** A marker alone, on a canvas of 28 pixels. */
export function swatch(canvas, kind, color) {
  const image = new ImageData(28, 28), pixels = new Int32Array(image.data.buffer), { fills, parts, covers } = stampOf(kind, 9, 28);
  for (const at of fills) pixels[406 + at] = color;
  parts.forEach((at, k) => (pixels[406 + at] = (color & 0xffffff) | (covers[k] << 24)));
  Object.assign(canvas, { width: 28, height: 28 }).getContext("2d").putImageData(image, 0, 0);
}

// Signed: a number above 2 ** 31 would be no integer to the browser's compiler, and three times as slow.
export const packed = (red, green, blue) => (255 << 24) | (blue << 16) | (green << 8) | red;
export const unpacked = (hex) => packed(...[1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));

/** Two packed colours, `share` 256ths of the second. */
export function mix(under, over, share) {
  const a = under & 0xff00ff, b = under & 0xff00;
  const redBlue = a + (Math.imul((over & 0xff00ff) - a, share) >> 8), green = b + (Math.imul((over & 0xff00) - b, share) >> 8);
  return (255 << 24) | (redBlue & 0xff00ff) | (green & 0xff00);
}

/** Points under a camera: `camera.x`, `camera.y` is the middle of the canvas, `camera.zoom` 1 shows all of them. */
export class Plane {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { willReadFrequently: true }); // pixels are written, never read from a GPU
  }

  /** places: x, y of every point; kinds: which marker it has. */
  put(places, kinds) {
    let [left, right, bottom, top] = [Infinity, -Infinity, Infinity, -Infinity];
    for (let i = 0; i < places.length; i += 2) {
      [left, right] = [min(left, places[i]), max(right, places[i])];
      [bottom, top] = [min(bottom, places[i + 1]), max(top, places[i + 1])];
    }
    Object.assign(this, { places, kinds, count: kinds.length, drawn: [] });
    this.whole = { x: (left + right) / 2, y: (bottom + top) / 2, zoom: 1 };
    this.span = [right - left || 1, top - bottom || 1];
    this.camera = { ...this.whole };
  }

  /** Css pixels per unit. */
  get scale() {
    const { clientWidth, clientHeight } = this.canvas;
    return min((clientWidth - 48) / this.span[0], (clientHeight - 48) / this.span[1]) * this.camera.zoom;
  }

  get middle() {
    return [this.canvas.clientWidth / 2, this.canvas.clientHeight / 2];
  }

  /** Where a point is, in css pixels of the canvas. */
  placeOf(point, [x, y] = this.middle, scale = this.scale) {
    return [x + (this.places[2 * point] - this.camera.x) * scale, y - (this.places[2 * point + 1] - this.camera.y) * scale];
  }

  pan(x, y) {
    this.camera.x -= x / this.scale;
    this.camera.y += y / this.scale;
  }

  zoom(factor, place = this.middle) {
    const [x, y] = place.map((value, axis) => value - this.middle[axis]);
    this.pan(-x, -y); // what is under the pointer stays there
    this.camera.zoom = min(max(this.camera.zoom * factor, 0.5), 400);
    this.pan(x, y);
  }

  /** The drawn point of least cost(right, down), in css pixels from a place; -1 when all cost Infinity. */
  best(place, cost) {
    const { middle, scale } = this;
    let found = -1, least = Infinity;
    for (const i of this.drawn) {
      const [x, y] = this.placeOf(i, middle, scale), price = cost(x - place[0], y - place[1]);
      if (price < least) [found, least] = [i, price];
    }
    return found;
  }

  near(place, reach = Infinity) {
    return this.best(place, (x, y) => (hypot(x, y) < reach ? hypot(x, y) : Infinity));
  }

  /** The next point in a direction, rather ahead than aside. */
  next(point, [right, down]) {
    return this.best(this.placeOf(point), (x, y) => {
      const ahead = x * right + y * down;
      return ahead > 0.5 ? ahead + 2 * abs(x * down + y * right) : Infinity;
    });
  }

  /** Places inside a lasso: the numbers of the points. */
  inside(holds) {
    const { middle, scale } = this;
    return [...this.drawn].filter((i) => holds(this.placeOf(i, middle, scale)));
  }

  /**
   * Stamps the points `drawn`, the last one on top, in their `tints`; `edge` goes around all of them together.
   *
   * While many points move, a screen of fine pixels gets coarse ones: four to nine times fewer to write.
   */
  stamp(drawn, tints, back, edge, moving = false) {
    this.drawn = drawn;
    const { canvas, camera, places, kinds } = this;
    const ratio = (this.ratio = fit(canvas, moving && this.count > MANY ? 1 : devicePixelRatio)), { width, height } = canvas;
    const crowd = Math.sqrt((canvas.clientWidth * canvas.clientHeight) / this.count);
    this.radius = min(min(max(0.3 * crowd, 1.5), 4) * max(camera.zoom, 1) ** 0.35, 9);
    const size = round(this.radius * ratio * 4) / 4, reach = Math.ceil((size + 1) * 1.3);
    const rim = (this.rim = 2 * reach + 2), stride = width + 2 * rim; // so that points need no care at the edge
    const key = `${size} ${width} ${height}`;
    if (this.key !== key) {
      this.key = key;
      this.stamps = SHAPES.map((_, kind) => stampOf(kind, size, stride));
      this.pixels = new Int32Array(stride * (height + 2 * rim));
      this.image = new ImageData(new Uint8ClampedArray(this.pixels.buffer), stride);
    }
    const { pixels, stamps } = this, scale = this.scale * ratio;
    const left = width / 2 - camera.x * scale, top = height / 2 + camera.y * scale;
    pixels.fill(back);
    for (let n = 0; n < drawn.length; n++) {
      const i = drawn[n], x = round(left + places[2 * i] * scale), y = round(top - places[2 * i + 1] * scale);
      if (x < -reach || y < -reach || x > width + reach || y > height + reach) continue;
      const { fills, parts, covers, rims } = stamps[kinds[i] % 8], at = (y + rim) * stride + x + rim, tint = tints[i];
      for (let k = 0; k < rims.length; k++) if (pixels[at + rims[k]] === back) pixels[at + rims[k]] = edge;
      for (let k = 0; k < parts.length; k++) pixels[at + parts[k]] = mix(pixels[at + parts[k]], tint, covers[k]);
      for (let k = 0; k < fills.length; k++) pixels[at + fills[k]] = tint;
    }
  }

  /** Brings the buffer to the canvas; the context then speaks css pixels. */
  show() {
    const { context, canvas, image, rim } = this;
    context.resetTransform();
    context.putImageData(image, -rim, -rim, rim, rim, canvas.width, canvas.height);
    context.scale(this.ratio, this.ratio);
    return context;
  }
}

/**
 * Hover, click and lasso on a canvas; with `pan` and `zoom` also the right button, Space held, wheel and two fingers.
 *
 * Places are css pixels of the canvas: hover(place or null), click(place, event), trace(path) while a lasso grows and
 * with [] when it ends, lasso(path, event). Returns what breaks a gesture off.
 */
export function gestures(canvas, { hover, click, trace, lasso, pan, zoom }, signal) {
  const held = new Map();
  let kind = null, path = [], space = false;
  const on = (target, names, act, options) => names.split(" ").forEach((name) => target.addEventListener(name, act, { signal, ...options }));
  const place = ({ clientX, clientY }) => { // whatever zoom or transform the page applies to the canvas
    const { left, top, width, height } = canvas.getBoundingClientRect();
    return [((clientX - left) * canvas.clientWidth) / width, ((clientY - top) * canvas.clientHeight) / height];
  };
  const stop = () => ((kind = null), trace((path = [])));

  on(canvas, "contextmenu", (event) => event.preventDefault());
  on(canvas, "pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    held.set(event.pointerId, place(event));
    kind = held.size > 1 ? "pinch" : pan && (event.button || space) ? "pan" : event.button ? null : "press";
    path = kind === "press" ? [place(event)] : [];
  });
  on(canvas, "pointermove", (event) => {
    const here = place(event), last = held.get(event.pointerId);
    if (!last) return event.pointerType === "touch" || hover(here);
    held.set(event.pointerId, here);
    const [x, y] = [here[0] - last[0], here[1] - last[1]];
    if (kind === "pan") pan(x, y);
    if (kind === "pinch" && zoom) {
      const other = [...held].find(([id]) => id !== event.pointerId)[1];
      const gap = (from) => hypot(from[0] - other[0], from[1] - other[1]) || 1;
      pan(x / 2, y / 2);
      zoom(gap(here) / gap(last), [(here[0] + other[0]) / 2, (here[1] + other[1]) / 2]);
    }
    if (kind !== "press" && kind !== "lasso") return;
    const far = hypot(here[0] - path.at(-1)[0], here[1] - path.at(-1)[1]);
    if (kind === "press" && far > 4) kind = "lasso";
    if (kind === "lasso" && far > 2) trace((path = [...path, here]));
  });
  on(canvas, "pointerup pointercancel", (event) => {
    if (!held.delete(event.pointerId)) return;
    const [was, all] = [event.type === "pointerup" && !held.size && kind, path];
    stop(); // a finger that is left does nothing
    if (was === "press") click(place(event), event);
    if (was === "lasso") lasso(all, event);
  });
  on(canvas, "pointerleave", () => held.size || hover(null));
  if (!pan) return stop;
  on(canvas, "wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.002)), place(event));
  }, { passive: false });
  on(document, "keydown keyup", (event) => {
    if (event.key !== " " || (event.type === "keydown" && !canvas.matches(":hover, :focus"))) return;
    canvas.style.cursor = (space = event.type === "keydown") ? "grab" : "";
    if (space) event.preventDefault(); // the page would scroll
  }, { capture: true });
  return stop;
}

/** Whether places lie inside a closed path by its winding number: a loop within a loop is inside too. */
export function polygon(path) {
  const [xs, ys] = [0, 1].map((axis) => Float64Array.from(path, (place) => place[axis]));
  const [left, right, top, bottom] = [min(...xs), max(...xs), min(...ys), max(...ys)];
  return ([x, y]) => {
    let turns = 0;
    if (x < left || x > right || y < top || y > bottom) return false;
    for (let i = 0, j = xs.length - 1; i < xs.length; j = i++) {
      if (ys[j] <= y !== ys[i] <= y && x < xs[j] + ((y - ys[j]) * (xs[i] - xs[j])) / (ys[i] - ys[j])) turns += ys[j] <= y ? 1 : -1;
    }
    return turns !== 0;
  };
}

/** Gives a canvas the pixels of its place on the screen; returns how many make a css pixel. */
export function fit(canvas, ratio = devicePixelRatio) {
  const [width, height] = [canvas.clientWidth, canvas.clientHeight].map((side) => round(side * ratio));
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  return ratio;
}

/** 0 to count - 1 in an order without order, always the same. */
export function shuffle(count) {
  const order = Uint32Array.from({ length: count }, (_, i) => i);
  for (let i = count - 1, seed = 1; i > 0; i--) {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    const j = Math.floor((seed / 2 ** 32) * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

/** The same order, but by levels from 0 to 255; within one level it stays as it was. */
export function ranked(order, levels) {
  const starts = new Uint32Array(257), sorted = new Uint32Array(order.length);
  for (const level of levels) starts[level + 1]++;
  for (let level = 1; level < 257; level++) starts[level] += starts[level - 1];
  for (const i of order) sorted[starts[levels[i]]++] = i;
  return sorted;
}

/** Strokes the path with a casing, which shows on any ground, and writes a label. */
export function outline(context, color, casing, label = "", x = 0, y = 0, width = 2) {
  Object.assign(context, { lineJoin: "round", lineCap: "square", font: "600 12px system-ui, sans-serif", fillStyle: color });
  for (const [strokeStyle, lineWidth] of [[casing, 2.25 * width], [color, width]]) {
    Object.assign(context, { strokeStyle, lineWidth });
    context.stroke();
  }
  Object.assign(context, { strokeStyle: casing, lineWidth: 3 });
  context.strokeText(label, x, y);
  context.fillText(label, x, y);
}

/** A lasso on its way. */
export function loop(context, path, color) {
  if (!path.length) return;
  context.beginPath();
  path.forEach(([x, y]) => context.lineTo(x, y));
  context.closePath();
  Object.assign(context, { fillStyle: color, strokeStyle: color, lineWidth: 1.5, globalAlpha: 0.12 });
  context.fill();
  context.globalAlpha = 1;
  context.setLineDash([5, 4]);
  context.stroke();
  context.setLineDash([]);
}
