// What travels with every widget: it asks the kernel for the modules of the view, once a page, and lends the view
// what it needs of its host. The view itself stays out of the notebook's file.

const pages = (globalThis[Symbol.for("gramscope.modules")] ??= new Map());

/** The entry module of `modules` ([{name, source}], each after those it imports), loaded once for equal sources. */
export function loadModules(modules, key = modules.map((module) => module.source).join("\n")) {
  if (!pages.has(key)) {
    const urls = {};
    for (const { name, source } of modules) {
      const text = source.replace(/(from\s*)"\.\/([\w.]+)"/g, (_, from, other) => `${from}"${urls[other]}"`);
      urls[name] = URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
    }
    pages.set(key, import(urls[modules.at(-1).name]));
  }
  return pages.get(key);
}

const PART = 4 << 20; // bytes of one message: some hosts cut a connection that sends more at once

/**
 * Questions to the kernel, each with its answer, however late: it is busy for as long as cells run. `silent` is called
 * when nothing has been heard for `patience` milliseconds, `heard` with every answer.
 */
function channel(model, { silent, heard, patience = 3000 }) {
  const waiting = new Map();
  const own = Math.random().toString(36).slice(2); // several views of one widget hear every message
  let count = 0, timer = null;
  const watch = () => {
    clearTimeout(timer);
    if (waiting.size) timer = setTimeout(silent, patience);
  };
  const hear = (content, buffers) => {
    if (content.view !== own || !waiting.has(content.id)) return;
    waiting.get(content.id)({ ...content, buffers });
    waiting.delete(content.id);
    watch();
    heard();
  };
  model.on("msg:custom", hear);
  const ask = (question) =>
    new Promise((resolve) => {
      waiting.set(++count, resolve);
      model.send({ ...question, id: count, view: own });
      watch();
    });
  return { ask, close: () => (clearTimeout(timer), model.off("msg:custom", hear)) };
}

const bytes = (buffer) =>
  buffer instanceof ArrayBuffer ? new Uint8Array(buffer) : new Uint8Array(buffer.buffer, buffer.byteOffset, buffer.byteLength);

async function answered(ask, question) {
  const answer = await ask(question);
  if (answer.error) throw new Error(answer.error);
  return bytes(answer.buffers[0]);
}

function hostOf(model, ask) {
  return {
    kind: "notebook",
    state: {
      get: (name) => model.get(name),
      set: (name, value) => (model.set(name, value), model.save_changes()),
      on: (name, callback) => {
        model.on(`change:${name}`, callback);
        return () => model.off(`change:${name}`, callback);
      },
    },
    blob: (name) => answered(ask, { kind: "blob", name }),
    reader: (pack) => ({
      size: null,
      async read(start, end) {
        if (end - start <= PART) return answered(ask, { kind: "read", pack, start, end });
        const whole = new Uint8Array(end - start);
        for (let at = start; at < end; at += PART)
          whole.set(await answered(ask, { kind: "read", pack, start: at, end: Math.min(at + PART, end) }), at - start);
        return whole;
      },
    }),
  };
}

const WAITING = "Waiting for the kernel. If none is running, run the cell to bring this view to life.";

export default {
  render({ model, el }) {
    const status = document.createElement("div");
    el.append(status);
    let view = null, gone = false;
    const silent = () => (status.textContent = WAITING);
    const heard = () => {
      status.textContent = "";
      if (!view) return;
      for (const still of document.querySelectorAll(`img.gramscope-still[title="${model.get("_still")}"]`))
        (still.closest(".jp-OutputArea-child") ?? still).style.display = "none"; // the view takes its place
    };
    const { ask, close } = channel(model, { silent, heard });
    const show = async () => {
      const key = model.get("_modules");
      if (!pages.has(key)) loadModules((await ask({ kind: "modules" })).modules, key);
      const { mount } = await pages.get(key);
      if (!gone) view = mount(el, hostOf(model, ask));
    };
    show().catch((error) => (status.textContent = error.message));
    return () => ((gone = true), view?.destroy(), close());
  },
};
