"""Checkpoints of a run: saved whole or not at all, loaded on any number of processes; and the teacher as a file.

A checkpoint holds tensors and nothing else: `model.*` (student, teacher, Gram teacher), the optimizer's moments as
`optimizer.<parameter>.<moment>`, and `step`. Learning rates and the like are not in it: they follow from the
configuration and the step.
"""

import dataclasses
import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor

from core import dcp, distributed
from core.config import load_config
from core.models import Backbone, build_backbone
from core.models.convnext import ConvNeXt
from core.models.layouts import listed
from core.models.vit import VisionTransformer
from core.models.weights import Source, load_backbone, read_heads, save_backbone

if TYPE_CHECKING:
    from core.distill import SelfDistillation

log = logging.getLogger(__name__)

MODEL, OPTIMIZER, STEP, GRAM = "model.", "optimizer.", "step", "model.gram_teacher."
Heads = dict[str, dict[str, Tensor]]


class Checkpoints:
    """The folder `checkpoints` of a run: one folder a checkpoint, named by the number of finished steps.

    keep: how many of the newest stay; keep_every: besides those, the ones of every so many steps stay for good. With
    several processes all of them make every call, and all see the same folder.
    """

    def __init__(self, folder: Path, *, keep: int, keep_every: int = 0) -> None:
        if keep < 1 or keep_every < 0:
            raise ValueError(f"keep is at least 1 and keep_every at least 0, got {keep} and {keep_every}")
        self.folder, self.keep, self.keep_every = folder, keep, keep_every

    def newest(self) -> int | None:
        """The step of the newest whole checkpoint; others are named in the log and left aside.

        Of several students, which go on together: the newest that all of them have.
        """
        whole = distributed.broadcast_object(self._whole() if distributed.is_main() else [])
        common = set.intersection(*map(set, distributed.gather_objects(whole, distributed.everyone())))
        return max(common, default=None)

    def _whole(self) -> list[int]:
        if broken := leftovers(self.folder):
            log.warning("%s: not whole, left aside: %s", self.folder, ", ".join(path.name for path in broken))
        return finished_checkpoints(self.folder)

    def save(self, step: int, model: "SelfDistillation", optimizer: torch.optim.Optimizer) -> Path:
        """The new checkpoint's folder, which appears under its name when all of it is on the disk.

        After that older ones go, as many as are not to be kept. Raises OSError when it could not be written: then
        nothing of it remains and the older ones are untouched.
        """
        path, partial = self.folder / str(step), self.folder / f".{step}.partial"
        state = _model_tensors(model) | _optimizer_tensors(model, optimizer) | {STEP: torch.tensor(step)}
        try:
            _on_main(lambda: _make_empty(partial))
            dcp.write(state, partial)
            _on_main(lambda: _put_in_place(partial, path))
        except (Exception, CheckpointException) as error:  # torch's own derives from BaseException
            _on_main(lambda: shutil.rmtree(partial, ignore_errors=True))
            cause = dcp.cause(error)
            if not isinstance(cause, Exception):
                raise
            raise self._not_written(step, cause) from error
        _on_main(self._retire)
        return path

    def _not_written(self, step: int, cause: Exception) -> OSError:
        older = [str(step) for step in finished_checkpoints(self.folder)]
        number = cause.errno if isinstance(cause, OSError) else None
        full = "the disk is full; free some space, then resume. " if number == errno.ENOSPC else ""
        text = (
            f"checkpoint {step} was not written to {self.folder}: {full}Untouched: {listed(older) or 'no older one'}. "
            f"The system says: {cause}"
        )
        return OSError(number or errno.EIO, text)

    def _retire(self) -> None:
        whole = finished_checkpoints(self.folder)
        for step in whole[: -self.keep]:
            if not self.keep_every or step % self.keep_every:
                doomed = self.folder / f".{step}.deleted"
                shutil.rmtree(doomed, ignore_errors=True)
                (self.folder / str(step)).rename(doomed)  # never half a checkpoint under a whole one's name
        for leftover in leftovers(self.folder):
            if leftover.name.startswith("."):
                shutil.rmtree(leftover, ignore_errors=True)

    def has_gram_teacher(self, step: int) -> bool:
        """Whether a checkpoint holds a Gram teacher of its own."""
        return any(key.startswith(GRAM) for key in dcp.describe(self.folder / str(step)))

    def load(self, step: int, model: "SelfDistillation", optimizer: torch.optim.Optimizer) -> None:
        """Puts a checkpoint's numbers into model and optimizer, on however many processes it was saved.

        Every name, shape and dtype must agree, with one exception: a Gram teacher that only the checkpoint has is left
        there, and one that only the model has keeps the weights it was built with; both are said in the log. Raises
        ValueError for what does not fit (then nothing was loaded) or cannot be read.
        """
        path = self.folder / str(step)
        if not (path / ".metadata").exists():
            whole = listed(map(str, finished_checkpoints(self.folder))) or "none"
            raise FileNotFoundError(f"no whole checkpoint of step {step} in {self.folder}; there are: {whole}")
        saved = dcp.describe(path)
        state = _model_tensors(model) | {STEP: torch.tensor(-1)}
        here, there = (any(key.startswith(GRAM) for key in keys) for keys in (state, saved))
        if here != there:
            state = {key: tensor for key, tensor in state.items() if not key.startswith(GRAM)}
            saved = {key: entry for key, entry in saved.items() if not key.startswith(GRAM)}
        _check(path, {k: v for k, v in saved.items() if not k.startswith(OPTIMIZER)}, state)
        moments = _new_moments(path, saved, model, optimizer)
        dcp.read(path, state | moments)
        if (found := int(state[STEP])) != step:
            raise ValueError(f"{path} holds step {found}: the folder was renamed; call it {found} again")
        _put_moments(model, optimizer, moments)
        if here and not there:
            log.warning("%s has no Gram teacher: the model keeps the one it was built with", path)
        if there and not here:
            log.warning("%s has a Gram teacher, this run uses none: it was left out", path)


