// What computes cosine maps of a pack in the page, by the best means there are.
//
// A map is one product of every patch with the query. WebGL2 computes it on a real GPU, WASM SIMD where WebGL2 is only
// emulated (and several times slower), and plain typed arrays where there is neither.

const ENGINES = { webgl2, wasm, arrays }; // the first that runs here is taken

/**
 * What computes maps: the best of the engines here ("auto"), or the best from the named one on.
 *
 * `name` says which it became and `why` the reason; both change when the GPU is taken away.
 */
export function createEngine(prefer = "auto") {
  const names = Object.keys(ENGINES);
  const known = ["auto", ...names];
  if (!known.includes(prefer)) throw new Error(`No engine called ${prefer}; known: ${known.join(", ")}.`);
  const left = names.slice(Math.max(0, names.indexOf(prefer)));
  const reasons = [];
  let [engine, maps] = [];

  const attempt = (step) => {
    try {
      return step();
    } catch (error) {
      if (!(error instanceof Unavailable)) throw error;
      reasons.push(error.message);
      engine = null;
    }
  };
  const choose = () => {
    while (!engine) engine = attempt(() => ENGINES[left.shift()](prefer));
    maps = new WeakMap(); // pack -> its form in this engine
  };
  choose();

  /** The engine's form of a pack, with every row that has arrived. */
  const current = (pack) => {
    if (!maps.has(pack)) maps.set(pack, { ...engine.open(pack), rows: 0, sent: new Uint8Array(pack.here.length) });
    const map = maps.get(pack);
    for (let chunk = 0; map.rows < pack.rowsHere; chunk++) {
      if (map.sent[chunk] === pack.here[chunk]) continue;
      const [start, end] = pack.rowsOf(chunk);
      map.upload(start, end);
      map.sent[chunk] = 1;
      map.rows += end - start;
    }
    return map;
  };
  const products = (pack, vector, out) => {
    if (vector.length !== pack.dim || out.length !== pack.lengths.length) {
      throw new Error(`A map of this pack needs ${pack.dim} channels and room for ${pack.lengths.length} values.`);
    }
    while (!attempt(() => (current(pack).dots(vector, out), true))) choose();
  };

  return {
    get name() {
      return engine.name;
    },
    get why() {
      return [...reasons, engine.why].join(" ");
    },

    /** Cosines of every patch to a query; NaN in padding and where it is not here yet. */
    cosines(pack, query, out, { limit = 1 } = {}) {
      products(pack, query, out);
      const { lengths, valid } = pack;
      for (let cell = 0; cell < out.length; cell++) {
        const value = out[cell] / lengths[cell];
        out[cell] = !valid[cell] || !lengths[cell] ? NaN : value > limit ? limit : value < -limit ? -limit : value;
      }
      return out;
    },

    /** Products of every feature with a vector; NaN where it is not here yet. */
    dots(pack, vector, out) {
      products(pack, vector, out);
      const { lengths, scales } = pack;
      for (let cell = 0; cell < out.length; cell++) out[cell] = lengths[cell] ? out[cell] * scales[cell] : NaN;
      return out;
    },

    /** Frees what the engine holds of a pack. */
    release(pack) {
      maps.get(pack)?.close?.();
      maps.delete(pack);
    },
  };
}

/** Why an engine cannot run here, in a sentence; the next one is tried. */
class Unavailable extends Error {}

const TRIANGLE = `#version 300 es
void main() { gl_Position = vec4(gl_VertexID == 1 ? 3 : -1, gl_VertexID == 2 ? 3 : -1, 0, 1); }`;

const PRODUCTS = `#version 300 es
precision highp float;
precision highp int;
uniform highp isampler2DArray codes;  // 16 channels a texel: 4096 fit the 256 layers that every WebGL2 has
uniform int layers;
layout(std140) uniform Query { vec4 query[1024]; };
out vec4 color;

vec4 channels(int word) {  // 2^24 times too large: that saves a shift for each
  return vec4(ivec4(word) << ivec4(24, 16, 8, 0) & ~0xffffff);
}

void main() {
  vec4 sum = vec4(0);
  for (int layer = 0; layer < layers; layer++) {
    ivec4 words = texelFetch(codes, ivec3(gl_FragCoord.xy, layer), 0);
    int at = 4 * layer;
    sum += channels(words.x) * query[at] + channels(words.y) * query[at + 1]
         + channels(words.z) * query[at + 2] + channels(words.w) * query[at + 3];
  }
  // The bits of the float as a colour: every WebGL2 draws and reads those, but floats only with an extension.
  uint bits = floatBitsToUint(dot(sum, vec4(1)) / 16777216.0);
  color = vec4(uvec4(bits, bits >> 8, bits >> 16, bits >> 24) & 255u) / 255.0;
}`;

const programs = new WeakMap(); // context -> what it needs besides the packs

