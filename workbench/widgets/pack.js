// Reads feature packs (.dfp, see workbench/packfile.py) some rows at a time, and ranks what an engine computes of them.

import { Geometry } from "./geometry.js";

export { createEngine } from "./engine.js";

const MAGIC = [0x89, 0x44, 0x46, 0x50, 0x0d, 0x0a, 0x1a, 0x0a];
const VERSION = 1;
const REQUEST = 1 << 20; // bytes: progress shows on a slow line, and the messages of a notebook stay small
const AGAIN = "copy or download it again";
const TYPES = { float32: Float32Array, int8: Int8Array, uint8: Uint8Array };

/** A reader of a file on a server: ranges where the server knows them, else all of it at once. */
export function urlReader(url) {
  let whole = null;
  return {
    size: null,
    async read(start, end, signal) {
      if (whole) return whole.subarray(start, end);
      const answer = await fetch(url, { headers: { Range: `bytes=${start}-${end - 1}` }, signal });
      if (answer.status === 416) return new Uint8Array(); // the file ends before
      if (!answer.ok) throw new Error(`The server answered ${answer.status} for ${url}.`);
      const bytes = new Uint8Array(await answer.arrayBuffer());
      if (answer.status !== 206) whole = bytes;
      this.size = whole ? whole.length : Number(answer.headers.get("Content-Range")?.split("/")[1]) || null;
      return whole ? whole.subarray(start, end) : bytes;
    },
  };
}

/** A reader of bytes that are here already. */
export function bytesReader(bytes) {
  return { size: bytes.length, read: async (start, end) => bytes.subarray(start, end) };
}

/**
 * The pack behind a reader, all but its codes: `load()` brings those.
 *
 * `previous` is an older version of the same map; codes that did not change are taken from it. Throws an Error of
 * one plain sentence for files that are foreign, damaged or cut.
 */
export async function openPack(reader, { previous = null } = {}) {
  const start = await reader.read(0, 16);
  if (start.length < 16 || MAGIC.some((byte, index) => start[index] !== byte)) {
    throw new Error("This is not a feature pack: the file begins differently.");
  }
  const [version, length] = [8, 12].map((at) => new DataView(start.buffer, start.byteOffset).getUint32(at, true));
  if (version !== VERSION) throw new Error(`The pack has version ${version}; this page reads version ${VERSION}.`);
  const base = 16 + length;
  if (base % 64 || base > 1 << 26) throw damaged("its header has an impossible length");
  const text = new TextDecoder().decode(await read(reader, 16, base)).trimEnd();
  const header = parsed(text);
  const id = await sha256(new TextEncoder().encode(text.replace(`"id":"${header.id}",`, "")));
  if (id && id.slice(0, 16) !== header.id) throw damaged("its header does not match its id");
  if ((reader.size ?? header.bytes) !== header.bytes) {
    throw new Error(`The pack has ${reader.size} bytes and should have ${header.bytes}; ${AGAIN}.`);
  }
  checkBlocks(header, base);
  const front = await read(reader, base, base + header.blocks.codes.offset);
  const blocks = {};
  for (const [name, block] of Object.entries(header.blocks)) {
    if (name === "codes") continue;
    const bytes = front.slice(block.offset, block.offset + block.bytes); // a copy is aligned
    const digest = await sha256(bytes);
    if (digest && digest !== block.sha256) throw damaged(`its block ${name} does not match its checksum`);
    blocks[name] = new TYPES[block.dtype](bytes.buffer);
  }
  const pack = new Pack(reader, header, base, blocks);
  if (previous) pack.takeFrom(previous);
  return pack;
}

/** One map of features. Its `codes` and their `lengths` fill while it loads; a length of 0 says "not here yet". */
class Pack {
  constructor(reader, header, base, blocks) {
    const { id, rows, cols, dim } = header;
    const { offset, crc32: checksums, chunk_rows: chunkRows } = header.blocks.codes;
    Object.assign(this, { reader, header, blocks, id, rows, cols, dim, checksums, chunkRows, start: base + offset });
    this.geometry = new Geometry(header.geometry);
    const grid = [this.geometry.rows, this.geometry.cols];
    if (`${grid}` !== `${[rows, cols]}`) throw damaged("its geometry is that of another grid");
    this.valid = blocks.valid;
    this.scales = blocks.scales; // feature = codes * scale
    this.norms = blocks.norms; // of the features before they were coded
    this.nullSame = blocks.null_same ?? null;
    this.nullOther = blocks.null_other ?? null;
    this.nullDistance = blocks.null_distance ?? null;
    const { basis_mean: mean, basis_components: components, basis_low: low, basis_high: high } = blocks;
    this.basis = mean ? { mean, components, low, high } : null;
    const picture = blocks.preview && new Blob([blocks.preview], { type: "image/jpeg" });
    this.preview = picture ? URL.createObjectURL(picture) : null;
    this.codes = new Int8Array(rows * cols * dim);
    this.lengths = new Float32Array(rows * cols);
    this.here = new Uint8Array(checksums.length); // 1 for each chunk of rows that has arrived
    this.rowsHere = 0;
  }

