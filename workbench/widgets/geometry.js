// Where a patch lies in the photograph, and which patch a pixel belongs to: the twin of core/dense/geometry.py.
//
// Points are [x, y] in pixels of the upright picture, continuous: pixel i covers [i, i + 1). Cells are [row, col].
// Only sums, products, quotients and comparisons of doubles, in the order of the twin, so that both give the same
// bits. Browsers turn photographs upright by themselves, so points of the stored file never appear here.

/** How one picture became a grid of patches: the record of Python's Geometry.to_dict and what follows from it. */
export class Geometry {
  constructor(record) {
    const { stored_width, stored_height, orientation, crop, input_width, input_height, pad, patch_size } = record;
    const sizes = [stored_width, stored_height, input_width, input_height, patch_size];
    const [left, top, right, bottom] = crop ?? [];
    const turned = orientation >= 5; // EXIF: 1 is upright, 5 to 8 swap the sides
    Object.assign(this, {
      ...record,
      width: turned ? stored_height : stored_width,
      height: turned ? stored_width : stored_height,
      cols: (pad?.[0] + input_width + pad?.[2]) / patch_size,
      rows: (pad?.[1] + input_height + pad?.[3]) / patch_size,
    });
    const whole = [...sizes, orientation, this.rows, this.cols, left, top, right, bottom, ...(pad ?? [])];
    const across = 0 <= left && left < right && right <= this.width;
    const down = 0 <= top && top < bottom && bottom <= this.height;
    const known = orientation >= 1 && orientation <= 8 && whole.every(Number.isInteger);
    if (!across || !down || !known || Math.min(...sizes) < 1 || Math.min(...pad) < 0) {
      throw new Error("The geometry's parts do not fit together.");
    }
    Object.freeze(this);
  }
}

/** The cell whose polygon holds a point, or null outside the crop. */
export function pixelToPatch(geometry, x, y) {
  const [row, col] = [cellAt(axis(geometry, 1), y), cellAt(axis(geometry, 0), x)];
  return row === null || col === null ? null : [row, col];
}

/** The four corners of a cell, clockwise from top-left, clipped to the crop. */
export function patchToPolygon(geometry, row, col) {
  const [left, right] = borders(axis(geometry, 0), col, "column");
  const [top, bottom] = borders(axis(geometry, 1), row, "row");
  return [[left, top], [right, top], [right, bottom], [left, bottom]];
}

/** The middle of a cell's polygon: always inside the picture and the cell. */
export function patchCentre(geometry, row, col) {
  const [[left, top], , [right, bottom]] = patchToPolygon(geometry, row, col);
  return [left + (right - left) / 2, top + (bottom - top) / 2];
}

/** The x of the cols + 1 vertical and the y of the rows + 1 horizontal borders, clipped to the crop. */
export function gridLines(geometry) {
  return [0, 1].map((along) => {
    const line = axis(geometry, along);
    return Array.from({ length: line.cells + 1 }, (_, index) => border(line, index));
  });
}

/**
 * Left, top, right, bottom of the whole grid with its padding.
 *
 * Draw a map of rows x cols stretched over this box and clipped to the crop, and every cell covers its patch;
 * stretched over the picture instead, it slips by up to one patch.
 */
export function gridBox(geometry) {
  const ends = ({ start, length, model, pad, cells, patch }) =>
    [0, cells * patch].map((side) => start + ((side - pad) * length) / model);
  const [[left, right], [top, bottom]] = [ends(axis(geometry, 0)), ends(axis(geometry, 1))];
  return [left, top, right, bottom];
}

/** 1 where a cell shows picture and 0 where less than half of its area does; row by row. */
export function validCells(geometry) {
  const [across, down] = [overlaps(axis(geometry, 0)), overlaps(axis(geometry, 1))];
  const full = geometry.patch_size ** 2;
  const fullest = Math.max(...down) * Math.max(...across);
  const measure = 2 * fullest >= full ? full : fullest; // a picture thinner than half a patch fills no cell so far
  return Uint8Array.from(down.flatMap((height) => across.map((width) => Number(2 * height * width >= measure))));
}

/** The cell of b at the centre of a cell of a, or null where b was cropped away. */
export function samePatch(a, row, col, b) {
  if (a.width !== b.width || a.height !== b.height) {
    throw new Error(`Points of a picture of ${a.width}x${a.height} mean nothing in one of ${b.width}x${b.height}.`);
  }
  return pixelToPatch(b, ...patchCentre(a, row, col));
}

