"""The page reads packs as they are written down, computes what torch computes, and refuses what is damaged."""

import hashlib
import json
import re
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.dense.color import fit_basis, to_rgb
from core.dense.geometry import plan
from core.dense.reference import null_curves, standing
from core.dense.similarity import cosine_map_to, normalize, top_k
from core.models.weights import load_backbone
from workbench.images import list_samples, open_image
from workbench.looks import Look, look_at
from workbench.packs import make_pack

WIDGETS = Path(__file__).parents[3] / "workbench" / "widgets"
ENGINES = {"webgl2": "WebGL2", "wasm": "WASM SIMD", "arrays": "typed arrays"}
MEGABYTE = 1 << 20
BLOCKS = 64  # every block begins at a multiple of it

PRELUDE = """
window.spy = { contexts: 0, uploads: [] };
const getContext = HTMLCanvasElement.prototype.getContext;
HTMLCanvasElement.prototype.getContext = function (...all) { spy.contexts++; return getContext.apply(this, all); };
const upload = WebGL2RenderingContext.prototype.texSubImage3D;
WebGL2RenderingContext.prototype.texSubImage3D = function (...all) {
    spy.uploads.push([all[3], all[3] + all[6]]);  // first row, and the row after the last
    return upload.apply(this, all);
};
window.opened = async (name, options) => {
    const { openPack, urlReader } = await import("/pack.js");
    return openPack(urlReader(name), options);
};
window.loaded = async (name) => {
    const pack = await opened(name);
    await pack.load();
    return pack;
};
window.refusal = async (attempt) => {
    try { await attempt(); } catch (error) { return error.message; }
};
"""


# ---------------------------------------------------------------- a server and a page


class Server:
    """Serves the modules and whatever is put into `files`; remembers the ranges that it was asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[int, int]] = []
        self.ranges = True  # False: like a server that knows no ranges
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.partition("?")[0].lstrip("/") or "index.html"
                if name in server.files:
                    self.send(server.files[name], "application/octet-stream")
                elif (WIDGETS / name).suffix == ".js" and (WIDGETS / name).is_file():
                    self.send((WIDGETS / name).read_bytes(), "text/javascript")
                elif name == "index.html":
                    self.send(b"<!doctype html>", "text/html")
                else:
                    self.send_error(404)

            def send(self, body: bytes, kind: str) -> None:
                size = len(body)
                wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                if wanted and server.ranges:
                    start, end = int(wanted[1]), min(int(wanted[2]) + 1, size)
                    if start >= size:
                        self.send_error(416)
                        return
                    server.asked.append((start, end))
                    body = body[start:end]
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
                else:
                    if kind == "application/octet-stream":
                        server.asked.append((0, size))
                    self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def page(browser, server: Server) -> Iterator:
    server.files.clear()
    server.asked.clear()
    server.ranges = True
    page = browser.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.add_init_script(PRELUDE)
    page.goto(server.url)
    yield page
    page.close()
    assert not problems


# ---------------------------------------------------------------- packs, written from the description alone


def features_of(rows: int, cols: int, dim: int, seed: int = 0) -> torch.Tensor:
    """Features with a common part and smooth regions, so that cosines spread as those of a model do."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, dim, rows // 4 + 2, cols // 4 + 2, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(rows, cols), mode="bilinear")[0].permute(1, 2, 0)
    noise = torch.randn(rows, cols, dim, generator=generator)
    return (torch.randn(dim, generator=generator) * 0.5 + smooth + noise * 0.5) * 3