  get complete() {
    return this.rowsHere === this.rows;
  }

  /** Frees the preview's URL. */
  revoke() {
    if (this.preview) URL.revokeObjectURL(this.preview);
    this.preview = null;
  }

  /** A patch at length one, or null while it is not here. */
  unit(row, col) {
    const cell = row * this.cols + col;
    const codes = this.codes.subarray(cell * this.dim, (cell + 1) * this.dim);
    return this.lengths[cell] ? Float32Array.from(codes, (code) => code / this.lengths[cell]) : null;
  }

  /**
   * Brings the codes that are missing, those nearest to row `first` first.
   *
   * Calls onRows(start, end, done, total), all in rows, for what arrived. Stops when `signal` aborts or a checksum
   * fails; a later call goes on from there.
   */
  async load({ first = 0, onRows = () => {}, signal } = {}) {
    const queue = this.requests(first);
    const worker = async () => {
      try {
        for (let request; (request = queue.shift()); ) await this.fetch(request, onRows, signal);
      } catch (error) {
        queue.length = 0; // stops the other one
        throw error;
      }
    };
    const ends = await Promise.allSettled([worker(), worker()]); // one waits for the line while the other checks
    for (const { reason } of ends) if (reason) throw reason;
  }

  /** Lists of missing chunks, each a request: neighbours go together up to its size. */
  requests(first) {
    const together = Math.max(1, Math.floor(REQUEST / (this.chunkRows * this.cols * this.dim)));
    const chunks = [...this.here.keys()].filter((chunk) => !this.here[chunk]);
    const distance = (chunk) => Math.abs((chunk + 0.5) * this.chunkRows - first - 0.5);
    const groups = [];
    for (const chunk of chunks) (groups[Math.floor(chunk / together)] ??= []).push(chunk);
    const nearest = (group) => Math.min(...group.map(distance));
    return groups.filter(Boolean).sort((a, b) => nearest(a) - nearest(b));
  }

  async fetch(chunks, onRows, signal) {
    signal?.throwIfAborted();
    const size = this.cols * this.dim;
    const from = this.rowsOf(chunks[0])[0] * size;
    const bytes = await read(this.reader, this.start + from, this.start + this.rowsOf(chunks.at(-1))[1] * size, signal);
    for (const chunk of chunks) {
      const [start, end] = this.rowsOf(chunk);
      const part = bytes.subarray(start * size - from, end * size - from);
      if (crc32(part) !== this.checksums[chunk]) {
        throw damaged(`rows ${start} to ${end - 1} do not match their checksum`);
      }
      if (this.here[chunk]) continue;
      const codes = new Int8Array(part.buffer, part.byteOffset, part.length);
      this.codes.set(codes, start * size);
      this.lengths.set(lengthsOf(codes, this.dim), start * this.cols);
      this.arrived(chunk);
      onRows(start, end, this.rowsHere, this.rows);
    }
  }

  takeFrom({ dim, cols, rows, chunkRows, here, checksums, codes, lengths }) {
    if (`${[dim, cols, rows, chunkRows]}` !== `${[this.dim, this.cols, this.rows, this.chunkRows]}`) return;
    for (const chunk of here.keys()) {
      if (!here[chunk] || checksums[chunk] !== this.checksums[chunk]) continue;
      const [start, end] = this.rowsOf(chunk).map((row) => row * cols);
      this.codes.set(codes.subarray(start * dim, end * dim), start * dim);
      this.lengths.set(lengths.subarray(start, end), start);
      this.arrived(chunk);
    }
  }

  /** The first row of a chunk and the row after its last. */
  rowsOf(chunk) {
    return [chunk * this.chunkRows, Math.min((chunk + 1) * this.chunkRows, this.rows)];
  }

  arrived(chunk) {
    const [start, end] = this.rowsOf(chunk);
    this.here[chunk] = 1;
    this.rowsHere += end - start;
  }
}

/** Mean of unit vectors minus mean of unit negatives: the product with it is the mean of the cosines. */
export function queryVector(units, negatives = []) {
  if (!units.length) throw new Error("A map needs a query; negatives alone have nothing to be compared with.");
  const mean = (vectors, d) => vectors.reduce((sum, vector) => sum + vector[d], 0) / (vectors.length || 1);
  return Float32Array.from(units[0], (_, d) => mean(units, d) - mean(negatives, d));
}

/** {percentile, z} of a cosine among sorted references, as core.dense.reference.standing. */
export function standing(value, sorted) {
  if (!sorted.length || Number.isNaN(value)) throw new Error(`Cannot rank ${value} among ${sorted.length} references.`);
  const cosine = Math.fround(value); // ties are found in the precision of the references
  const count = (passes) => {
    let [low, high] = [0, sorted.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (passes(sorted[middle])) low = middle + 1;
      else high = middle;
    }
    return low / sorted.length;
  };
  const percentile = 50 * (count((other) => other < cosine) + count((other) => other <= cosine));
  const mean = sorted.reduce((sum, other) => sum + other, 0) / sorted.length;
  const spread = Math.sqrt(sorted.reduce((sum, other) => sum + (other - mean) ** 2, 0) / sorted.length);
  return { percentile, z: spread > 1e-6 ? (cosine - mean) / spread : NaN };
}