/** Which cell of a (as row * a.cols + col) each cell of b takes, row by row: Python's `carried`. */
export function carriedIndex(a, b) {
  const rows = Array.from({ length: b.rows }, (_, row) => samePatch(b, row, 0, a));
  const cols = Array.from({ length: b.cols }, (_, col) => samePatch(b, 0, col, a));
  if ([...rows, ...cols].includes(null)) {
    throw new Error(`Crop ${b.crop} reaches beyond ${a.crop}: there is nothing to carry over.`);
  }
  return Int32Array.from(rows.flatMap(([row]) => cols.map(([, col]) => row * a.cols + col)));
}

/**
 * The point of the picture under a point of the element that shows it, or null beside the picture.
 *
 * x, y and the box are CSS pixels of one source (clientX - rect.left beside rect.width), and `fit` is the element's
 * object-fit, centred. devicePixelRatio does not enter: all of them speak CSS pixels.
 */
export function displayedToPixel(x, y, { box_width, box_height, width, height, fit = "contain" }) {
  const [scaleX, scaleY, left, top] = placement(box_width, box_height, width, height, fit);
  const slack = 1e-6; // of a pixel: rounding at the very rim must not lose the last row
  const within = (value, side) => -slack <= value && value <= side + slack;
  const [pixelX, pixelY] = [(x - left) / scaleX, (y - top) / scaleY];
  if (!within(x, box_width) || !within(y, box_height)) return null;
  if (!within(pixelX, width) || !within(pixelY, height)) return null;
  return [clamp(pixelX, 0, width), clamp(pixelY, 0, height)];
}

/** Where a point of the picture appears in the element, in CSS pixels: the inverse of `displayedToPixel`. */
export function pixelToDisplayed(x, y, { box_width, box_height, width, height, fit = "contain" }) {
  const [scaleX, scaleY, left, top] = placement(box_width, box_height, width, height, fit);
  return [left + x * scaleX, top + y * scaleY];
}

/** The x (0) or y (1) direction of a geometry; the arithmetic along both is the same. */
function axis({ crop, pad, input_width, input_height, cols, rows, patch_size }, along) {
  return {
    start: crop[along],
    length: crop[along + 2] - crop[along],
    model: along ? input_height : input_width,
    pad: pad[along],
    cells: along ? rows : cols,
    patch: patch_size,
  };
}

function border({ start, length, model, pad, patch }, index) {
  return start + (clamp(index * patch - pad, 0, model) * length) / model; // clipped as integers: both ends stay exact
}

/** The first and the last cell that show picture. */
function shown({ model, pad, patch }) {
  return [Math.floor(pad / patch), Math.floor((pad + model - 1) / patch)];
}

function cellAt(line, value) {
  const { start, length, model, pad, patch } = line;
  if (!(start <= value && value <= start + length)) return null;
  const [first, last] = shown(line);
  const cell = clamp(Math.floor((((value - start) * model) / length + pad) / patch), first, last);
  // The quotient may round across a border; the borders that the polygons have decide.
  if (value < border(line, cell)) return cell - 1;
  return cell < last && value >= border(line, cell + 1) ? cell + 1 : cell;
}

function borders(line, index, name) {
  const [first, last] = shown(line);
  if (!(first <= index && index <= last)) {
    throw new Error(`No picture in ${name} ${index}; choose ${first} to ${last}.`);
  }
  return [border(line, index), border(line, index + 1)];
}

/** Model pixels of picture in every cell along one direction. */
function overlaps({ model, pad, cells, patch }) {
  return Array.from({ length: cells }, (_, index) => {
    const start = index * patch;
    return Math.max(0, Math.min(start + patch, pad + model) - Math.max(start, pad));
  });
}

/** CSS pixels per pixel of the picture along x and y, and the picture's top-left corner in the element. */
function placement(boxWidth, boxHeight, width, height, fit) {
  if (!(Math.min(boxWidth, boxHeight, width, height) > 0)) {
    throw new Error(`An element of ${boxWidth}x${boxHeight} shows nothing of a picture of ${width}x${height}.`);
  }
  let [scaleX, scaleY] = [boxWidth / width, boxHeight / height];
  if (fit === "contain") scaleX = scaleY = Math.min(scaleX, scaleY);
  else if (fit === "cover") scaleX = scaleY = Math.max(scaleX, scaleY);
  else if (fit !== "fill") throw new Error(`No object-fit called ${fit}; known: contain, cover, fill.`);
  return [scaleX, scaleY, (boxWidth - width * scaleX) / 2, (boxHeight - height * scaleY) / 2];
}

function clamp(value, low, high) {
  return value < low ? low : value > high ? high : value;
}