def coded(features: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """int8 codes and the scale of each patch."""
    scales = features.abs().amax(-1) / 127
    codes = (features / torch.where(scales > 0, scales, 1.0)[..., None]).round()
    return codes.to(torch.int8).numpy(), scales.float().numpy()


def write_pack(
    features: torch.Tensor,
    *,
    valid: np.ndarray | None = None,
    chunk_rows: int = 16,
    extra: dict[str, np.ndarray] | None = None,
    changes: dict[str, Any] | None = None,
) -> bytes:
    """A pack of version 1, by struct and json; `changes` go over the header before its id is computed."""
    rows, cols, dim = features.shape
    codes, scales = coded(features)
    blocks: dict[str, np.ndarray] = {
        "scales": scales,
        "norms": features.norm(dim=-1).numpy(),
        "valid": np.ones((rows, cols), np.uint8) if valid is None else valid.astype(np.uint8),
        "cls": np.zeros(dim, np.float32),
        "registers": np.zeros((0, dim), np.float32),
        "null_same": np.linspace(-0.2, 0.9, 50, dtype=np.float32),
        "null_distance": np.linspace(0.8, 0.1, rows + cols - 2, dtype=np.float32),
        **(extra or {}),
        "codes": codes,
    }
    described: dict[str, dict[str, Any]] = {}
    body = b""
    for name, array in blocks.items():
        data = np.ascontiguousarray(array).tobytes()
        body += b"\0" * (-len(body) % BLOCKS)
        described[name] = {
            "dtype": str(array.dtype),
            "shape": list(array.shape),
            "offset": len(body),
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        body += data
    described["codes"]["chunk_rows"] = chunk_rows
    described["codes"]["crc32"] = [
        zlib.crc32(codes[at : at + chunk_rows].tobytes()) for at in range(0, rows, chunk_rows)
    ]
    header: dict[str, Any] = {
        "format": "gramscope-pack",
        "model": {"name": "ViT-Ü", "weights": None, "licence": "x", "licence_url": "", "notice": ""},
        "picture": {"name": "a.jpg", "digest": "0"},
        "layer": 11,
        "norm": True,
        "rows": rows,
        "cols": cols,
        "dim": dim,
        "geometry": plan(cols * 16, rows * 16, 16).to_dict(),
        "rotation": None,
        "reduced": None,
        "error": {"cosine_max": 1.25e-05, "cosine_mean": 1e-06, "pairs": 10, "exact": False},
        "seam": None,
        "basis": None,
        "texts": None,
        "versions": {"gramscope": "0", "torch": "0"},
        "labels": {},
        "blocks": described,
    }
    changes = dict(changes or {})
    described |= changes.pop("more blocks", {})

    def canonical(record: dict[str, Any]) -> bytes:
        return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    length = 0
    while True:  # the size of the file is in the header, and the header's length in the size of the file
        record = {**header, "bytes": 16 + length + len(body), **(changes or {})}
        record["id"] = hashlib.sha256(canonical(record)).hexdigest()[:16]
        text = canonical(record)
        needed = len(text) + -(16 + len(text)) % BLOCKS
        if needed == length:
            break
        length = needed
    return b"\x89DFP\r\n\x1a\n" + struct.pack("<II", 1, length) + text.ljust(length) + body


def header_of(pack: bytes) -> tuple[dict[str, Any], int]:
    """The header and the offset of the first block."""
    length = struct.unpack("<I", pack[12:16])[0]
    return json.loads(pack[16 : 16 + length]), 16 + length


# ---------------------------------------------------------------- reading


def test_a_pack_opens_with_everything_but_its_codes(page, server):
    features = features_of(20, 9, 48)
    valid = np.ones((20, 9))
    valid[:, 8] = 0
    pack = write_pack(
        features,
        valid=valid,
        extra={"null_other": np.float32([0.1, 0.2]), "preview": np.frombuffer(b"\xff\xd8 a picture", np.uint8)},
    )
    server.files["a.dfp"] = pack
    found = page.evaluate(
        """async () => {
            const pack = await opened("/a.dfp");
            const picture = await (await fetch(pack.preview)).blob();
            const url = pack.preview;
            pack.revoke();
            return {
                id: pack.id, size: [pack.rows, pack.cols, pack.dim], geometry: pack.geometry.width,
                name: pack.header.model.name, valid: [...pack.valid], scales: [...pack.scales], norms: [...pack.norms],
                same: [...pack.nullSame], other: [...pack.nullOther], distance: pack.nullDistance.length,
                basis: pack.basis, picture: [picture.type, await picture.text()], rows: pack.rowsHere,
                unit: pack.unit(0, 0), freed: await refusal(() => fetch(url)),
            };
        }"""
    )
    header, base = header_of(pack)
    assert found["id"] == header["id"]
    assert found["size"] == [20, 9, 48]
    assert found["geometry"] == 144
    assert found["name"] == "ViT-Ü"
    assert found["valid"] == valid.astype(int).flatten().tolist()
    assert found["scales"] == coded(features)[1].flatten().tolist()
    assert found["norms"] == features.norm(dim=-1).flatten().tolist()
    assert found["same"] == np.linspace(-0.2, 0.9, 50, dtype=np.float32).tolist()
    assert found["other"] == np.float32([0.1, 0.2]).tolist()
    assert found["distance"] == 27
    assert found["basis"] is None
    assert found["picture"][0] == "image/jpeg" and found["picture"][1].endswith("a picture")
    assert found["rows"] == 0 and found["unit"] is None
    assert found["freed"]
    assert max(end for _, end in server.asked) == base + header["blocks"]["codes"]["offset"]


def test_rows_arrive_from_where_one_looks_in_requests_of_at_most_a_megabyte(page, server):
    # A chunk of 16 rows is 1.2 MB of the first pack and 98 kB of the second.
    server.files |= {
        "large.dfp": write_pack(features_of(70, 100, 768)),
        "small.dfp": write_pack(features_of(200, 32, 192)),
    }
    body = """async (name) => {
        const pack = await opened(name);
        const seen = [];
        const onRows = (...rows) => seen.push([...rows, pack.lengths[rows[0] * pack.cols] > 0]);
        await pack.load({ first: 40, onRows });
        return { seen, complete: pack.complete, codes: pack.codes.length };
    }"""
    for name, rows, most in (("large.dfp", 70, 2), ("small.dfp", 200, 0.2)):
        server.asked.clear()
        found = page.evaluate(body, "/" + name)
        header, base = header_of(server.files[name])
        codes = base + header["blocks"]["codes"]["offset"]
        asked = sorted(part for part in server.asked if part[0] >= codes)
        assert found["complete"]
        assert all(end - start <= MEGABYTE for start, end in server.asked)
        assert [start for start, _ in asked] == [codes, *(end for _, end in asked[:-1])]  # each byte once
        assert asked[-1][1] == len(server.files[name])
        assert most * found["codes"] / MEGABYTE < len(asked) * 2 + 2
        looked_at = codes + 40 * (found["codes"] // rows)
        begun = [part for part in server.asked if part[0] >= codes][:2]  # two at a time, answered in any order
        assert any(start <= looked_at < end for start, end in begun)
        assert sorted(part[:2] for part in found["seen"]) == [[at, min(at + 16, rows)] for at in range(0, rows, 16)]
        assert [part[2] for part in found["seen"]][-1] == rows
        assert all(part[3:] == [rows, True] for part in found["seen"])


def test_units_are_the_codes_at_length_one(page, server):
    features = features_of(18, 5, 33)
    features[3, 2] = 0
    server.files["a.dfp"] = write_pack(features)
    units = page.evaluate(
        """async () => {
            const pack = await loaded("/a.dfp");
            return Array.from({ length: 90 }, (_, cell) => [...pack.unit(Math.floor(cell / 5), cell % 5)]);
        }"""
    )
    codes = torch.from_numpy(coded(features)[0]).flatten(0, 1)
    torch.testing.assert_close(torch.tensor(units), normalize(codes.float()), rtol=0, atol=1e-6)


def test_a_server_without_ranges_is_asked_once(page, server):
    server.ranges = False
    server.files["a.dfp"] = write_pack(features_of(40, 8, 16))
    assert page.evaluate("async () => (await loaded('/a.dfp')).complete")
    assert len(server.asked) == 1


def test_bytes_that_are_here_are_read_too(page, server):
    server.files["a.dfp"] = write_pack(features_of(40, 8, 16))
    complete = page.evaluate(
        """async () => {
            const { openPack, bytesReader } = await import("/pack.js");
            const file = new Uint8Array(await (await fetch("/a.dfp")).arrayBuffer());
            const shifted = new Uint8Array(file.length + 3);  // views need not be aligned
            shifted.set(file, 3);
            const pack = await openPack(bytesReader(shifted.subarray(3)));
            await pack.load();
            return pack.complete;
        }"""
    )
    assert complete


def test_loading_stops_when_told_and_goes_on_later(page, server):
    server.files["a.dfp"] = write_pack(features_of(64, 64, 384))
    found = page.evaluate(
        """async () => {
            const pack = await opened("/a.dfp");
            const stop = new AbortController();
            const refused = await refusal(() => pack.load({ onRows: () => stop.abort(), signal: stop.signal }));
            const rows = pack.rowsHere;
            const seen = [];
            await pack.load({ onRows: (start) => seen.push(start) });
            return { refused, rows, complete: pack.complete, seen };
        }"""
    )
    assert found["refused"] and 0 < found["rows"] < 64
    assert found["complete"] and len(found["seen"]) == (64 - found["rows"]) / 16


def test_codes_that_did_not_change_are_taken_from_the_version_before(page, server):
    features = features_of(70, 12, 48)
    later = features.clone()
    later[33:40] *= -1  # in the third chunk of rows
    server.files |= {
        "1.dfp": write_pack(features),
        "2.dfp": write_pack(later),
        "other.dfp": write_pack(features_of(70, 12, 64)),
    }
    found = page.evaluate(
        """async () => {
            const previous = await loaded("/1.dfp");
            const pack = await opened("/2.dfp", { previous });
            const before = [pack.rowsHere, pack.unit(34, 0) === null, pack.unit(0, 0) !== null];
            const seen = [];
            await pack.load({ onRows: (start, end) => seen.push([start, end]) });
            const fresh = await loaded("/2.dfp");
            const equal = pack.codes.every((code, at) => code === fresh.codes[at])
                && pack.lengths.every((length, at) => length === fresh.lengths[at]);
            return { before, seen, equal, other: (await opened("/other.dfp", { previous })).rowsHere };
        }"""
    )
    assert found == {"before": [54, True, True], "seen": [[32, 48]], "equal": True, "other": 0}


# ---------------------------------------------------------------- refusing


def broken_packs() -> dict[str, tuple[Callable[[bytes], bytes], str]]:
    """What may have happened to a pack, and the words that say so."""

    def flip(at: Callable[[bytes], int]) -> Callable[[bytes], bytes]:
        return lambda pack: pack[: at(pack)] + bytes([pack[at(pack)] ^ 4]) + pack[at(pack) + 1 :]

    def block(name: str) -> Callable[[bytes], int]:
        return lambda pack: header_of(pack)[1] + header_of(pack)[0]["blocks"][name]["offset"] + 5

    def without(pack: bytes) -> bytes:
        return pack.replace(b'"dtype":"int8"', b'"dtype":"int9"')

    return {
        "foreign": (lambda _: b"PK\x03\x04" + b"\0" * 5000, "not a feature pack"),
        "empty": (lambda _: b"", "not a feature pack"),
        "sent as text": (lambda pack: pack.replace(b"\r\n", b"\n"), "not a feature pack"),
        "newer": (lambda pack: pack[:8] + b"\2" + pack[9:], "version 2"),
        "start changed": (lambda pack: pack[:15] + b"\xff" + pack[16:], "impossible length"),
        "cut after the start": (lambda pack: pack[:16], "cut"),
        "cut in the header": (lambda pack: pack[:300], "cut"),
        "cut in the codes": (lambda pack: pack[:-1], "should have"),
        "longer": (lambda pack: pack + b"x", "should have"),
        "header changed": (lambda pack: pack.replace(b'"layer":11', b'"layer":10'), r"damaged \(its header"),
        "header no JSON": (lambda pack: pack.replace(b'{"basis"', b'["basis"'), r"damaged \(its header"),
        "dtype unknown": (without, "damaged"),
        "scales changed": (flip(block("scales")), r"damaged \(its block scales"),
        "null curve changed": (flip(block("null_same")), r"damaged \(its block null_same"),
        "codes changed": (flip(block("codes")), r"damaged \(rows 0 to 15"),
    }


@pytest.mark.long
@pytest.mark.parametrize("what", broken_packs())
def test_damage_is_refused_in_a_sentence(page, server, what):
    damage, words = broken_packs()[what]
    server.files["a.dfp"] = damage(write_pack(features_of(40, 8, 16)))
    message = page.evaluate("() => refusal(() => loaded('/a.dfp'))")
    assert re.search(words, message), message
    assert message.endswith(".") and "\n" not in message


@pytest.mark.long
@pytest.mark.parametrize(
    "changes",
    [
        {"format": "other"},
        {"rows": 41},
        {"dim": 15},
        {"rows": -40, "cols": -8},
        {"blocks": {}},
        {"blocks": None},
        {"blocks": {"scales": None}},
        {"more blocks": {"cls": None}},
        {"more blocks": {"cls": {"dtype": "float64", "shape": [16], "offset": 0, "bytes": 128}}},
        {"more blocks": {"cls": {"dtype": "float32", "shape": [16], "offset": -64, "bytes": 64}}},
        {"more blocks": {"cls": {"dtype": "float32", "shape": [1 << 40], "offset": 0, "bytes": 1 << 42}}},
        {"geometry": {}},
        {"geometry": plan(8 * 16, 40 * 16 + 1, 16).to_dict()},
    ],
)
def test_a_header_that_contradicts_itself_is_refused(page, server, changes):
    server.files["a.dfp"] = write_pack(features_of(40, 8, 16), changes=changes)
    message = page.evaluate("() => refusal(() => loaded('/a.dfp'))")
    assert message.endswith(".") and re.search("damaged|geometry", message), message


def test_a_missing_file_is_named(page):
    assert "404" in page.evaluate("() => refusal(() => loaded('/nowhere.dfp'))")


def test_rows_before_a_damaged_one_can_be_used(page, server):
    pack = bytearray(write_pack(features_of(200, 32, 192)))
    pack[-1] ^= 1
    server.files["a.dfp"] = bytes(pack)
    found = page.evaluate(
        """async () => {
            const { createEngine } = await import("/pack.js");
            const pack = await opened("/a.dfp");
            const message = await refusal(() => pack.load());
            const map = createEngine().cosines(pack, pack.unit(0, 0), new Float32Array(200 * 32));
            return [message, pack.rowsHere, map[0], map[map.length - 1]];
        }"""
    )
    assert "rows 192 to 199" in found[0]
    assert found[1] == 192 and found[2] == pytest.approx(1) and np.isnan(found[3])


# ---------------------------------------------------------------- computing


def engine_map(page, engine: str, name: str, query: torch.Tensor, limit: int = 1) -> np.ndarray:
    """A cosine map by one engine, which must have been the one that computed it."""
    name_found, values = page.evaluate(
        """async ([prefer, name, query, limit]) => {
            const { createEngine } = await import("/pack.js");
            const pack = await loaded(name);
            const engine = createEngine(prefer);
            const map = new Float32Array(pack.rows * pack.cols);
            engine.cosines(pack, Float32Array.from(query), map, { limit });
            engine.release(pack);
            return [engine.name, [...map]];
        }""",
        [engine, name, query.tolist(), limit],
    )
    assert name_found == ENGINES[engine]
    return np.array(values, np.float32)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("shape", [(33, 47, 384), (17, 5, 30), (3, 70, 1024), (6, 4, 4096), (1, 1, 16)])
def test_cosines_are_those_of_torch(page, server, engine, shape):
    features = features_of(*shape)
    features[0, -1] = features[-1, 0] if shape[1] > 1 else features[0, -1]
    server.files["a.dfp"] = write_pack(features)
    codes = torch.from_numpy(coded(features)[0]).float()
    query = normalize(codes[0, 0])
    found = engine_map(page, engine, "/a.dfp", query)
    decoded = cosine_map_to(codes, query[None]).flatten().numpy()
    original = cosine_map_to(features, normalize(features[0, 0])[None]).flatten().numpy()
    assert np.abs(found - decoded).max() <= 1e-5
    assert np.abs(found - original).max() <= 0.004
    assert found.max() <= 1


@pytest.mark.long
@pytest.mark.parametrize("engine", ENGINES)
def test_padding_and_zero_vectors_and_negatives(page, server, engine):
    features = features_of(20, 24, 96)
    features[5, 5] = 0
    valid = np.ones((20, 24), bool)
    valid[-1] = valid[:, -2:] = False
    server.files["a.dfp"] = write_pack(features, valid=valid)
    codes = torch.from_numpy(coded(features)[0]).float()
    vectors = normalize(codes[[0, 3], [0, 7]])
    against = -vectors[:1]  # values of twice a cosine: beyond one
    query = vectors.mean(0) - against.mean(0)
    found = engine_map(page, engine, "/a.dfp", query, limit=2)
    mask = torch.from_numpy(valid)
    wanted = cosine_map_to(codes, vectors, negatives=against, valid=mask).flatten().numpy()
    np.testing.assert_array_equal(np.isnan(found), ~valid.flatten())
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    assert found[5 * 24 + 5] == 0
    assert np.nanmax(found) > 1 and np.nanmax(engine_map(page, engine, "/a.dfp", query)) == 1


@pytest.mark.long
@pytest.mark.parametrize("engine", ENGINES)
def test_one_channel_that_stands_out_costs_no_precision(page, server, engine):
    features = features_of(16, 16, 384)
    features[..., 7] += 300
    server.files["a.dfp"] = write_pack(features)
    codes = torch.from_numpy(coded(features)[0]).float()
    query = normalize(codes[4, 4])
    wanted = cosine_map_to(codes, query[None]).flatten().numpy()
    assert np.abs(engine_map(page, engine, "/a.dfp", query) - wanted).max() <= 1e-5


@pytest.mark.long
@pytest.mark.parametrize("engine", ENGINES)
def test_maps_grow_with_the_rows_that_arrive(page, server, engine):
    server.files["a.dfp"] = write_pack(features_of(64, 64, 384))
    found = page.evaluate(
        """async (prefer) => {
            const { createEngine } = await import("/pack.js");
            const pack = await opened("/a.dfp");
            const engine = createEngine(prefer);
            const map = new Float32Array(64 * 64);
            const query = new Float32Array(384).fill(384 ** -0.5);
            const states = [], arrived = [];
            const look = (...rows) => {
                engine.cosines(pack, query, map);
                states.push([pack.rowsHere, map.every((value, cell) => Number.isNaN(value) === !pack.lengths[cell])]);
                if (rows.length) arrived.push(rows.slice(0, 2));
            };
            look();
            await pack.load({ first: 33, onRows: look });
            const grown = [...map];
            createEngine(prefer).cosines(pack, query, map);
            const equal = map.every((value, cell) => value === grown[cell]);
            return { states, arrived, equal, uploads: spy.uploads };
        }""",
        engine,
    )
    assert found["states"] == [[0, True], [16, True], [32, True], [48, True], [64, True]]
    # Two requests of two blocks are under way at once and may be answered in either order.
    assert found["arrived"] in ([[32, 48], [48, 64], [0, 16], [16, 32]], [[0, 16], [16, 32], [32, 48], [48, 64]])
    assert found["equal"]
    if engine == "webgl2":  # each block as it arrived, and once more for the second engine
        assert found["uploads"][:4] == found["arrived"] and len(found["uploads"]) == 8


@pytest.mark.long
@pytest.mark.parametrize("engine", ENGINES)
def test_products_with_the_features_themselves(page, server, engine):
    features = features_of(20, 24, 100)
    server.files["a.dfp"] = write_pack(features)
    codes, scales = map(torch.from_numpy, coded(features))
    vector = torch.randn(100, generator=torch.Generator().manual_seed(1)) * 5
    found = page.evaluate(
        """async ([prefer, vector]) => {
            const { createEngine } = await import("/pack.js");
            const pack = await opened("/a.dfp");
            const engine = createEngine(prefer);
            const early = engine.dots(pack, Float32Array.from(vector), new Float32Array(480)).every(Number.isNaN);
            await pack.load();
            return [early, [...engine.dots(pack, Float32Array.from(vector), new Float32Array(480))]];
        }""",
        [engine, vector.tolist()],
    )
    assert found[0]
    wanted = (codes.double() * scales[..., None].double()) @ vector.double()
    np.testing.assert_allclose(found[1], wanted.flatten(), rtol=1e-5, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("engine", ENGINES)
def test_colors_are_those_of_to_rgb(page, server, engine):
    features = features_of(24, 30, 64) + 20  # a large mean, where differences of products lose digits
    valid = torch.ones(24, 30, dtype=torch.bool)
    valid[:, -1] = False
    codes, scales = map(torch.from_numpy, coded(features))
    decoded = codes.float() * scales[..., None]
    basis = fit_basis(decoded, valid=valid)
    extra = {
        "basis_mean": basis.mean.numpy(),
        "basis_components": basis.axes.numpy(),
        "basis_low": basis.low.numpy(),
        "basis_high": basis.high.numpy(),
    }
    server.files["a.dfp"] = write_pack(features, valid=valid.numpy(), extra=extra)
    early, found, flat = page.evaluate(
        """async (prefer) => {
            const { createEngine, pcaColors } = await import("/pack.js");
            const pack = await opened("/a.dfp");
            const engine = createEngine(prefer);
            const early = Math.max(...pcaColors(engine, pack, pack.basis));
            await pack.load();
            const flat = { ...pack.basis, high: pack.basis.low };
            return [early, [...pcaColors(engine, pack, pack.basis)], [...pcaColors(engine, pack, flat).slice(0, 4)]];
        }""",
        engine,
    )
    assert early == 0
    assert flat == [128, 128, 128, 255]  # 127.5, and ties go to even, as in torch
    colors = np.array(found).reshape(24, 30, 4)
    wanted = to_rgb(basis, decoded, valid=valid).numpy().astype(int)
    assert (colors[..., 3] == 255).all()
    assert np.abs(colors[..., :3] - wanted).max() <= 1
    assert (colors[..., :3] == wanted).mean() > 0.99


def test_query_vectors_are_means_of_units_minus_means_of_negatives(page):
    vectors = normalize(torch.randn(5, 40, generator=torch.Generator().manual_seed(0)))
    found = page.evaluate(
        """async (vectors) => {
            const { queryVector } = await import("/pack.js");
            const units = vectors.map((vector) => Float32Array.from(vector));
            return [[...queryVector(units.slice(0, 3))], [...queryVector(units.slice(0, 3), units.slice(3))],
                await refusal(() => queryVector([], units))];
        }""",
        vectors.tolist(),
    )
    np.testing.assert_allclose(found[0], vectors[:3].mean(0), rtol=0, atol=1e-7)
    np.testing.assert_allclose(found[1], vectors[:3].mean(0) - vectors[3:].mean(0), rtol=0, atol=1e-7)
    assert "needs a query" in found[2]


def test_standings_are_those_of_python(page):
    null = null_curves(features_of(20, 20, 16)).same_image.sort().values
    few = torch.tensor([-0.5, 0.25, 0.25, 0.25, 0.75])
    values = [*np.linspace(-1.1, 1.1, 301).tolist(), *null[::997].tolist()]
    found = page.evaluate(
        """async ([values, nulls]) => {
            const { standing } = await import("/pack.js");
            const all = nulls.map((null_) => values.map((value) => standing(value, Float32Array.from(null_))));
            const refusals = [await refusal(() => standing(NaN, new Float32Array(3))),
                await refusal(() => standing(0.5, new Float32Array(0)))];
            return [all.map((list) => list.map(({ percentile, z }) => [percentile, z])), refusals];
        }""",
        [values, [null.tolist(), few.tolist(), [0.5] * 7]],
    )
    for got, reference in zip(found[0], (null, few, torch.full((7,), 0.5)), strict=True):
        wanted = np.array([standing(value, reference) for value in values])
        np.testing.assert_allclose(np.array(got)[:, 0], wanted[:, 0], rtol=0, atol=1e-6)
        np.testing.assert_allclose(np.array(got)[:, 1], wanted[:, 1], rtol=1e-6, atol=1e-6)
    assert all("Cannot rank" in message for message in found[1])


@pytest.mark.long
@pytest.mark.parametrize(
    ("k", "exclude", "radius", "spacing"),
    [
        (5, [], 0, 0),
        (9, [[0, 0], [7, 13]], 2, 0),
        (6, [[3, 3]], 1, 3),
        (1000, [], 0, 1),
        (400, [], 0, 0),
        (0, [], 0, 0),
    ],
)
def test_best_matches_are_those_of_top_k(page, k, exclude, radius, spacing):
    rng = np.random.default_rng(0)
    cosines = torch.from_numpy(rng.integers(-5, 5, (12, 21)) / 5).float()  # many ties
    valid = torch.from_numpy(rng.random((12, 21)) > 0.2)
    cosines[2, 2] = torch.nan
    found = page.evaluate(
        """async ([cosines, valid, k, options]) => {
            const { topK } = await import("/pack.js");
            const map = Float32Array.from(cosines, (value) => value ?? NaN);
            const matches = topK(map, { rows: 12, cols: 21, valid }, k, options);
            return matches.map(({ row, col, cosine }) => [row, col, cosine]);
        }""",
        [
            [None if np.isnan(value) else value for value in cosines.flatten().tolist()],
            valid.int().flatten().tolist(),
            k,
            {"exclude": exclude, "radius": radius, "spacing": spacing},
        ],
    )
    wanted = top_k(cosines, k, exclude=[tuple(cell) for cell in exclude], radius=radius, valid=valid, spacing=spacing)
    assert [tuple(match) for match in found] == [tuple(match) for match in wanted]


# ---------------------------------------------------------------- packs as the workbench makes them


@pytest.fixture(scope="module")
def look() -> Look:
    photo = open_image(next(sample.path for sample in list_samples() if sample.path.name == "cat_bengal.jpg"))
    return look_at(photo, load_backbone("dinov2_vits14_saliency"), size=448)


@pytest.mark.long
@pytest.mark.parametrize("engine", ENGINES)
def test_a_real_photograph_is_queried_within_the_promised_error(page, server, look, engine):
    pack = make_pack(look, basis=look.basis)
    server.files["a.dfp"] = pack.read(0, pack.size)
    patches, valid = look.features.patches, look.features.valid
    for row, col in ((2, 3), (15, 16)):
        query, norm = page.evaluate(
            "async (cell) => { const pack = await loaded('/a.dfp'); return [[...pack.unit(...cell)], pack.norms[0]]; }",
            [row, col],
        )
        found = engine_map(page, engine, "/a.dfp", torch.tensor(query))
        wanted = cosine_map_to(patches, patches[row, col][None], valid=valid).flatten().numpy()
        assert np.nanmax(np.abs(found - wanted)) <= min(0.004, pack.error["cosine_max"] + 1e-5)
        assert norm == pytest.approx(float(patches[0, 0].norm()))
    colors, picture, nulls = page.evaluate(
        """async (prefer) => {
            const { createEngine, pcaColors } = await import("/pack.js");
            const pack = await loaded("/a.dfp");
            const { width, height } = await createImageBitmap(await (await fetch(pack.preview)).blob());
            return [[...pcaColors(createEngine(prefer), pack, pack.basis)], [width, height], [...pack.nullSame]];
        }""",
        engine,
    )
    wanted = to_rgb(look.basis, patches, valid=valid).numpy().astype(int)
    off = np.abs(np.array(colors).reshape(*valid.shape, 4)[..., :3] - wanted)
    assert off.max() <= 6 and off.mean() < 1  # the codes' 8 bits
    assert tuple(picture) == look.photo.size
    assert nulls == pack.null_same.tolist()


# ---------------------------------------------------------------- engines


def test_emulated_gl_gives_way_to_wasm_and_the_reason_is_told(page):
    found = page.evaluate(
        """async () => {
            const { createEngine } = await import("/pack.js");
            return ["auto", "webgl2", "wasm", "arrays"].map((prefer) => {
                const { name, why } = createEngine(prefer);
                return [name, why];
            });
        }"""
    )
    names, reasons = zip(*found, strict=True)
    emulated = re.search("SwiftShader|llvmpipe", reasons[1]) is not None  # not so on a machine with a GPU
    assert names == ("WASM SIMD" if emulated else "WebGL2", "WebGL2", "WASM SIMD", "typed arrays")
    assert ("emulated" in reasons[0]) == emulated
    assert all(reason.endswith(".") for reason in reasons)


def test_engines_of_a_page_share_one_context(page, server):
    server.files["a.dfp"] = write_pack(features_of(16, 16, 32))
    contexts = page.evaluate(
        """async () => {
            const modules = [await import("/engine.js"), await import("/engine.js?again")];  // as two widgets bring it
            const pack = await loaded("/a.dfp");
            const maps = [0, 1, 0, 1].map((index) =>
                modules[index].createEngine("webgl2").cosines(pack, pack.unit(0, 0), new Float32Array(256)));
            return [spy.contexts, maps.every((map) => map.every((value, cell) => value === maps[0][cell]))];
        }"""
    )
    assert contexts == [1, True]


def test_a_lost_context_is_survived(page, server):
    server.files["a.dfp"] = write_pack(features_of(16, 16, 32))
    found = page.evaluate(
        """async () => {
            const { createEngine } = await import("/pack.js");
            const pack = await loaded("/a.dfp");
            const engine = createEngine("webgl2");
            const map = () => engine.cosines(pack, pack.unit(3, 3), new Float32Array(256));
            const before = map();
            const name = engine.name;
            globalThis[Symbol.for("gramscope.gl")].getExtension("WEBGL_lose_context").loseContext();
            const after = map();
            engine.release(pack);
            const again = createEngine("webgl2");  // has a new context
            const third = again.cosines(pack, pack.unit(3, 3), new Float32Array(256));
            const close = (a, b) => a.every((value, cell) => Math.abs(value - b[cell]) < 1e-6);
            return [name, engine.name, engine.why, close(before, after), again.name, close(before, third)];
        }"""
    )
    assert found[:2] == ["WebGL2", "WASM SIMD"] and "taken away" in found[2] and found[3]
    assert found[4:] == ["WebGL2", True]


def test_without_webgl_and_wasm_plain_arrays_remain(browser, server):
    page = browser.new_page()
    page.add_init_script(PRELUDE)
    page.add_init_script("delete globalThis.WebAssembly; HTMLCanvasElement.prototype.getContext = () => null;")
    page.goto(server.url)
    server.files["a.dfp"] = write_pack(features_of(16, 16, 32))
    found = page.evaluate(
        """async () => {
            const { createEngine } = await import("/pack.js");
            const pack = await loaded("/a.dfp");
            const engine = createEngine();
            return [engine.name, engine.why, engine.cosines(pack, pack.unit(0, 0), new Float32Array(256))[0]];
        }"""
    )
    page.close()
    assert found[0] == "typed arrays" and "no WebGL2" in found[1] and "WASM" in found[1]
    assert found[2] == pytest.approx(1)


def test_maps_too_large_for_webgl_go_to_the_next_engine(page, server):
    server.files["a.dfp"] = write_pack(features_of(2, 2, 4112))
    found = page.evaluate(
        """async () => {
            const { createEngine } = await import("/pack.js");
            const pack = await loaded("/a.dfp");
            const engine = createEngine("webgl2");
            return [engine.cosines(pack, pack.unit(0, 0), new Float32Array(4))[0], engine.name, engine.why];
        }"""
    )
    assert found[0] == pytest.approx(1) and found[1] == "WASM SIMD" and "too large" in found[2]


def test_wrong_sizes_are_refused(page, server):
    server.files["a.dfp"] = write_pack(features_of(16, 16, 32))
    found = page.evaluate(
        """async () => {
            const { createEngine } = await import("/pack.js");
            const pack = await loaded("/a.dfp");
            const engine = createEngine();
            return [await refusal(() => engine.cosines(pack, new Float32Array(31), new Float32Array(256))),
                await refusal(() => engine.dots(pack, new Float32Array(32), new Float32Array(255))),
                await refusal(() => createEngine("webgpu"))];
        }"""
    )
    assert "32 channels" in found[0] and "256 values" in found[1] and "webgpu" in found[2]
