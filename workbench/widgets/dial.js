/**
 * The collapse dial: what a map would look like with one fault or another, as a simulation in the page.
 *
 *   simulate(pack, {cls, noise, place}) -> a pack for engine and views; with all three at 0 the pack itself
 *   measures(pack) -> {name: value} of metrics that answer while a dial is being turned
 *
 * cls draws every patch to the CLS token: (1 - a) x + a c, all at length one. noise adds a direction of its own to every
 * patch, place one that changes smoothly over the picture and says nothing of it; both are the same every time.
 */

const WAVES = 6; // of the field that depends on the place alone
const LEVELS = 127; // of an int8

export function simulate(pack, { cls = 0, noise = 0, place = 0 }) {
  if (!(cls || noise || place)) return pack;
  const key = [cls, noise, place].join(), kept = made.get(pack);
  if (kept?.key === key) return kept.pack;
  const { rows, cols, dim } = pack, token = unitToken(pack);
  const codes = new Int8Array(rows * cols * dim), lengths = new Float32Array(rows * cols);
  const noises = noise ? directions(pack, "noise", 1) : null, field = place ? directions(pack, "field", 2) : null;
  const x = new Float64Array(dim);
  for (let cell = 0; cell < rows * cols; cell++) {
    const start = cell * dim, own = pack.lengths[cell];
    if (!own) continue;
    for (let d = 0; d < dim; d++) {
      const value = ((1 - cls) * pack.codes[start + d]) / own + (token ? cls * token[d] : 0);
      x[d] = value + (noises ? noise * noises[start + d] : 0) + (field ? place * field[start + d] : 0);
    }
    const most = x.reduce((high, value) => Math.max(high, Math.abs(value)), 0) || 1;
    let sum = 0;
    for (let d = 0; d < dim; d++) {
      const code = Math.round((x[d] / most) * LEVELS);
      codes[start + d] = code;
      sum += code * code;
    }
    lengths[cell] = Math.sqrt(sum);
  }
  // A pack of its own for the engine, which keeps what it was given by pack; all else is the old one's.
  const turned = Object.assign(Object.create(pack), { codes, lengths, id: `${pack.id} ${key}`, simulated: true });
  turned.hollow = undefined;
  made.set(pack, { key, pack: turned, former: kept?.pack });
  return turned;
}

/** Numbers from 0 to below 1, the same every time for a seed: a linear congruential generator of 48 bits, POSIX's. */
function random(seed) {
  let [high, low] = [seed, 0x330e]; // 32 and 16 bits
  return () => {
    const product = low * 0xe66d + 0xb;
    high = (Math.imul(high, 0xdeece66d) + Math.imul(low, 0x5deec) + Math.floor(product / 65536)) >>> 0;
    low = product % 65536;
    return high / 2 ** 32;
  };
}

const made = new WeakMap(); // pack -> what was simulated last
const drawn = new WeakMap(); // pack -> directions that were drawn for it

/** The CLS token at length one, in the space of the codes; null where the pack has none. */
export function unitToken({ blocks }) {
  const token = blocks.cls;
  if (!token || token.some((value) => value !== value)) return null;
  const length = Math.hypot(...token);
  return length ? token.map((value) => value / length) : null;
}

/** A direction of length one for every patch: its own (noise), or one that follows the place (field). */
function directions(pack, kind, seed) {
  const kept = drawn.get(pack) ?? {};
  drawn.set(pack, kept);
  if (kept[kind]) return kept[kind];
  const { rows, cols, dim } = pack, next = random(seed), normal = () => Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next());
  const whole = new Float32Array(rows * cols * dim);
  const waves = Array.from({ length: kind === "field" ? WAVES : 0 }, () => ({
    across: (next() - 0.5) * 4, down: (next() - 0.5) * 4, phase: next() * 2 * Math.PI, axis: Float64Array.from({ length: dim }, normal),
  }));
  for (let cell = 0; cell < rows * cols; cell++) {
    const vector = whole.subarray(cell * dim, (cell + 1) * dim);
    const [down, right] = [Math.floor(cell / cols) / rows, (cell % cols) / cols];
    if (kind === "noise") for (let d = 0; d < dim; d++) vector[d] = normal();
    for (const { across, down: fall, phase, axis } of waves) {
      const swing = Math.sin(Math.PI * (across * right + fall * down) + phase);
      for (let d = 0; d < dim; d++) vector[d] += swing * axis[d];
    }
    const length = Math.hypot(...vector) || 1;
    for (let d = 0; d < dim; d++) vector[d] /= length;
  }
  return (kept[kind] = whole);
}