function webgl2(prefer) {
  const key = Symbol.for("gramscope.gl"); // one context for all views of a page: browsers allow few
  if (globalThis[key]?.isContextLost()) delete globalThis[key];
  globalThis[key] ??= document.createElement("canvas").getContext("webgl2", { antialias: false, depth: false });
  const gl = globalThis[key];
  const lost = () => {
    if (gl.isContextLost()) throw new Unavailable("The GPU was taken away.");
  };
  if (!gl) throw new Unavailable("This browser has no WebGL2.");
  lost();
  const info = gl.getExtension("WEBGL_debug_renderer_info");
  const renderer = gl.getParameter(info ? info.UNMASKED_RENDERER_WEBGL : gl.RENDERER);
  if (prefer === "auto" && /swiftshader|llvmpipe|softpipe|basic render/i.test(renderer)) {
    throw new Unavailable(`WebGL2 is only emulated here, by ${renderer}.`);
  }
  if (!programs.has(gl)) programs.set(gl, linked(gl));
  const { program, layers, buffer } = programs.get(gl);

  const open = ({ rows, cols, dim, codes }) => {
    lost();
    const depth = Math.ceil(dim / 16);
    if (Math.max(rows, cols) > gl.getParameter(gl.MAX_TEXTURE_SIZE) || depth > 256) {
      throw new Unavailable(`A map of ${rows} x ${cols} x ${dim} is too large for WebGL2.`);
    }
    const [texture, target, frame] = [gl.createTexture(), gl.createRenderbuffer(), gl.createFramebuffer()];
    gl.bindTexture(gl.TEXTURE_2D_ARRAY, texture);
    gl.texStorage3D(gl.TEXTURE_2D_ARRAY, 1, gl.RGBA32I, cols, rows, depth);
    for (const filter of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) {
      gl.texParameteri(gl.TEXTURE_2D_ARRAY, filter, gl.NEAREST);
    }
    gl.bindRenderbuffer(gl.RENDERBUFFER, target);
    gl.renderbufferStorage(gl.RENDERBUFFER, gl.RGBA8, cols, rows);
    gl.bindFramebuffer(gl.FRAMEBUFFER, frame);
    gl.framebufferRenderbuffer(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.RENDERBUFFER, target);
    const room = () => {
      if (gl.getError() === gl.OUT_OF_MEMORY) throw new Unavailable("The GPU's memory is full.");
    };
    room();
    return {
      upload(start, end) {
        const words = new Int32Array(padded(codes, dim, start * cols, end * cols).buffer);
        const turned = new Int32Array(words.length); // from patch by patch to layer by layer
        for (let layer = 0, to = 0; layer < depth; layer++) {
          for (let from = 4 * layer; from < words.length; from += 4 * depth) {
            for (let word = 0; word < 4; word++) turned[to++] = words[from + word];
          }
        }
        const box = [0, start, 0, cols, end - start, depth];
        gl.bindTexture(gl.TEXTURE_2D_ARRAY, texture);
        gl.texSubImage3D(gl.TEXTURE_2D_ARRAY, 0, ...box, gl.RGBA_INTEGER, gl.INT, turned);
        room();
      },
      dots(vector, out) {
        gl.useProgram(program);
        gl.uniform1i(layers, depth);
        gl.bindTexture(gl.TEXTURE_2D_ARRAY, texture);
        gl.bindBufferBase(gl.UNIFORM_BUFFER, 0, buffer);
        gl.bufferSubData(gl.UNIFORM_BUFFER, 0, padded(vector, dim, 0, 1));
        gl.bindFramebuffer(gl.FRAMEBUFFER, frame);
        gl.viewport(0, 0, cols, rows);
        gl.drawArrays(gl.TRIANGLES, 0, 3);
        const bytes = new Uint8Array(out.buffer, out.byteOffset, out.byteLength);
        gl.readPixels(0, 0, cols, rows, gl.RGBA, gl.UNSIGNED_BYTE, bytes);
        lost();
      },
      close() {
        gl.deleteTexture(texture);
        gl.deleteRenderbuffer(target);
        gl.deleteFramebuffer(frame);
      },
    };
  };
  return { name: "WebGL2", why: `Maps are computed by ${renderer}.`, open };
}

