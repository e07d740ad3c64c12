// Puts the view of workbench/widgets into the page: Gradio's value is its state, the server's files are its packs.
// MODULES, the folder of the views' modules, ENTRY, the one of this view, and FOLLOWS, whether it follows the address of
// the page, stand before this: a component that was hidden gets no other properties than its value.
const base = document.baseURI.split(/[?#]/)[0];
const served = (path) => new URL(`gradio_api/file=${path}`, base).href;
const place = element.querySelector(".gs-place");
const listeners = {};
let told = JSON.parse(JSON.stringify(props.value ?? { packs: [], state: {} }));

const call = (name) => (listeners[name] ?? []).forEach((callback) => callback());
const host = (urlReader) => ({
  kind: "app",
  ...(FOLLOWS ? {} : { address: "" }),
  state: {
    get: (name) => (name === "pack_ids" ? told.packs.map((pack) => pack.id) : told.state[name]),
    set: (name, value) => {
      told = { ...told, state: { ...told.state, [name]: value } };
      props.value = told;
      call(name);
      if (name === "asked") trigger("submit", told.state); // what only the server can answer
    },
    on: (name, callback) => {
      (listeners[name] ??= []).push(callback);
      return () => listeners[name].splice(listeners[name].indexOf(callback), 1);
    },
  },
  blob: async (name) => {
    const answer = await fetch(served(told.blobs[name]));
    if (!answer.ok) throw new Error("The server has let go of this clip; choose it again.");
    return new Uint8Array(await answer.arrayBuffer());
  },
  reader: (id) => urlReader(served(told.packs.find((pack) => pack.id === id).path)),
});

// The server sends packs and what it decides about the state; what it does not name stays as the visitor left it.
watch("value", () => {
  const next = JSON.parse(JSON.stringify(props.value ?? told));
  const before = told;
  told = { packs: next.packs, blobs: { ...before.blobs, ...next.blobs }, state: { ...before.state, ...next.state } };
  const names = new Set([...Object.keys(before.state), ...Object.keys(told.state)]);
  for (const name of names) if (JSON.stringify(before.state[name]) !== JSON.stringify(told.state[name])) call(name);
  if (JSON.stringify(before.packs) !== JSON.stringify(told.packs)) call("pack_ids");
});

Promise.all([import(served(`${MODULES}/${ENTRY}`)), import(served(`${MODULES}/pack.js`))]).then(
  ([{ mount }, { urlReader }]) => {
    element.view = mount(place, host(urlReader));
  },
  (error) => (place.textContent = `The view cannot start: ${error.message}. Let the server draw instead.`),
);
