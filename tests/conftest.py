"""What the tests may find on a machine: a browser, and the larger data beside the project.

Where one is missing the tests that need it are skipped and say why; with CI=true that is a failure, so that
nothing goes unchecked unnoticed.
"""

import importlib.util
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

# The golden files were made with AVX2 kernels, and with those our models agree to the last bit. AVX-512 sums in another
# order: one value of vit_7b_like then differs by 1.4e-5, where the file itself is 1.2e-5 from the float64 result.
os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # servers and browsers share the cores: waiting must not spin
if "PYTEST_XDIST_WORKER" in os.environ:  # two files at a time: threads of one would only displace those of the other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")  # .ci/run looks for the same
BROWSER_ARGUMENTS = [
    "--no-sandbox",  # a browser of root, as in containers, does not start otherwise
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.hookimpl(tryfirst=True)  # before -m "not long" takes the long ones out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Folders and files with the most long tests come first, so that two workers end at about the same time.

    Folders stay whole: what is set up for one of them ends before the next. A file goes to one worker, the tests of an
    app all to the same: they share its server.
    """
    files = Counter(item.path for item in items if item.get_closest_marker("long"))
    folders: Counter[Path] = Counter()
    for path, count in files.items():
        folders[path.parent] += count
    items.sort(key=lambda item: (-folders[item.path.parent], item.path.parent, -files[item.path]))
    for item in items:
        served = item.path.parent.parent == ROOT / "tests" / "apps"
        item.add_marker(pytest.mark.xdist_group(str(item.path.parent if served else item.path)))


def missing(what: str) -> NoReturn:
    """Skips the test; on CI, where everything must be there, fails it."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what}; with CI=true that is a failure")
    pytest.skip(what)


@pytest.fixture(scope="session")
def browser_path() -> str:
    """A system Chromium: none is ever downloaded."""
    if found := next(filter(None, map(shutil.which, BROWSERS)), None):
        return found
    missing(f"no browser: none of {', '.join(BROWSERS)} is installed")


# Not for the session: playwright keeps an event loop running, which the tests of other modules must not meet.
@pytest.fixture(scope="module")
def browser(browser_path: str) -> Iterator:
    """A headless Chromium of playwright; open pages in it with `browser.new_page()`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=BROWSER_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Slurm of four virtual nodes, which this process's environment names while it is there."""
    place = ROOT / "tests" / "cluster" / "virtual_slurm.py"
    specification = importlib.util.spec_from_file_location("virtual_slurm", place)
    virtual_slurm = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(virtual_slurm)
    if words := virtual_slurm.missing():
        missing(words)
    before = {name: os.environ.get(name) for name in ("SLURM_CONF", "PATH")}
    with virtual_slurm.running(tmp_path_factory.mktemp("slurm")) as environment:
        os.environ |= {name: environment[name] for name in before}
        yield
        for name, value in before.items():
            os.environ.pop(name)
            os.environ |= {} if value is None else {name: value}


@pytest.fixture(scope="session")
def shared() -> Path:
    """The golden files, weights and photographs beside the project; a clone alone does not have them."""
    folder = ROOT.parent / "shared"
    if folder.is_dir():
        return folder
    missing("the folder shared is not beside the project")


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Path]:
    """Writes the folder of a run: metrics, evaluations and probes of untrained networks, which stand for checkpoints.

    sizes: long side of the probes at some steps, where it is not the image's own. `make.probe(folder, step)` adds one.
    """
    import torch

    from core.config import Config, DataConfig, RunConfig, SourceConfig, load_config, to_json
    from core.models import build_backbone
    from core.probes import open_probes, write_probes

    def probe(folder: Path, step: int, *, seed: int = 0, size: int | None = None) -> None:
        torch.manual_seed(seed + step)
        backbone = build_backbone("vit_nano", patch_size=8, depth=1).eval()
        write_probes(folder, step, backbone, open_probes(load_config(folder)), size=size)
        place = folder / "evals" / str(step)
        place.mkdir(parents=True)
        (place / "incontext.json").write_text(json.dumps({"miou": 0.5 - step / 100, "iou/0": None}))

    def make(
        folder: Path,
        *,
        steps: tuple[int, ...] = (0, 10, 20),
        seed: int = 0,
        probes: int = 3,
        sizes: dict[int, int] | None = None,
    ) -> Path:
        data = DataConfig(sources=(SourceConfig(path="tiny"),), batch_size=2)
        config = Config(name=folder.name, steps=100, data=data, run=RunConfig(probes=probes, probe_every=10))
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(to_json(config))
        lines = [
            {"step": step, "total": 9.0 - step / 10, "gram": None if step < 5 else 0.5} for step in range(0, 21, 5)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        for step in steps:
            probe(folder, step, seed=seed, size=(sizes or {}).get(step))
        return folder

    make.probe = probe
    return make


@pytest.fixture(scope="session")
def taught(tmp_path_factory):
    """A run of nano_pretrain's shape with exported teachers of two steps, heads too; nothing was learned."""
    from dataclasses import replace

    import torch

    from core.config import RunConfig
    from core.distill import build
    from core.models.weights import save_backbone
    from core.recipes import recipe
    from core.run_folder import create
    from workbench.runs import open_run

    config = replace(recipe("nano_pretrain"), run=RunConfig(probes=2))
    folder = create(config, tmp_path_factory.mktemp("runs") / "nano")
    for step in (10, 20):
        torch.manual_seed(step)
        student = build(config).student
        heads = {name: module.state_dict() for name, module in student.items() if name != "backbone"}
        path = folder / "teacher" / f"{step}.safetensors"
        path.parent.mkdir(exist_ok=True)
        save_backbone(student["backbone"], path, heads=heads)
    return open_run(folder)
