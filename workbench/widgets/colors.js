/** Colour maps, the same ones as in workbench/draw.py: perceptually even first, the last one for signed maps. */

const ANCHORS = {
  viridis: "440154 482878 3e4989 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725",
  cividis: "00224e 123570 3b496c 575d6d 707173 8a8678 a59c74 c3b369 e1cc55 fee838",
  magma: "000004 180f3d 440f76 721f81 9e2f7f cd4071 f1605d fd9668 feca8d fcfdbf",
  "blue-white-red": "053061 2166ac 4393c3 92c5de d1e5f0 f7f7f7 fddbc7 f4a582 d6604d b2182b 67001f",
};

export const COLORMAPS = Object.keys(ANCHORS);

const tables = {};

/** The 256 colours of a map as 768 bytes. */
export function lookup(name) {
  if (!(name in ANCHORS)) throw new Error(`no colour map called ${name}; known: ${COLORMAPS.join(", ")}`);
  if (tables[name]) return tables[name];
  const anchors = ANCHORS[name].split(" ").map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  const table = new Uint8Array(768);
  for (let index = 0; index < 256; index++) {
    const place = (index / 255) * (anchors.length - 1);
    const before = Math.min(Math.floor(place), anchors.length - 2);
    for (let channel = 0; channel < 3; channel++) {
      const [a, b] = [anchors[before][channel], anchors[before + 1][channel]];
      table[index * 3 + channel] = Math.round(a + (b - a) * (place - before));
    }
  }
  return (tables[name] = table);
}

/** A colour map as the value of a CSS gradient, left to right. */
export function gradient(name) {
  const table = lookup(name);
  const stops = Array.from({ length: 18 }, (_, index) => `rgb(${table.slice(index * 45, index * 45 + 3).join(" ")})`);
  return `linear-gradient(to right, ${stops.join(", ")})`;
}
