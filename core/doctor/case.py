"""What rules are asked about: a configuration, a machine, and what both refer to, each looked up once."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from core.config import Config, HeadConfig, SourceConfig

if TYPE_CHECKING:
    from core.data import Source
    from core.models import Backbone

Found = tuple[str, str] | None  # the facts, and what to do
GIB = 2**30
SAMPLE = 24  # images that are opened for a look


@dataclass(frozen=True)
class Gpu:
    """A GPU as its driver describes it."""

    name: str
    memory_gib: float
    capability: float


@dataclass(frozen=True)
class Machine:
    """What a run would find here."""

    cpus: int
    memory_gib: float
    gpus: tuple[Gpu, ...]
    disk_free_gib: float
    compiler: bool  # for C++, which torch.compile needs on a CPU

    @classmethod
    def here(cls, folder: Path | None = None) -> "Machine":
        """This machine, and the disk that the folder is to lie on."""
        place = (folder or Path("runs")).absolute()
        place = next(path for path in (place, *place.parents) if path.exists())
        return cls(
            cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            memory_gib=_memory_gib(),
            gpus=_gpus(),
            disk_free_gib=shutil.disk_usage(place).free / GIB,
            compiler=any(map(shutil.which, ("g++", "clang++", "c++", "cl"))),
        )


@dataclass(frozen=True)
class Opened:
    """A source of the configuration, opened, or why it cannot be."""

    config: SourceConfig
    source: "Source | None"
    error: str = ""


@dataclass(frozen=True)
class Look:
    """One image that was opened: its sides, or None for a broken one."""

    name: str
    sides: tuple[int, int] | None


@dataclass(frozen=True)
class Weights:
    """What a configuration's "RUN", "RUN@STEP" or file refers to, without loading it.

    error: why there is nothing to load. shapes: of the tensors by name, None where the file does not say them cheaply.
    """

    path: Path | None
    shapes: dict[str, tuple[int, ...]] | None
    error: str = ""

    def has_head(self, name: str) -> bool | None:
        """Whether there is this head; None when that cannot be told."""
        return None if self.shapes is None else f"{name}.last_layer.weight" in self.shapes


@dataclass(frozen=True)
class Case:
    """A run as its rules see it."""

    config: Config
    world: int
    folder: Path | None
    machine: Machine

    @property
    def images_a_part(self) -> int:
        """Images that the student sees at once: the batch over processes and accumulation."""
        return self.config.data.batch_size // (self.world * max(self.config.parallel.accumulate, 1))

    @cached_property
    def backbone(self) -> "Backbone | None":
        """The backbone on the meta device; None for an architecture that there is not."""
        from core.models import build_backbone

        try:
            return build_backbone(self.config.model.arch, device="meta", **self.config.model.overrides())
        except (ValueError, TypeError, RuntimeError, ZeroDivisionError):
            return None

    @property
    def patch(self) -> int | None:
        """Side in pixels of what has one token."""
        from core.models.convnext import ConvNeXt

        if isinstance(self.backbone, ConvNeXt):
            return self.backbone.patch_size or self.backbone.output_stride
        return None if self.backbone is None else self.backbone.patch_size

    @property
    def run(self) -> Path | None:
        """The run's folder, if there is a run in it already."""
        return self.folder if self.folder is not None and (self.folder / "config.json").exists() else None

    @cached_property
    def parameters(self) -> dict[str, int]:
        """How many numbers the backbone and the heads have."""
        from core.models import count_parameters

        if self.backbone is None:
            return {"backbone": 0, "heads": 0}
        dim = self.backbone.embed_dim
        heads = sum(_head_parameters(head, dim) for head in (self.config.dino.head, self.config.ibot.head))
        return {"backbone": count_parameters(self.backbone), "heads": heads}

    @property
    def has_gram_teacher(self) -> bool:
        """Whether there is a third network."""
        return self.config.gram.use and not self.config.gram.follow_ema

    @cached_property
    def sources(self) -> list[Opened]:
        """The sources, opened."""
        return [open_one(source) for source in self.config.data.sources]

    @cached_property
    def looks(self) -> list[Look]:
        """A few images of every source, spread over it."""
        looks = []
        opened = [entry.source for entry in self.sources if entry.source is not None]
        for source in opened:
            count = min(max(SAMPLE // len(opened), 4), len(source))
            looks += [_look(source, index * (len(source) - 1) // max(count - 1, 1)) for index in range(count)]
        return looks

    @cached_property
    def init(self) -> Weights | None:
        """What `init.student` refers to."""
        return find_weights(self.config.init.student) if self.config.init.student else None

    @cached_property
    def narrow(self) -> Weights | None:
        """What `init.narrow` refers to."""
        return find_weights(self.config.init.narrow) if self.config.init.narrow else None

    @cached_property
    def gram_teacher(self) -> Weights | None:
        """What `gram.teacher` refers to."""
        return find_weights(self.config.gram.teacher) if self.config.gram.teacher else None

    @cached_property
    def teacher(self) -> Weights | None:
        """What `distill.teacher` refers to."""
        return find_weights(self.config.distill.teacher) if self.config.distill.teacher else None

    @property
    def has_prototypes(self) -> bool:
        """Whether there are heads at all: not where features alone are learned."""
        config = self.config
        return (
            not config.distill.features or bool(config.distill.teacher) or config.dino.weight + config.ibot.weight > 0
        )

    def misfits(self, weights: Weights) -> str:
        """What of the backbone does not fit these weights, "" when all does or nobody can say."""
        if weights.shapes is None or self.backbone is None:
            return ""
        there = {k.removeprefix("backbone."): v for k, v in weights.shapes.items() if not k.startswith(HEADS)}
        if "patch_embed.proj.weight" not in there and "downsample_layers.0.0.weight" not in there:
            return ""  # another layout, which the loader translates
        here = {key: tuple(value.shape) for key, value in self.backbone.state_dict().items()}
        wrong = [f"{k} {there.get(k, 'missing')} there and {v} here" for k, v in here.items() if there.get(k) != v]
        surplus = [key for key in there if key not in here]
        wrong += [f"{key} there and not here" for key in surplus]
        more = f", and {len(wrong) - 2} more" if len(wrong) > 2 else ""
        return ", ".join(wrong[:2]) + more


HEADS = ("dino_head.", "ibot_head.", "features.")


def find_weights(spec: str) -> Weights:
    """What "RUN", "RUN@STEP", a file or a published name refers to; `core.checkpoint.load_teacher` would load it."""
    from core.models import build_backbone
    from core.models.published import PUBLISHED

    path, step = Path(spec).expanduser(), None
    run, at, tail = spec.rpartition("@")
    if at and tail.isdecimal() and not path.exists():
        path, step = Path(run).expanduser(), int(tail)
    try:
        if (path / "config.json").is_file() and ((path / "teacher").is_dir() or (path / "checkpoints").is_dir()):
            return _weights_of_run(path, step)
        if path.suffix == ".safetensors" and path.is_file():
            return Weights(path, read_shapes(path))
    except (OSError, ValueError) as error:
        return Weights(None, None, str(error))
    if path.exists():
        return Weights(path, None)
    if spec in PUBLISHED:
        state = build_backbone(PUBLISHED[spec].backbone, device="meta").state_dict()
        return Weights(None, {key: tuple(x.shape) for key, x in state.items()})
    return Weights(None, None, f"there is no file or folder {path}")


def _weights_of_run(run: Path, step: int | None) -> Weights:
    from core import dcp
    from core.checkpoint import finished_checkpoints, teacher_steps

    exported, saved = teacher_steps(run), finished_checkpoints(run / "checkpoints")
    if not exported and not saved:
        raise ValueError(f"{run} has neither an exported teacher nor a whole checkpoint yet")
    step = max(exported + saved) if step is None else step
    if step in exported:
        path = run / "teacher" / f"{step}.safetensors"
        return Weights(path, read_shapes(path))
    if step not in saved:
        known = ", ".join(map(str, sorted({*exported, *saved})))
        raise ValueError(f"{run} has no teacher of step {step}; there are: {known}")
    path, prefix = run / "checkpoints" / str(step), "model.teacher."
    entries = {key: tuple(entry.size) for key, entry in dcp.describe(path).items() if key.startswith(prefix)}
    return Weights(path, {key.removeprefix(prefix): shape for key, shape in entries.items()})


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a .safetensors file, from its header alone. Raises ValueError for a file that is cut off."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = path.stat().st_size
        if not 2 <= length <= size - 8:
            raise ValueError(f"{path} is no .safetensors file, or cut off: {size} bytes")
        try:
            header = json.loads(file.read(length))
        except ValueError:
            raise ValueError(f"{path} is no .safetensors file, or cut off: its header cannot be read") from None
    header.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != 8 + length + end:
        raise ValueError(f"{path} is cut off: {size} bytes, its header says {8 + length + end}")
    return {name: tuple(entry["shape"]) for name, entry in header.items()}


def open_one(config: SourceConfig, split: str | None = None) -> Opened:
    """A source, opened, or why it cannot be."""
    from core.data import open_source

    try:
        return Opened(config, open_source(config if split is None else replace(config, split=split)))
    except (OSError, ValueError) as error:
        return Opened(config, None, str(error))


def _look(source: "Source", index: int) -> Look:
    from core.data import BrokenImage

    try:
        return Look(source.name(index), source.read(index).size)
    except BrokenImage:
        return Look(source.name(index), None)


def _head_parameters(head: HeadConfig, dim: int) -> int:
    widths = [dim, *[head.hidden] * (head.layers - 1), head.bottleneck]
    mlp = sum(a * b + b for a, b in pairwise(widths))
    return mlp + head.bottleneck * head.prototypes


def _memory_gib() -> float:
    """All memory of this machine; no limit where it does not say."""
    if sys.platform == "win32":
        return float("inf")
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB


def _gpus() -> tuple[Gpu, ...]:
    """Asked of the driver: torch would take memory on the first GPU."""
    if not (program := shutil.which("nvidia-smi")):
        return ()
    command = [program, "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    try:
        out = subprocess.run(command, capture_output=True, text=True, timeout=20)
        rows = [line.split(", ") for line in out.stdout.splitlines()] if out.returncode == 0 else []
        return tuple(Gpu(name, float(memory) / 1024, float(capability)) for name, memory, capability in rows)
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return ()
