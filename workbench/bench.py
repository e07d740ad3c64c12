"""How fast is it here? `make bench`: extraction and training beside the machine's own matrix product, and hovering.

Everything is measured in turn in one process, best of several rounds, because shared machines drift: read the ratios
and the shares of the peak, not the seconds. The peak is the best fp32 product of square matrices that torch reaches
here, measured again before every row.
"""

import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from core.data.batch import Batch
from core.data.loader import Loader
from core.dense.cards import ModelCard
from core.dense.extract import DenseFeatures, extract, extract_many, extract_tiles
from core.dense.geometry import plan
from core.dense.inputs import picture_geometry
from core.dense.similarity import normalize
from core.distill import build
from core.memory import keep_freed_memory
from core.models import Backbone, build_backbone
from core.models.inference import for_inference
from core.models.weights import load_backbone, save_backbone
from core.optimizer import build_optimizer
from core.plan import take_step
from core.recipes.nano import nano_pretrain
from core.schedules import rates_at
from workbench.images import list_samples, open_image
from workbench.looks import look_at
from workbench.packs import Pack, pack_features

GROUPS = {  # torch's operators by what they do; the first match counts
    "linear layers": ("addmm", "mkldnn", "linear", "::mm", "baddbmm"),
    "attention": ("scaled_dot", "flash"),
    "patch embedding": ("conv",),
    "norms": ("layer_norm",),
    "activations": ("gelu", "silu"),
    "positions and residuals": ("mul", "add", "roll", "cat", "copy", "sub", "index", "repeat"),
}
TRAINING_GROUPS = {
    "linear layers": ("addmm", "::mm", "conv"),
    "attention": ("bmm", "softmax", "scaled_dot"),
    "norms": ("layer_norm",),
    "activations": ("gelu",),
    "optimizer and EMA": ("adamw", "lerp", "foreach"),
    "Python": ("BlockFunction", "slice", "view", "select", "strided", "unbind", "transpose", "empty"),
}


def best_of(rounds: int, *calls: Callable[[], Any]) -> list[float]:
    """Seconds of each call, the best of several rounds in turn, after one that does not count."""
    times = [[float("inf")] for _ in calls]
    for index in range(rounds + 1):
        for kept, call in zip(times, calls, strict=True):
            began = time.perf_counter()
            call()
            if index:
                kept.append(time.perf_counter() - began)
    return [min(kept) for kept in times]


def matmul_calls() -> list[tuple[int, Callable[[], Any]]]:
    """(operations, product) of square fp32 matrices: what torch does best on this machine."""
    pairs = [(torch.randn(side, side), torch.randn(side, side)) for side in (2048, 4096)]
    return [(2 * len(a) ** 3, partial(torch.mm, a, b)) for a, b in pairs]