def finished_checkpoints(folder: Path) -> list[int]:
    """Steps of the whole checkpoints in a folder, in order. The file .metadata is written last."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit() and (path / ".metadata").is_file())


def leftovers(folder: Path) -> list[Path]:
    """What interrupted writing, copying or deleting left in a folder of checkpoints."""
    if not folder.is_dir():
        return []
    hidden = [
        path for path in folder.iterdir() if path.name.startswith(".") and path.suffix in (".partial", ".deleted")
    ]
    halves = [path for path in folder.iterdir() if path.name.isdigit() and not (path / ".metadata").is_file()]
    return sorted(hidden + halves)


# State as names and tensors, in place: reading into them fills model and optimizer


def _model_tensors(model: nn.Module) -> dict[str, Tensor]:
    return {f"{MODEL}{name}": tensor for name, tensor in model.state_dict().items()}


def _trained(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, nn.Parameter, dict[str, Any]]]:
    """Name, parameter and group of everything that the optimizer moves."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield names[parameter], parameter, group


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{OPTIMIZER}{name}.{moment}": value
        for name, parameter, _ in _trained(model, optimizer)
        for moment, value in optimizer.state.get(parameter, {}).items()
    }


def _new_moments(
    path: Path, saved: Mapping[str, TensorStorageMetadata], model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Empty tensors for the optimizer's moments in a checkpoint. Raises ValueError for one of an unknown parameter."""
    moments: dict[str, Tensor] = {}
    known = {name: (parameter, group) for name, parameter, group in _trained(model, optimizer)}
    for key, entry in saved.items():
        if not key.startswith(OPTIMIZER):
            continue
        name = key.removeprefix(OPTIMIZER).rpartition(".")[0]
        if name not in known:
            raise ValueError(f"{path} has moments of {name}, which this run does not train; {_ADVICE}")
        parameter, group = known[name]
        if entry.size == parameter.shape:
            moments[key] = torch.zeros_like(parameter.detach(), dtype=entry.properties.dtype)
        else:  # the count of steps, beside the parameter where the kernel reads it there
            device = parameter.device if group.get("fused") or group.get("capturable") else "cpu"
            moments[key] = torch.zeros(entry.size, dtype=entry.properties.dtype, device=device)
    return moments


def _put_moments(model: nn.Module, optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor]) -> None:
    parameters = {name: parameter for name, parameter, _ in _trained(model, optimizer)}
    optimizer.state.clear()
    for key, tensor in moments.items():
        name, _, moment = key.removeprefix(OPTIMIZER).rpartition(".")
        optimizer.state[parameters[name]][moment] = tensor