/** The k best cells of a map as [{row, col, cosine}]; `exclude` is a list of cells: core.dense.similarity.top_k. */
export function topK(cosines, { rows, cols, valid }, k, { exclude = [], radius = 0, spacing = 0 } = {}) {
  if (Math.min(k, radius, spacing) < 0) throw new Error("k, radius and spacing count cells and cannot be negative.");
  const free = Uint8Array.from(cosines, (value, cell) => (valid[cell] && !Number.isNaN(value) ? 1 : 0));
  const take = (row, col, reach) => {
    for (let r = Math.max(row - reach, 0); r <= Math.min(row + reach, rows - 1); r++) {
      free.fill(0, r * cols + Math.max(col - reach, 0), r * cols + Math.min(col + reach + 1, cols));
    }
  };
  for (const [row, col] of exclude) take(row, col, radius);
  const matches = [];
  while (matches.length < k) {
    let best = -1;
    for (let cell = 0; cell < free.length; cell++) if (free[cell] && !(cosines[cell] <= cosines[best])) best = cell;
    if (best < 0) break;
    const [row, col] = [Math.floor(best / cols), best % cols];
    matches.push({ row, col, cosine: cosines[best] });
    take(row, col, spacing);
  }
  return matches;
}

/** RGBA colours of a basis, as core.dense.color.to_rgb: padding is black, rows that are not here yet transparent. */
export function pcaColors(engine, pack, { mean, components, low, high }) {
  const colors = new Uint8ClampedArray(4 * pack.lengths.length);
  const scores = new Float32Array(pack.lengths.length);
  for (let channel = 0; channel < 3; channel++) {
    const axis = components.subarray(channel * pack.dim, (channel + 1) * pack.dim);
    const dark = low[channel] + axis.reduce((sum, value, d) => sum + value * mean[d], 0);
    const spread = high[channel] - low[channel];
    engine.dots(pack, axis, scores);
    for (let cell = 0; cell < scores.length; cell++) {
      const share = spread > 0 ? (scores[cell] - dark) / spread : 0.5;
      colors[4 * cell + channel] = pack.valid[cell] ? 255 * share : 0; // clamps, and rounds ties as torch does
      colors[4 * cell + 3] = pack.lengths[cell] ? 255 : 0;
    }
  }
  return colors;
}

/** Bytes of a file, at most a megabyte a request. */
async function read(reader, start, end, signal) {
  const whole = new Uint8Array(end - start);
  for (let at = start; at < end; at += REQUEST) {
    const part = await reader.read(at, Math.min(at + REQUEST, end), signal);
    if (part.length !== Math.min(REQUEST, end - at)) throw new Error(`The pack is cut short; ${AGAIN}.`);
    whole.set(part, at - start);
  }
  return whole;
}

function parsed(text) {
  try {
    const header = JSON.parse(text);
    if (header.format === "gramscope-pack") return header;
  } catch {} // said below
  throw damaged("its header is not that of a pack");
}

function checkBlocks({ bytes, rows, cols, dim, blocks }, base) {
  const expected = { scales: [rows, cols], norms: [rows, cols], valid: [rows, cols], codes: [rows, cols, dim] };
  for (const name of Object.keys(expected)) {
    if (`${blocks?.[name]?.shape}` !== `${expected[name]}`) throw damaged(`its block ${name} does not fit`);
  }
  for (const [name, block] of Object.entries(blocks)) {
    const size = block?.shape?.reduce((product, side) => product * side, TYPES[block.dtype]?.BYTES_PER_ELEMENT);
    const end = name === "codes" ? bytes - base : blocks.codes.offset;
    const fits = size >= 0 && size === block.bytes && block.offset >= 0 && block.offset + size <= end;
    if (!fits) throw damaged(`its block ${name} does not fit`);
  }
  const { crc32, chunk_rows } = blocks.codes;
  if (crc32?.length !== Math.ceil(rows / chunk_rows)) throw damaged("its checksums are not one for each chunk of rows");
}

function damaged(what) {
  return new Error(`The pack is damaged (${what}); ${AGAIN}.`);
}

/** SHA-256 in hex, or null where browsers lend no cryptography: on pages that came by http from another machine. */
async function sha256(bytes) {
  if (!globalThis.crypto?.subtle) return null;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

const CRC_TABLE = Int32Array.from({ length: 256 }, (_, value) => {
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

/** Lengths of vectors; 1 for a zero vector, which is here although its cosine to anything is 0. */
function lengthsOf(codes, dim) {
  const lengths = new Float32Array(codes.length / dim);
  for (let cell = 0, at = 0; cell < lengths.length; cell++) {
    let sum = 0;
    for (let d = 0; d < dim; d++, at++) sum += codes[at] * codes[at];
    lengths[cell] = Math.sqrt(sum) || 1;
  }
  return lengths;
}

function crc32(bytes) {
  let crc = -1;
  for (let at = 0; at < bytes.length; at++) crc = CRC_TABLE[(crc ^ bytes[at]) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}