def forward_operations(backbone: Backbone, images: int, side: int) -> float:
    """Multiplications and additions in the matrix products of a ViT's forward pass over square images."""
    assert backbone.patch_size is not None
    patches = (side // backbone.patch_size) ** 2
    tokens, dim = patches + 1 + backbone.num_registers, backbone.embed_dim
    weights = sum(p.numel() for name, p in backbone.named_parameters() if p.ndim == 2 and "token" not in name)
    embedding = 2 * patches * dim * 3 * backbone.patch_size**2
    return images * (2 * tokens * weights + 4 * tokens**2 * dim * backbone.depth + embedding)


ROUNDS = {224: 30, 512: 8, 1024: 4}  # model pixels -> rounds
QUICK = {224: 3}
STEPS, QUICK_STEPS = 12, 2


def beside_transformers(rounds_of: dict[int, int]) -> None:
    """Ours and transformers' ViT-S/16 with the same weights, as shares of the peak."""
    from transformers import DINOv3ViTModel

    torch.manual_seed(0)
    backbone = build_backbone("vit_small").eval()
    with tempfile.TemporaryDirectory() as folder:
        save_backbone(backbone, Path(folder), layout="hf")
        theirs: Any = DINOv3ViTModel.from_pretrained(folder, attn_implementation="sdpa").eval()
    products = matmul_calls()
    print("ViT-S/16, fp32, one image, forward pass (share of the machine's fp32 matrix product)")
    print(f"{'input':>8} {'ours':>18} {'transformers':>18} {'ratio':>7} {'peak':>14}")
    for side, rounds in rounds_of.items():
        image = torch.randn(1, 3, side, side)
        ours, other, *peaks = best_of(
            rounds,
            partial(forward, backbone, image),
            torch.inference_mode()(partial(theirs, image)),
            *(call for _, call in products),
        )
        peak = max(operations / seconds for (operations, _), seconds in zip(products, peaks, strict=True))
        work = forward_operations(backbone, 1, side)
        with torch.inference_mode():
            gap = (theirs(image).pooler_output - forward(backbone, image)["x_norm_clstoken"]).abs().max()
        assert gap < 1e-4, "the two do not compute the same: the comparison would mean nothing"
        print(
            f"{side:>5} px {ours * 1e3:>8.1f} ms {work / ours / peak:>6.0%} {other * 1e3:>8.1f} ms "
            f"{work / other / peak:>6.0%} {other / ours:>6.2f}x {peak / 1e9:>7.0f} GFLOP/s"
        )
        print("         " + where_it_goes(partial(forward, backbone, image)))
    if rounds_of is not QUICK:
        folder_of_small_pictures(backbone, products)


@torch.inference_mode()
def forward(backbone: Backbone, images: torch.Tensor) -> Any:
    """The forward pass as extraction runs it, the look for changed weights included."""
    twin: Any = for_inference(backbone)
    return twin.forward_features(images)


def folder_of_small_pictures(backbone: Backbone, products: list[tuple[int, Callable[[], Any]]]) -> None:
    """A folder of 224 px pictures, decoding left out, resizing and normalising included."""
    pictures = [np.random.default_rng(seed).integers(0, 256, (224, 224, 3), dtype=np.uint8) for seed in range(64)]
    batched, single, *peaks = best_of(
        3,
        lambda: list(extract_many(backbone, pictures, size=224)),
        lambda: [extract(backbone, picture, size=224) for picture in pictures],
        *(call for _, call in products),
    )
    peak = max(operations / seconds for (operations, _), seconds in zip(products, peaks, strict=True))
    work = forward_operations(backbone, len(pictures), 224)
    print(
        f"folder of 64 pictures of 224 px: {64 / batched:.1f} a second, {work / batched / peak:.0%} of the peak "
        f"(one by one {64 / single:.1f}, {work / single / peak:.0%})\n"
    )


def where_it_goes(call: Callable[[], Any], groups: dict[str, tuple[str, ...]] = GROUPS) -> str:
    """Shares of the time by kind of operator, the largest first."""
    call()
    with profile(activities=[ProfilerActivity.CPU]) as record:
        call()
    times: defaultdict[str, float] = defaultdict(float)
    for event in record.key_averages():
        group = next((name for name, parts in groups.items() if any(part in event.key for part in parts)), "other")
        times[group] += event.self_cpu_time_total
    total = sum(times.values())
    return ", ".join(f"{name} {value / total:.0%}" for name, value in sorted(times.items(), key=lambda x: -x[1]))


def training_step(rounds: int) -> None:
    """A whole step of the recipe nano_pretrain, once on a batch that lies there, then with its images being loaded."""
    keeps = keep_freed_memory()
    config = nano_pretrain()
    torch.manual_seed(0)
    model, rates = build(config), rates_at(1000, config)
    optimizer = build_optimizer(model.student, layer_decay=config.optim.layer_decay)

    def step(batch: Batch) -> None:
        take_step(model, optimizer, *model.look(batch, rates), rates, config.optim.clip)

    with Loader(config, first_step=0, rank=0, size=1, device="cpu") as loader:
        batches = iter(loader)
        batch = next(batches)
        with FlopCounterMode(display=False) as counter:
            step(batch)
        waited = took = 0.0
        for index in range(rounds + 1):
            began = time.perf_counter()
            batch = next(batches)
            arrived = time.perf_counter()
            step(batch)
            if index:  # the first batches lie ready
                waited, took = waited + arrived - began, took + time.perf_counter() - began
    products = matmul_calls()
    alone, *peaks = best_of(rounds, partial(step, batch), *(call for _, call in products))
    peak = max(operations / seconds for (operations, _), seconds in zip(products, peaks, strict=True))
    work, images = counter.get_total_flops(), config.data.batch_size
    print(
        f"training step of nano_pretrain, {work / 1e9:.1f} GFLOP in matrix products: {alone:.2f} s, "
        f"{work / alone / 1e9:.0f} GFLOP/s, {work / alone / peak:.0%} of the peak of {peak / 1e9:.0f}; "
        f"{images / alone:.0f} images a second, at most {peak_memory():.1f} GB{'' if keeps else ', pages given back'}"
    )
    print(
        f"  with {config.data.workers} workers that load: {took / rounds:.2f} s, {rounds * images / took:.0f} images a "
        f"second, {waited / took:.0%} of it waiting"
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the profiler sees the calling thread alone
    print("  one thread's time: " + where_it_goes(partial(step, batch), TRAINING_GROUPS) + "\n")
    torch.set_num_threads(threads)


def click() -> None:
    """A click on a remembered picture of 1024 px: the map, its best matches, both drawn."""
    sample = next(sample for sample in list_samples() if sample.path.name == "cat_bengal.jpg")
    photo = open_image(sample.path)
    look = look_at(photo, load_backbone("dinov2_vits14_saliency"), size=1024)
    look.matches(look.similarity([(0, 0)]))

    def answer() -> None:
        cosines = look.similarity([(20, 30)])
        look.picture(cosines, queries=[(20, 30)], matches=look.matches(cosines))

    (seconds,) = best_of(20, answer)
    grid = look.features.geometry
    print(f"click on a remembered {grid.rows} x {grid.cols} map: {seconds * 1e3:.1f} ms (cosines, matches, drawing)\n")


FRAME_SIDES = (64, 256)  # patches along a side: the usual map, and that of 4096 px
FRAME_MOVES, QUICK_MOVES = 60, 10

# Moves a pointer over the view, every time to another patch. Counted is the time in our code: from the move to the
# cosines, and from the move to the finished drawing, without the wait for the screen in between.
HOVER = """async ({ engine, moves }) => {
  const { mount } = await import("/similarity.js");
  const { bytesReader, createEngine, openPack } = await import("/pack.js");
  const file = new Uint8Array(await (await fetch("/pack.dfp")).arrayBuffer());
  const next = requestAnimationFrame;
  const frame = () => new Promise(next);
  let drawing = 0;
  window.requestAnimationFrame = (draw) => next((now) => {
    const began = performance.now();
    draw(now);
    document.querySelector("canvas").getContext("2d").getImageData(0, 0, 1, 1);  // waits until it is drawn
    drawing += performance.now() - began;
  });
  const values = { pack_ids: [1], panes: [{ pack: 0 }], engine };
  const state = { get: (name) => values[name], set: (name, value) => (values[name] = value), on: () => () => {} };
  let last = 0;
  const reader = {
    size: file.length,
    read: async (start, end) => (last = Math.max(last, end), file.subarray(start, end)),
  };
  const view = mount(document.body, { kind: "file", state, reader: () => reader });
  while (last < file.length) await frame();
  for (let rest = 0; rest < 30; rest++) await frame();

  const pack = await openPack(bytesReader(file));
  await pack.load();
  const own = createEngine(engine);
  const map = new Float32Array(pack.rows * pack.cols);
  const canvas = document.querySelector("canvas");
  const box = canvas.getBoundingClientRect();
  const times = { values: [], drawn: [] };
  for (let move = -5; move < moves; move++) {
    const [x, y] = [0.1 + 0.8 * ((move * 0.618 + 9) % 1), 0.1 + 0.8 * ((move * 0.382 + 9) % 1)];
    const query = pack.unit(Math.floor(y * pack.rows), Math.floor(x * pack.cols));
    let began = performance.now();
    own.cosines(pack, query, map);
    const computed = performance.now() - began;
    const where = { clientX: box.left + x * box.width, clientY: box.top + y * box.height, pointerType: "mouse" };
    await frame();
    drawing = 0;
    began = performance.now();
    canvas.dispatchEvent(new PointerEvent("pointermove", { ...where, bubbles: true }));
    const handled = performance.now() - began;
    await frame();
    await frame();
    if (!drawing) throw new Error("the view did not draw after a move");
    if (move < 0) continue;  // the first ones bring the map to the engine
    times.values.push(computed);
    times.drawn.push(handled + drawing);
  }
  view.destroy();
  return { name: own.name, why: own.why, ...times };
}"""


def hovering(moves: int, sides: tuple[int, ...] = FRAME_SIDES) -> None:
    """How long a map takes to follow the pointer, for each engine of the page, in a headless browser."""
    from playwright.sync_api import sync_playwright

    browser_path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser_path is None:
        print("hovering: not measured, there is no Chromium here\n")
        return
    print(f"hovering, 95th percentile of {moves} moves in headless Chromium: cosines there / map drawn")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        for side in sides:
            pack = random_pack(side)
            results = [hover(browser, pack, engine, moves) for engine in ("webgl2", "wasm", "arrays")]
            chosen = hover(browser, pack, "auto", 1)
            times = [
                f"{found['name']} {np.percentile(found['values'], 95):.1f} / {np.percentile(found['drawn'], 95):.1f} ms"
                for found in results
            ]
            print(f"  {side} x {side} x {pack.dim}: {', '.join(times)}; chosen here: {chosen['name']}", flush=True)
        browser.close()
    print(f"  {chosen['why']}\n")


def hover(browser: Any, pack: Pack, engine: str, moves: int) -> dict[str, Any]:
    """Milliseconds of each move over a view of the pack, and the engine it became."""
    files = {path.name: path.read_bytes() for path in (Path(__file__).parent / "widgets").glob("*.js")}
    files["pack.dfp"] = pack.read(0, pack.size)
    empty = b"<!doctype html><body style='width: 800px'>"

    def answer(route: Any) -> None:
        name = route.request.url.rpartition("/")[2]
        kind = "text/javascript" if name.endswith(".js") else "text/html"
        route.fulfill(body=files.get(name, empty), content_type=kind)

    page = browser.new_page(viewport={"width": 1000, "height": 1000})
    page.route("**", answer)
    page.goto("http://localhost/")
    found: dict[str, Any] = page.evaluate(HOVER, {"engine": engine, "moves": moves})
    page.close()
    return found


def random_pack(side: int, dim: int = 384) -> Pack:
    """A pack of `side` x `side` patches that are noise."""
    photo = open_image(list_samples()[0].path)
    geometry = plan(*photo.size, 16, size=16 * side, keep_aspect=False)
    noise = torch.randn(side, side, dim, generator=torch.Generator().manual_seed(0))
    features = DenseFeatures(
        patches=noise, cls=noise[0, 0], registers=noise[0, :0], geometry=geometry, layer=11, norm=True, seam=None
    )
    return pack_features(features, ModelCard("noise"), photo)


def large_picture(exact: bool) -> None:
    """4096 x 4096 with the default model: the coarse map, the tiled one, and on request the exact one."""
    sample = max(list_samples(), key=lambda sample: sample.width * sample.height)
    with Image.open(sample.path) as image:
        side = min(image.size)
        picture = np.asarray(image.convert("RGB").crop((0, 0, side, side)).resize((4096, 4096)))
    backbone = load_backbone("dinov2_vits14_saliency")
    for_inference(backbone)
    for tile in (512, 768, 1024):
        geometry = picture_geometry(backbone, picture, size=4096)
        began = time.perf_counter()
        glimpses = extract_tiles(backbone, picture, geometry, tile=tile)
        last = next(glimpses)
        coarse = time.perf_counter() - began
        for last in glimpses:  # noqa: B007 - the last one is what we want
            pass
        tiled = last.features()
        assert tiled.seam is not None
        print(
            f"4096 x 4096, {geometry.rows} x {geometry.cols} patches, tiles of {tile} px: coarse map after "
            f"{coarse:.1f} s, {last.total} tiles after {time.perf_counter() - began:.0f} s, "
            f"at most {peak_memory():.1f} GB; tiles "
            f"disagree by {tiled.seam.mean:.3f} on average, {tiled.seam.worst:.2f} at worst (1 - cosine)",
            flush=True,
        )
        if exact and tile == 768:
            kept = tiled
    if exact:
        began = time.perf_counter()
        whole = extract(backbone, picture, size=4096, tile=0)
        print(f"4096 x 4096 exact: {time.perf_counter() - began:.0f} s, at most {peak_memory():.1f} GB")
        print(f"tiles of 768 px against exact: {disagreement(kept, whole)}")


def disagreement(a: DenseFeatures, b: DenseFeatures) -> str:
    """1 - cosine between two extractions of one picture, in words."""
    gap = 1 - (normalize(a.patches) * normalize(b.patches)).sum(-1)[a.valid]
    parts = [f"{name} {gap.quantile(share):.3f}" for name, share in (("median", 0.5), ("95th percentile", 0.95))]
    return f"1 - cosine: mean {gap.mean():.3f}, {', '.join(parts)}, worst {gap.max():.3f}"


def peak_memory() -> float:
    """Largest resident memory of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main(arguments: list[str]) -> None:
    """All of it, or little of it with `--quick`; `--training` only the training step, a minute.

    `--large` adds the 4096 px photograph, `--exact` its exact pass, which takes a quarter of an hour on two cores.
    """
    if "--only-large" in arguments:
        large_picture("--exact" in arguments)
        return
    if "--training" in arguments:
        training_step(QUICK_STEPS if "--quick" in arguments else STEPS)
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}\n")
    # Processes of their own, so that their peak memory is their own.
    if "--quick" not in arguments:
        subprocess.run([sys.executable, "-m", "workbench.bench", "--training"], check=True)
    beside_transformers(QUICK if "--quick" in arguments else ROUNDS)
    click()
    if "--quick" in arguments:
        hovering(QUICK_MOVES, FRAME_SIDES[:1])
    else:
        hovering(FRAME_MOVES)
    if "--large" in arguments or "--exact" in arguments:
        command = [sys.executable, "-m", "workbench.bench", "--only-large", *arguments]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