/**
 * Metrics of core/dense/degradation.py by their names there, from the codes: CLS-patch cosine (null without a CLS token),
 * LDS, RMSC and the mean cosine. O(patches x channels), but for LDS times the rows of what counts as near.
 */
export function measures(pack) {
  const { rows, cols, dim, valid, lengths, codes } = pack, token = unitToken(pack);
  const cells = [...lengths.keys()].filter((cell) => valid[cell] && lengths[cell]), count = cells.length;
  const sum = new Float64Array(dim);
  let towards = 0, squares = 0;
  for (const cell of cells) {
    const start = cell * dim, scale = 1 / lengths[cell];
    for (let d = 0; d < dim; d++) {
      const value = codes[start + d] * scale;
      sum[d] += value;
      squares += value * value;
      if (token) towards += value * token[d];
    }
  }
  const all = sum.reduce((total, value) => total + value * value, 0);
  return {
    cls_patch_cosine: token ? towards / count : null,
    local_distant: localDistant(pack, all, count),
    spatial_contrast: Math.sqrt(Math.max(1 - all / count ** 2, 0)),
    mean_cosine: (all - squares) / (count * (count - 1)),
  };
}

/** Mean cosine of patches that touch minus that of patches at least 6/16 of the side apart; null where there are none. */
function localDistant({ rows, cols, dim, valid, lengths, codes }, all, count) {
  const far = Math.ceil((6 * Math.sqrt(rows * cols)) / 16 - 1e-9);
  const here = (row, col) => row >= 0 && row < rows && col >= 0 && col < cols && valid[row * cols + col] && lengths[row * cols + col];
  // Of every row the running sums of unit patches and of their number, so that a part of a row is one difference.
  const width = cols + 1, running = new Float32Array(rows * width * dim), numbers = new Int32Array(rows * width);
  for (let row = 0; row < rows; row++) {
    for (let col = 0; col < cols; col++) {
      const from = (row * width + col) * dim, to = from + dim, cell = row * cols + col, there = here(row, col);
      numbers[row * width + col + 1] = numbers[row * width + col] + (there ? 1 : 0);
      for (let d = 0; d < dim; d++) running[to + d] = running[from + d] + (there ? codes[cell * dim + d] / lengths[cell] : 0);
    }
  }
  /** Sum of cosines over ordered pairs closer than `reach`, a patch with itself included, and how many they are. */
  const within = (reach) => {
    let total = 0, pairs = 0;
    for (let row = 0; row < rows; row++) {
      for (let col = 0; col < cols; col++) {
        if (!here(row, col)) continue;
        const cell = row * cols + col, start = cell * dim, scale = 1 / lengths[cell];
        for (let other = Math.max(row - reach + 1, 0); other < Math.min(row + reach, rows); other++) {
          const half = reach - 1 - Math.abs(other - row);
          const [left, right] = [Math.max(col - half, 0), Math.min(col + half + 1, cols)];
          const [from, to] = [(other * width + left) * dim, (other * width + right) * dim];
          let sum = 0;
          for (let d = 0; d < dim; d++) sum += codes[start + d] * (running[to + d] - running[from + d]);
          total += sum * scale;
          pairs += numbers[other * width + right] - numbers[other * width + left];
        }
      }
    }
    return [total, pairs];
  };
  const [self, selves] = within(1), [near, touching] = within(2), [close, many] = within(far);
  const apart = count * count - many;
  if (far < 2 || apart <= 0 || touching <= selves) return null;
  return (near - self) / (touching - selves) - (all - close) / apart;
}
