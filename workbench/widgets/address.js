/** A view as the end of an address, and back: twins of encode_view, decode_view and packs_of in workbench/views.py. */

/** A record as deflated JSON in base64 without + and /. */
export async function encodeView(record) {
  const stream = new Blob([JSON.stringify(record)]).stream().pipeThrough(new CompressionStream("deflate-raw"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/** The record that `encodeView` wrote; Error with a sentence for anything else. */
export async function decodeView(text) {
  let record = null;
  try {
    const letters = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
    const bytes = Uint8Array.from(letters, (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
    record = JSON.parse(await new Response(stream).text());
  } catch {
    // what is no record is refused below
  }
  const { packs, state } = record ?? {};
  if (packs?.length && packs.every((pack) => pack?.id) && state && typeof state === "object") return record;
  throw new Error("This address holds no view, or only a part of one: copy it again, to its end.");
}

/** What features a pack holds: enough to make them again from the photograph. */
export function factsOf({ header, geometry }) {
  const { model, picture, layer, norm } = header;
  const size = Math.max(geometry.input_width, geometry.input_height);
  return { picture: picture.digest, model: model.name, weights: model.weights, layer, norm, size };
}

/**
 * The packs that a record names, in its order: these, or others of the same features.
 *
 * Error with a sentence about those that are missing, and how to build them.
 */
export function packsOf(record, packs) {
  const same = (wanted) => (pack) => {
    const facts = factsOf(pack); // a pack of unknown picture or weights is like no other
    const known = facts.picture && facts.weights && !pack.header.reduced;
    return known && Object.keys(facts).every((name) => facts[name] === wanted[name]);
  };
  const found = record.packs.map((wanted) => packs.find(({ id }) => id === wanted.id) ?? packs.find(same(wanted)));
  const python = (value) => ({ true: "True", false: "False", null: "None" })[value] ?? value;
  const lost = record.packs.filter((_, index) => !found[index]).map(({ id, picture, model, size, layer, norm }) =>
    `the pack ${id} is missing: make it from the photograph with the digest ${python(picture)} by ` +
    `make_pack(look_at(photo, load('${model}'), size=${size}, layer=${python(layer)}, norm=${python(norm)}))`);
  if (lost.length) throw new Error(lost.join("; "));
  return found;
}
