/** Sums over the matrix of cosines between patches that never need the matrix, and orders for its rows. */

/**
 * Means of unit vectors over `side` blocks of a list of patches (indices), as a matrix side x dim. Blocks follow each
 * other and differ in length by one at most.
 */
export function blockMeans(pack, cells, side) {
  const { codes, lengths, dim } = pack, means = new Float32Array(side * dim);
  for (let block = 0; block < side; block++) {
    const [from, to] = [block, block + 1].map((edge) => Math.floor((edge * cells.length) / side));
    const sum = means.subarray(block * dim, (block + 1) * dim);
    for (let at = from; at < to; at++) {
      const scale = 1 / (lengths[cells[at]] * (to - from)), start = cells[at] * dim;
      for (let d = 0; d < dim; d++) sum[d] += codes[start + d] * scale;
    }
  }
  return means;
}

/** Products of all rows with one another: side x side, symmetric. The mean cosine of two blocks, if rows are their means. */
export function grams(rows, side) {
  const dim = rows.length / side, values = new Float32Array(side * side);
  for (let i = 0; i < side; i++) {
    for (let j = 0; j <= i; j++) {
      let sum = 0;
      for (let d = 0, a = i * dim, b = j * dim; d < dim; d++) sum += rows[a + d] * rows[b + d];
      values[i * side + j] = values[j * side + i] = sum;
    }
  }
  return values;
}

/**
 * How much each row of one matrix of cosines differs from that of another: root mean square over its entries.
 *
 * With a_i and b_i the unit patches, the sum over j of (a_i.a_j - b_i.b_j)^2 is a_i' A a_i + b_i' B b_i - 2 a_i' C b_i,
 * where A, B and C are the second moments of both and across both: no matrix of patches by patches is needed.
 */
export function changes(pack, cells, other, theirs) {
  const [a, b] = [units(pack, cells), units(other, theirs)], count = cells.length;
  const [n, m] = [pack.dim, other.dim];
  const [aa, bb, ab] = [moments(a, n, a, n, count), moments(b, m, b, m, count), moments(a, n, b, m, count)];
  return Float32Array.from({ length: count }, (_, i) => {
    const [x, y] = [a.subarray(i * n, (i + 1) * n), b.subarray(i * m, (i + 1) * m)];
    const sum = form(x, aa, x) + form(y, bb, y) - 2 * form(x, ab, y);
    return Math.sqrt(Math.max(sum, 0) / count);
  });
}

function units(pack, cells) {
  const { codes, lengths, dim } = pack, rows = new Float64Array(cells.length * dim);
  cells.forEach((index, at) => {
    for (let d = 0; d < dim; d++) rows[at * dim + d] = codes[index * dim + d] / lengths[index];
  });
  return rows;
}

/** Sum over rows of the outer products: n x m. */
function moments(a, n, b, m, count) {
  const sums = new Float64Array(n * m);
  for (let at = 0; at < count; at++) {
    for (let i = 0; i < n; i++) {
      const x = a[at * n + i];
      for (let j = 0, to = i * m, from = at * m; j < m; j++) sums[to + j] += x * b[from + j];
    }
  }
  return sums;
}

/** x' M y. */
function form(x, matrix, y) {
  let sum = 0;
  for (let i = 0; i < x.length; i++) {
    let row = 0;
    for (let j = 0, at = i * y.length; j < y.length; j++) row += matrix[at + j] * y[j];
    sum += x[i] * row;
  }
  return sum;
}

/** Patches along a Hilbert curve over the grid: neighbours on the photo stay neighbours in the matrix, mostly. */
export function hilbertOrder(cells, { rows, cols }) {
  let side = 1;
  while (side < Math.max(rows, cols)) side *= 2;
  const along = new Map([...cells].map((index) => [index, hilbert(side, index % cols, Math.floor(index / cols))]));
  return { cells: cells.slice().sort((a, b) => along.get(a) - along.get(b)) };
}

/** Where a cell lies along the Hilbert curve through a square of `side` cells, a power of two. */
function hilbert(side, x, y) {
  let place = 0;
  for (let half = side / 2; half >= 1; half /= 2) {
    const [right, down] = [(x & half) > 0 ? 1 : 0, (y & half) > 0 ? 1 : 0];
    place += half * half * ((3 * right) ^ down);
    if (!down) {
      if (right) [x, y] = [half - 1 - (x & (half - 1)), half - 1 - (y & (half - 1))];
      else [x, y] = [x & (half - 1), y & (half - 1)];
      [x, y] = [y, x];
    } else [x, y] = [x & (half - 1), y & (half - 1)];
  }
  return place;
}

/**
 * Patches by cluster, the largest first, and where each begins: k-means on the sphere, started from patches that are
 * far from one another, so that the same map gives the same clusters.
 */
export function clusterOrder(cells, pack, clusters) {
  const { dim } = pack, rows = units(pack, cells), count = cells.length, most = Math.min(clusters, count);
  const dot = (at, centre) => {
    let sum = 0;
    for (let d = 0; d < dim; d++) sum += rows[at * dim + d] * centre[d];
    return sum;
  };
  const row = (at) => rows.slice(at * dim, (at + 1) * dim);
  const centres = [row(0)], nearest = new Float64Array(count).fill(-Infinity);
  while (centres.length < most) {
    let far = 0;
    for (let at = 0; at < count; at++) {
      nearest[at] = Math.max(nearest[at], dot(at, centres.at(-1)));
      if (nearest[at] < nearest[far]) far = at;
    }
    centres.push(row(far));
  }
  const own = new Int32Array(count);
  for (let round = 0; round < 12; round++) {
    let moved = 0;
    for (let at = 0; at < count; at++) {
      const scores = centres.map((centre) => dot(at, centre)), best = scores.indexOf(Math.max(...scores));
      if (best !== own[at]) (own[at] = best), moved++;
    }
    if (!moved && round) break;
    centres.forEach((centre, number) => {
      const sum = new Float64Array(dim);
      for (let at = 0; at < count; at++) if (own[at] === number) for (let d = 0; d < dim; d++) sum[d] += rows[at * dim + d];
      const length = Math.hypot(...sum);
      if (length) for (let d = 0; d < dim; d++) centre[d] = sum[d] / length;
    });
  }
  const sizes = centres.map((_, number) => own.reduce((sum, of) => sum + (of === number), 0));
  const order = [...sizes.keys()].sort((a, b) => sizes[b] - sizes[a]);
  const rank = new Map(order.map((number, at) => [number, at]));
  const sorted = [...cells.keys()].sort((a, b) => rank.get(own[a]) - rank.get(own[b]) || a - b);
  let place = 0;
  const bounds = order.map((number) => (place += sizes[number])).filter((bound) => bound > 0 && bound < count);
  return { cells: Int32Array.from(sorted, (at) => cells[at]), bounds };
}