function linked(gl) {
  const program = gl.createProgram();
  for (const [type, source] of [[gl.VERTEX_SHADER, TRIANGLE], [gl.FRAGMENT_SHADER, PRODUCTS]]) {
    const shader = gl.createShader(type);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Unavailable("WebGL2 refuses the shader.");
  gl.disable(gl.DITHER); // colours are bits of numbers here
  const buffer = gl.createBuffer();
  gl.bindBuffer(gl.UNIFORM_BUFFER, buffer);
  gl.bufferData(gl.UNIFORM_BUFFER, 4 * 4096, gl.DYNAMIC_DRAW);
  return { program, buffer, layers: gl.getUniformLocation(program, "layers") };
}

function wasm() {
  let module;
  try {
    module = new WebAssembly.Module(simdKernel());
  } catch {
    throw new Unavailable("WASM SIMD is missing or forbidden here.");
  }
  const open = ({ rows, cols, dim, codes }) => {
    const cells = rows * cols;
    const width = 16 * Math.ceil(dim / 16);
    const queryAt = cells * width; // after the codes
    const outAt = queryAt + 4 * width;
    const size = outAt + 4 * cells;
    let memory;
    try {
      memory = new WebAssembly.Memory({ initial: Math.ceil(size / 65536) });
    } catch {
      throw new Unavailable(`There is no memory for a second copy of ${rows} x ${cols} x ${dim} codes.`);
    }
    const { dots } = new WebAssembly.Instance(module, { host: { memory } }).exports;
    const copy = new Int8Array(memory.buffer);
    const query = new Float32Array(memory.buffer, queryAt, dim);
    const result = new Float32Array(memory.buffer, outAt, cells);
    return {
      upload(start, end) {
        copy.set(padded(codes, dim, start * cols, end * cols), start * cols * width);
      },
      dots(vector, out) {
        query.set(vector);
        dots(0, queryAt, outAt, size, width);
        out.set(result);
      },
    };
  };
  return { name: "WASM SIMD", why: "Maps are computed by the processor, 16 channels at a time.", open };
}

/** A WebAssembly module of one function, dots(codes, query, out, outEnd, width): int8 patches times a float32 query. */
function simdKernel() {
  const [CODES, QUERY, OUT, OUT_END, WIDTH, AT, END, SUM_A, SUM_B, BYTES] = Array(10).keys(); // parameters, then locals
  const [I32, V128] = [0x7f, 0x7b];
  const number = (value) => (value < 128 ? [value] : [(value & 127) | 128, value >> 7]); // LEB128 of up to 14 bits
  const list = (...items) => [number(items.length), items];
  const sized = (...parts) => list(...parts.flat(Infinity));
  const word = (text) => list(...new TextEncoder().encode(text));
  const get = (local) => [0x20, local];
  const set = (local) => [0x21, local];
  const advance = (local, bytes) => [get(local), 0x41, bytes | 128, 0, 0x6a, set(local)];
  const loop = [0x03, 0x40];
  const again = (local, end) => [get(local), get(end), 0x49, 0x0d, 0, 0x0b]; // while local < end
  const simd = (operation, ...rest) => [0xfd, number(operation), rest];
  const load = (offset) => simd(0, 0, offset);
  const [low16, high16, low32, high32] = [0x87, 0x88, 0xa7, 0xa8].map((operation) => simd(operation)); // sign-extend
  const [toFloat, times, plus] = [0xfa, 0xe6, 0xe4].map((operation) => simd(operation)); // four floats
  const zero = simd(0x0c, Array(16).fill(0));
  const addFour = (sum, half, quarter, offset) =>
    [get(sum), get(BYTES), half, quarter, toFloat, get(AT), load(offset), times, plus, set(sum)];
  const lane = (index) => [get(SUM_A), simd(0x1f, index)];
  const body = [
    loop, // over patches
    [get(QUERY), set(AT), get(CODES), get(WIDTH), 0x6a, set(END), zero, set(SUM_A), zero, set(SUM_B)],
    loop, // over channels, 16 at a time
    [get(CODES), load(0), set(BYTES)],
    [addFour(SUM_A, low16, low32, 0), addFour(SUM_B, low16, high32, 16)],
    [addFour(SUM_A, high16, low32, 32), addFour(SUM_B, high16, high32, 48)],
    [advance(AT, 64), advance(CODES, 16), again(CODES, END)],
    [get(SUM_A), get(SUM_B), plus, set(SUM_A)],
    [get(OUT), lane(0), lane(1), 0x92, lane(2), 0x92, lane(3), 0x92, 0x38, 2, 0], // the sum of the lanes, stored
    [advance(OUT, 4), again(OUT, OUT_END), 0x0b],
  ];
  const module = [
    [0x00, 0x61, 0x73, 0x6d, 1, 0, 0, 0],
    [1, sized(list([0x60, list(...Array(5).fill(I32)), list()]))],
    [2, sized(list([word("host"), word("memory"), 2, 0, 1]))],
    [3, sized(list(0))],
    [7, sized(list([word("dots"), 0, 0]))],
    [10, sized(list(sized(list([2, I32], [3, V128]), body)))],
  ];
  return Uint8Array.from(module.flat(Infinity));
}

function arrays() {
  const open = ({ dim, codes }) => ({
    upload() {},
    dots(vector, out) {
      for (let cell = 0, at = 0; cell < out.length; cell++) {
        let sum = 0;
        for (let d = 0; d < dim; d++, at++) sum += codes[at] * vector[d];
        out[cell] = sum;
      }
    },
  });
  return { name: "typed arrays", why: "Maps are computed in plain JavaScript.", open };
}

/** A copy of some patches, each filled up with zeros to a multiple of 16 channels. */
function padded(values, dim, start, end) {
  const width = 16 * Math.ceil(dim / 16);
  if (width === dim) return values.slice(start * dim, end * dim);
  const wide = new values.constructor((end - start) * width);
  for (let cell = start; cell < end; cell++) {
    wide.set(values.subarray(cell * dim, (cell + 1) * dim), (cell - start) * width);
  }
  return wide;
}
