"""A step that went wrong, kept and run again: which tensor was the first that is no number?

`save_batch` is called in the loop, on every process; `replay` afterwards, on one.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from core import distributed
from core.checkpoint import Checkpoints, finished_checkpoints
from core.config import Config, load_config
from core.data.batch import Batch
from core.distributed import World
from core.run_folder import replace_text
from core.schedules import Rates, rates_at

FOLDER = "nonfinite"


def save_batch(folder: Path, step: int, batch: Batch, terms: Mapping[str, Tensor | float]) -> Path:
    """Keeps what a process saw at a step; the folder nonfinite/<step> with a file a process, and step.json beside them.

    terms: whatever was computed of it, to be read by people.
    """
    place, rank, size = folder / FOLDER / str(step), distributed.rank(), distributed.size()
    place.mkdir(parents=True, exist_ok=True)
    # Clones, since Gram crops may be the global crops themselves and a file holds each byte for one name.
    tensors = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in _parts(batch).items()
        if isinstance(value, Tensor)
    }
    path = place / _file(rank, size)
    temporary = path.with_suffix(".part")
    save_file(tensors, temporary, {"broken": json.dumps(batch.broken)})
    os.replace(temporary, path)
    if distributed.is_main():
        before = [saved for saved in finished_checkpoints(folder / "checkpoints") if saved <= step]
        record = {
            "step": step,
            "processes": size,
            "checkpoint": before[-1] if before else None,  # the newest one before the step
            "rates": asdict(rates_at(step, load_config(folder))),
            "terms": {name: str(float(value)) for name, value in terms.items()},  # "nan", which JSON cannot say
        }
        replace_text(place / "step.json", json.dumps(record, indent=2) + "\n")
    return place


def load_batch(place: Path) -> Batch:
    """The whole batch that `save_batch` kept, images of all processes in order. Raises ValueError for missing parts."""
    size = json.loads((place / "step.json").read_text(encoding="utf-8"))["processes"]
    parts = []
    for rank in range(size):
        path = place / _file(rank, size)
        if not path.exists():
            raise ValueError(f"{path} is missing: {size} processes kept what they saw; copy all of {place}")
        with safe_open(path, "pt") as file:
            broken = tuple(json.loads(file.metadata()["broken"]))
        tensors: dict[str, Any] = {"gram_crops": None, **load_file(path)}
        parts.append(Batch(**tensors, broken=broken))
    return parts[0] if size == 1 else _together(parts)


@dataclass
class Report:
    """What a replayed step showed. Lists hold names, the first that went wrong first."""

    step: int
    checkpoint: int
    processes: int
    kept: bool  # whether the batch was kept or made again
    terms: dict[str, float] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)
    weights: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    forward: list[str] = field(default_factory=list)
    backward: list[str] = field(default_factory=list)
    term_gradients: dict[str, list[str]] = field(default_factory=dict)

    @property
    def finite(self) -> bool:
        """Whether nothing was wrong this time."""
        values = (*self.terms.values(), *self.norms.values())
        wrong = [self.weights, self.inputs, self.forward, self.backward, *self.term_gradients.values()]
        return not any(wrong) and all(map(math.isfinite, values))

    def text(self) -> str:
        """The report for people."""
        batch = "the batch that was kept" if self.kept else "the batch, made again from the data"
        lines = [f"step {self.step}, from checkpoint {self.checkpoint}, with {batch}"]
        if self.processes > 1:
            lines.append(
                f"The run had {self.processes} processes, this is one: drop path differs, and so do the masks of steps "
                "between checkpoint and batch."
            )
        stages = {
            "weights before the step": self.weights,
            "inputs": self.inputs,
            "forward, outputs in the order computed": self.forward,
            "backward, gradients of outputs in the order computed": self.backward,
        }
        for stage, names in stages.items():
            lines.append(f"{stage}: {'all finite' if not names else f'not finite: {_listed(names)}'}")
        lines.append("loss terms:")
        for name, value in self.terms.items():
            wrong = self.term_gradients.get(name, [])
            told = f"gradients not finite: {_listed(wrong)}" if wrong else "gradients finite"
            lines.append(f"  {name} {value:.6g}{'' if name == 'total' else f', {told}'}")
        lines.append("gradient norms: " + ", ".join(f"{name} {value:.6g}" for name, value in self.norms.items()))
        lines.append(self.conclusion())
        return "\n".join(lines)

    def conclusion(self) -> str:
        """Where it began, in a sentence."""
        places = {
            "in the weights, before the step": self.weights,
            "in the batch": self.inputs,
            "in the forward pass": self.forward,
            "in the loss": [name for name, value in self.terms.items() if name != "total" and not math.isfinite(value)],
            "in the backward pass, in the gradient of the output": self.backward,
            "in the gradient norms": [name for name, value in self.norms.items() if not math.isfinite(value)],
        }
        for where, names in places.items():
            if names:
                return f"It began {where}: {names[0]}."
        return "All is finite this time: other hardware, another precision or another number of processes may be why."


def replay(folder: Path, step: int | None = None, *, say: Callable[[str], None] = print) -> Report:
    """Runs a step of a run again, from the newest checkpoint before it, and looks at every tensor.

    step: counted from 0; without it the last one whose batch was kept. Any other step will do: its batch is made again.
    Raises ValueError when there is nothing to replay.
    """
    config = load_config(folder)
    kept = sorted(int(place.name) for place in (folder / FOLDER).glob("*") if place.name.isdecimal())
    if step is None and not kept:
        raise ValueError(f"no step of {folder} was not finite; name one of its steps with --step")
    step = kept[-1] if step is None else step
    if not 0 <= step < config.steps:
        raise ValueError(f"the steps of {folder} are 0 to {config.steps - 1}, got {step}")
    world = World(0, 1, 0, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    processes = 1
    if step in kept:
        record = json.loads((folder / FOLDER / str(step) / "step.json").read_text(encoding="utf-8"))
        processes = record["processes"]
    try:
        model, optimizer, first = _model_before(folder, config, step, world)
        say(f"from checkpoint {first}" + (f", {step - first} steps up to step {step}" if step > first else ""))
        batch = _catch_up(config, model, optimizer, first, step, world, make_last=step not in kept)
        if batch is None:
            batch = load_batch(folder / FOLDER / str(step))
        report = Report(step, first, processes, kept=step in kept)
        examine(report, model, batch.to(world.device), config)
    finally:
        distributed.stop()
    return report


def examine(report: Report, model: Any, batch: Batch, config: Config) -> None:
    """Fills the report: one step, forward and backward, every tensor looked at. Nothing is updated.

    Blocks that compute in one piece show nothing of their inside; where something is wrong they are taken apart and the
    step is run once more.
    """
    _run(report, model, batch, config)
    fused = [module for module in model.modules() if hasattr(module, "can_fuse")]
    if report.finite or not fused:
        return
    for block in fused:
        block.can_fuse = _never
    apart = Report(report.step, report.checkpoint, report.processes, report.kept)
    _run(apart, model, batch, config)
    if not apart.finite:
        report.forward, report.backward = apart.forward, apart.backward
    for block in fused:
        del block.can_fuse


def _never(*_: Any) -> bool:
    return False


def _run(report: Report, model: Any, batch: Batch, config: Config) -> None:
    from core.distill import split
    from core.parallel import clip_gradients
    from core.train import seed_step

    report.weights = [name for name, tensor in model.state_dict().items() if not _finite(tensor)]
    report.inputs = [name for name, value in _parts(batch).items() if not _finite(value)]
    model.student.zero_grad()
    seed_step(config.seed, report.step, 0)
    if model.prepare_gram_teacher(report.step):
        report.weights += [
            f"gram_teacher.{name}" for name, tensor in model.gram_teacher.state_dict().items() if not _finite(tensor)
        ]
    rates = rates_at(report.step, config)
    with Watch(model) as watch:
        batch, targets = model.look(batch, rates)
        parts = split(batch, targets, config.parallel.accumulate)
        for part, seen in parts:
            total, terms = model(part, seen, rates)
            for name, term in {"total": total, **terms}.items():
                report.terms[name] = report.terms.get(name, 0.0) + float(term.detach()) / len(parts)
            (total / len(parts)).backward()
    report.forward = watch.forward + [f"targets.{name}" for name, value in _named(targets) if not _finite(value)]
    report.backward = watch.backward
    report.norms = {name: float(norm) for name, norm in clip_gradients(model.student, config.optim.clip).items()}
    for name in report.terms:
        if name != "total" and (wrong := _wrong_gradients(report.step, model, parts, rates, name)):
            report.term_gradients[name] = wrong


class Watch:
    """Notes the modules whose outputs, and whose outputs' gradients, are not finite, in the order of computation."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.forward: list[str] = []
        self.backward: list[str] = []

    def __enter__(self) -> "Watch":
        self.handles = [
            module.register_forward_hook(self._hook(name)) for name, module in self.model.named_modules() if name
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _hook(self, name: str) -> Callable[..., None]:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            for tensor in _tensors(output):
                if not _finite(tensor) and name not in self.forward:
                    self.forward.append(name)
                if tensor.requires_grad:
                    tensor.register_hook(look_back)

        def look_back(gradient: Tensor) -> None:
            if not _finite(gradient) and name not in self.backward:
                self.backward.append(name)

        return look


def _model_before(folder: Path, config: Config, step: int, world: World) -> tuple[Any, torch.optim.Optimizer, int]:
    """Model and optimizer at the newest checkpoint that is not after a step, and that checkpoint's step."""
    from core.distill import build
    from core.optimizer import build_optimizer
    from core.parallel import parallelize
    from core.start import load_gram_teacher, start_from

    torch.manual_seed(config.seed)
    checkpoints = Checkpoints(folder / "checkpoints", keep=1)
    before = [saved for saved in finished_checkpoints(folder / "checkpoints") if saved <= step]
    model = build(config)
    if not before:
        start_from(model, config)
    if not before or not checkpoints.has_gram_teacher(before[-1]):
        load_gram_teacher(model, config)
    # Compiled blocks show nothing of their inside, and recomputed ones would show it twice.
    parallelize(model, replace(config.parallel, compile=False, recompute="none"), world)
    o = config.optim
    optimizer = build_optimizer(
        model.student, betas=o.betas, layer_decay=o.layer_decay, patch_embed_lr=o.patch_embed_lr
    )
    if before:
        checkpoints.load(before[-1], model, optimizer)
    return model, optimizer, before[-1] if before else 0


def _catch_up(
    config: Config,
    model: Any,
    optimizer: torch.optim.Optimizer,
    first: int,
    step: int,
    world: World,
    *,
    make_last: bool,
) -> Batch | None:
    """Trains the steps before `step` as the loop does; returns the batch of `step` itself if that is wanted."""
    from core.data.loader import Loader
    from core.distill import split
    from core.optimizer import set_rates
    from core.parallel import clip_gradients
    from core.train import finite, learn, seed_step

    if first == step and not make_last:
        return None
    with Loader(config, first_step=first, rank=0, size=1, device=world.device) as loader:
        batches: Iterator[Batch] = iter(loader)
        for now in range(first, step):
            seed_step(config.seed, now, 0)
            model.prepare_gram_teacher(now)
            batch, rates = next(batches), rates_at(now, config)
            batch, targets = model.look(batch, rates)
            total, _ = learn(model, split(batch, targets, config.parallel.accumulate), rates)
            if finite(total, clip_gradients(model.student, config.optim.clip)):
                set_rates(optimizer, rates)
                optimizer.step()
                model.follow(rates.momentum)
            optimizer.zero_grad()
        return next(batches) if make_last else None


def _wrong_gradients(step: int, model: Any, parts: list, rates: Rates, name: str) -> list[str]:
    """The student's parameters to which this term alone gives a gradient that is not finite."""
    from core.train import seed_step

    model.student.zero_grad()
    seed_step(model.config.seed, step, 0)
    for part, seen in parts:  # forward anew for every term: sharded parameters go through one backward only
        _, terms = model(part, seen, rates)
        if terms[name].requires_grad:
            terms[name].backward()
    wrong = [path for path, parameter in model.student.named_parameters() if not _finite(parameter.grad)]
    model.student.zero_grad()
    return wrong


def _file(rank: int, size: int) -> str:
    return "batch.safetensors" if size == 1 else f"batch-{rank}.safetensors"


def _parts(batch: Batch) -> dict[str, Any]:
    return {entry.name: getattr(batch, entry.name) for entry in fields(batch)}


def _together(parts: list[Batch]) -> Batch:
    """One batch of the images of several, still crop by crop."""

    def join(tensors: list[Tensor], count: int) -> Tensor:
        crops = [tensor.unflatten(0, (-1, count)) for tensor in tensors]
        return torch.cat(crops, dim=1).flatten(0, 1)

    count, columns = parts[0].num_images, [_parts(part) for part in parts]
    joined: dict[str, Any] = {
        name: join([column[name] for column in columns], count) if isinstance(value, Tensor) else None
        for name, value in columns[0].items()
        if name != "broken"
    }
    return Batch(**joined, broken=tuple(name for part in parts for name in part.broken))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)


def _named(targets: Any) -> Iterator[tuple[str, Any]]:
    """What the teachers saw, by name."""
    for name, value in vars(targets).items():
        if name != "features":
            yield name, value
    for number, seen in enumerate(targets.features):
        for kind, value in seen._asdict().items():
            yield f"features[{number}].{kind}", value


def _finite(value: Any) -> bool:
    """Whether a tensor holds numbers only; what is no floating-point tensor has nothing to show."""
    return not isinstance(value, Tensor) or not value.is_floating_point() or bool(value.isfinite().all())


def _listed(names: list[str], shown: int = 5) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