_ADVICE = "resume a run with the config.json it was started with, or start a new run from its teacher with init.student"


def _check(path: Path, saved: Mapping[str, TensorStorageMetadata], state: Mapping[str, Tensor]) -> None:
    """Raises ValueError unless names, shapes and dtypes agree."""
    said = []
    if missing := sorted(state.keys() - saved.keys()):
        said.append(f"it lacks {listed(missing)}")
    if surplus := sorted(saved.keys() - state.keys()):
        said.append(f"it has {listed(surplus)}, which this model has not")
    kinds = {key: f"{list(entry.size)} {entry.properties.dtype}" for key, entry in saved.items()}
    wanted = {key: f"{list(tensor.shape)} {tensor.dtype}" for key, tensor in state.items()}
    both = sorted(kinds.keys() & wanted.keys())
    if other := [f"{key} is {kinds[key]}, here {wanted[key]}" for key in both if kinds[key] != wanted[key]]:
        said.append(listed(other))
    if said:
        raise ValueError(
            f"{path} is of another model: {'; '.join(said)}. Nothing was loaded; {_ADVICE}".replace("torch.", "")
        )


# Files and folders


def _on_main(action: Callable[[], object]) -> None:
    """The main process does it, the others wait; what it raises, all raise."""
    problem: Exception | None = None
    if distributed.is_main():
        try:
            action()
        except Exception as error:  # also what we did not think of: the others must not wait for ever
            problem = error
    problem = distributed.broadcast_object(problem)
    if problem is not None:
        raise problem


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _put_in_place(partial: Path, path: Path) -> None:
    """Renames a folder whose files are on the disk, so that its name is as well; what had the name before goes."""
    _sync(partial)
    if path.exists():
        doomed = path.with_name(f".{path.name}.deleted")
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
    partial.rename(path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    if os.name == "nt":
        return  # folders cannot be opened there
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# The teacher as a file


def export_teacher(model: "SelfDistillation", path: Path, *, dtype: torch.dtype | None = None) -> Path:
    """The teacher's backbone and heads in one .safetensors file that `load_backbone` reads; all processes call this.

    Whole tensors are gathered one at a time on the main process, which writes. dtype: bf16 or fp16 for half the size;
    the default is fp32, bit for bit. Raises OSError when it could not be written.
    """
    states = {name: _whole(module) for name, module in model.teacher.items()}
    backbone = model.teacher["backbone"]
    assert isinstance(backbone, Backbone)

    def write() -> None:
        heads = {name: state for name, state in states.items() if name != "backbone"}
        save_backbone(_plain(backbone, states["backbone"]), path, heads=heads, dtype=dtype)

    _on_main(write)
    return path


def _whole(module: nn.Module) -> dict[str, Tensor]:
    """The module's tensors, unsharded and on the CPU, on the main process; the others only take part."""
    state = {}
    for name, tensor in module.state_dict().items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if distributed.is_main():
            state[name] = whole.cpu()
    return state


def _plain(backbone: Backbone, state: Mapping[str, Tensor]) -> Backbone:
    """The same backbone as it was before anything was wrapped around it, with these tensors."""
    with torch.device("meta"):
        kind = ConvNeXt if isinstance(backbone, ConvNeXt) else VisionTransformer
        plain = kind(**backbone.arguments)
    plain.load_state_dict(dict(state), assign=True)
    plain.pixel_mean, plain.pixel_std = backbone.pixel_mean, backbone.pixel_std
    source: Source | None = backbone.source
    if source is not None:  # training goes on from published weights: their terms stay, their precision does not
        plain.source = dataclasses.replace(source, dtypes={}, shapes={}, prefix="")
    return plain


def load_teacher_file(path_or_run: str) -> dict[str, dict[str, Tensor]]:
    """State dicts under "backbone" and, where the source has them, "dino_head" and "ibot_head".

    path_or_run: a run folder (its newest teacher), "RUN@STEP", or whatever `load_backbone` takes. Raises ValueError
    when there is no such thing.
    """
    backbone, heads = load_teacher(path_or_run)
    return {"backbone": backbone.state_dict(), **heads}


def load_teacher(path_or_run: str) -> tuple[Backbone, Heads]:
    """The same as a backbone that knows its source and licence, and the heads' tensors by name."""
    run, step = _run_and_step(path_or_run)
    if run is None:
        backbone = load_backbone(path_or_run)
        return backbone, read_heads(backbone.source.path)
    exported, saved = teacher_steps(run), finished_checkpoints(run / "checkpoints")
    if not exported and not saved:
        raise ValueError(f"{run} has neither an exported teacher nor a whole checkpoint yet")
    step = max(exported + saved) if step is None else step
    if step in exported:
        file = run / "teacher" / f"{step}.safetensors"
        return load_backbone(file), read_heads(file)
    if step not in saved:
        known = sorted({*exported, *saved})
        raise ValueError(f"{run} has no teacher of step {step}; there are: {listed(map(str, known))}")
    return _teacher_in(run, step)


def teacher_steps(run: Path) -> list[int]:
    """Steps at which a run exported its teacher, in order."""
    return sorted(int(file.stem) for file in (run / "teacher").glob("*.safetensors") if file.stem.isdigit())


def _run_and_step(text: str) -> tuple[Path | None, int | None]:
    """What "RUN" or "RUN@STEP" names; nothing where the text is something else."""
    path, step = Path(text).expanduser(), None
    head, at, tail = text.rpartition("@")
    if at and tail.isdigit() and not path.exists():
        path, step = Path(head).expanduser(), int(tail)
    is_run = (path / "config.json").is_file() and ((path / "teacher").is_dir() or (path / "checkpoints").is_dir())
    return (path, step) if is_run else (None, None)


def _teacher_in(run: Path, step: int) -> tuple[Backbone, Heads]:
    """The teacher out of a distributed checkpoint, read by this process alone."""
    folder, prefix = run / "checkpoints" / str(step), f"{MODEL}teacher."
    saved = {key: entry for key, entry in dcp.describe(folder).items() if key.startswith(prefix)}
    state = {key: torch.empty(entry.size, dtype=entry.properties.dtype) for key, entry in saved.items()}
    dcp.read(folder, state, alone=True)
    parts: Heads = {}
    for key, tensor in state.items():
        part, _, name = key.removeprefix(prefix).partition(".")
        parts.setdefault(part, {})[name] = tensor
    model = load_config(run).model
    backbone = build_backbone(model.arch, device="meta", **model.overrides())
    try:
        return _plain(backbone, parts.pop("backbone")).eval(), parts
    except (RuntimeError, KeyError) as error:
        raise ValueError(
            f"{folder} does not hold the backbone that {run / 'config.json'} describes: {error}"
        ) from error


def export(
    folder: Path, step: int, layout: str, out: Path, *, heads: bool = False, dtype: torch.dtype | None = None
) -> Path:
    """The teacher of a run after `step` steps in a layout of `save_backbone`, from its export or its checkpoint.

    heads: with dino_head and ibot_head, as in teacher/<step>.safetensors; else the backbone alone, as published.
    """
    backbone, found = load_teacher(f"{folder}@{step}")
    return save_backbone(backbone, out, layout, heads=found if heads else None, dtype=dtype)
