"""Training: builds everything, then the loop. Read `train` first, then `core/distill.py`.

`python -m core.train RUN` trains the run whose folder holds a config.json, from its newest checkpoint or from the
start; torchrun starts the same line on many processes. RUN may be a set of students (core/students.py).
"""

import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType

import numpy as np
import torch
from torch import Tensor

from core import distributed
from core.checkpoint import Checkpoints, export_teacher
from core.config import Config, load_config
from core.data.batch import Batch
from core.data.loader import Loader
from core.distill import SelfDistillation, Targets, build, split
from core.distributed import World
from core.evals.incontext import in_context
from core.evals.objects import in_objects
from core.evals.segmentation import labelled_folder, read
from core.evaluate import Benchmark, evaluate, load_benchmark, spectrum
from core.memory import keep_freed_memory
from core.metrics import Metrics
from core.models.weights import load_backbone
from core.optimizer import build_optimizer, set_rates
from core.parallel import clip_gradients, parallelize
from core.probes import Probe, open_probes, write_probes
from core.replay import save_batch
from core.schedules import Rates, rates_at
from core.start import load_gram_teacher, start_from
from core.students import enter

LOG = logging.getLogger("core")


def train(folder: Path, *, stop_after: int | None = None) -> int:
    """Trains a run until its last step, a signal or `stop_after` finished steps; returns how many are finished."""
    config, world, heard = load_config(folder), distributed.start(), Heard()
    run = prepare(folder, config, world)
    model, optimizer, metrics = run.model, run.optimizer, run.metrics
    last = config.steps if stop_after is None else min(stop_after, config.steps)
    with (
        metrics,
        Loader(config, first_step=run.finished, device=world.device, **share_of_images()) as loader,
        Signals(world.device) as stop,
    ):
        heard.pass_on(metrics.say)
        with metrics.paused():
            run.write_due(first=True)
        for step, (batch, waited) in enumerate(timed(loader), start=run.finished):
            if step >= last:
                break
            seed_step(config.seed, step, world.rank)
            if model.prepare_gram_teacher(step):
                metrics.say(f"step {step}: the EMA teacher became the Gram teacher")
            run.report_broken(batch)
            rates = rates_at(step, config)

            batch, targets = model.look(batch, rates)
            total, terms = learn(model, split(batch, targets, config.parallel.accumulate), rates)
            norms = clip_gradients(model.student, config.optim.clip)
            if finite(total, norms):  # before the update, so the weights stay clean
                set_rates(optimizer, rates)
                optimizer.step()
                model.follow(rates.momentum)
                run.nonfinite_in_a_row = 0
            else:
                run.report_nonfinite(step, batch, terms | {"total": total} | norms)
            optimizer.zero_grad()

            run.finished = step + 1
            metrics.write(step, terms | {"total": total}, rates, norms, data_seconds=waited)
            leaving = stop.asked()  # once a step: what arrives after it is heard in the next one
            with metrics.paused():
                run.write_due(leaving=leaving or run.finished == last)
            if leaving:
                metrics.say(f"{stop.now}: saved after step {run.finished}; `gramscope resume` goes on from there")
                break
    return run.finished


def learn(
    model: SelfDistillation, parts: list[tuple[Batch, Targets]], rates: Rates
) -> tuple[Tensor, dict[str, Tensor]]:
    """Forward and backward over the parts of a batch; the mean over processes of the total and of each term."""
    sums: dict[str, Tensor] = {}
    for batch, targets in parts:
        total, terms = model(batch, targets, rates)
        (total / len(parts)).backward()
        for name, value in {"total": total, **terms}.items():
            sums[name] = sums.get(name, 0) + value.detach() / len(parts)
    means = distributed.all_mean(torch.stack([value.float() for value in sums.values()]))
    named = dict(zip(sums, means, strict=True))
    return named.pop("total"), named


def finite(total: Tensor, norms: dict[str, Tensor]) -> bool:
    """Whether loss and gradients are numbers, on all processes alike: both are means over them."""
    return bool(torch.stack([total, *(torch.as_tensor(norm) for norm in norms.values())]).isfinite().all())


def seed_step(seed: int, step: int, rank: int) -> None:
    """Drop path and rotary jitter of a step depend on seed, step and process alone: a resume continues them."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]) >> 1)


def share_of_images() -> dict[str, int]:
    """Each process loads its part of a step's images, whichever student it trains: students exchange them."""
    everyone = distributed.everyone()
    return {"rank": distributed.rank(everyone), "size": distributed.size(everyone)}


def timed(loader: Loader) -> Iterator[tuple[Batch, float]]:
    """Batches with the seconds waited for each."""
    batches = iter(loader)
    while True:
        began = time.perf_counter()
        batch = next(batches)
        yield batch, time.perf_counter() - began


@dataclass
class Run:
    """A run under way: what is trained, how far it is, and what it has to write."""

    folder: Path
    config: Config
    model: SelfDistillation
    optimizer: torch.optim.Optimizer
    checkpoints: Checkpoints
    metrics: Metrics
    finished: int
    benchmark: Benchmark | None = None
    probes: list[Probe] = field(default_factory=list)
    nonfinite_in_a_row: int = 0
    num_broken: int = 0

    def write_due(self, *, first: bool = False, leaving: bool = False) -> None:
        """Evaluation, teacher, probes and checkpoint where the configuration asks for them after this many steps.

        The checkpoint comes last: a run killed in between resumes before it and writes the others again.
        """
        settings, done = self.config.run, self.finished
        whole = done == self.config.steps

        def due(every: int) -> bool:
            return bool(every) and (done % every == 0 and (done > 0 or first) and (not first or done == 0))

        evaluating = due(settings.evaluate_every) or (whole and bool(settings.evaluate_every) and not first)
        if evaluating:
            self.evaluate()
        probing, segmenting = due(settings.probe_every), evaluating and bool(settings.masks)
        if due(settings.export_every) or probing or segmenting or (whole and not first):
            path = self.folder / "teacher" / f"{done}.safetensors"
            export_teacher(self.model, path)
            if probing and distributed.is_main():
                self.probes = self.probes or open_probes(self.config)
                write_probes(self.folder, done, load_backbone(path), self.probes, size=settings.probe_size)
            if segmenting and distributed.is_main():
                self.segment(path)
        if not first and (due(settings.checkpoint_every) or leaving or whole):
            self.checkpoints.save(done, self.model, self.optimizer)

    def segment(self, teacher: Path) -> None:
        """What masks say of its patches, across pictures and inside one; both from one look at each picture."""
        backbone, folder = load_backbone(teacher), labelled_folder(self.config.run.masks)
        train, val = (read(backbone, folder, split, size=self.config.run.masks_size) for split in ("train", "val"))
        self.metrics.evaluation(self.finished, "incontext", in_context(train, val))
        if found := in_objects(train, val):  # else objects are too small for patches as large as these
            self.metrics.evaluation(self.finished, "objects", found)

    def evaluate(self) -> None:
        """k-NN of the teacher and the spectrum of its CLS tokens, where a source has labels."""
        if self.benchmark is None:
            self.benchmark = load_benchmark(self.config, side=self.config.crops.sizes[0].global_size)
            if not self.benchmark.parts:
                self.metrics.say("no source has labels and a validation split: k-NN is left out")
        if self.benchmark.parts:
            values = evaluate(self.model.teacher["backbone"], self.benchmark)
            self.metrics.evaluation(self.finished, "knn", values)
            if found := spectrum(self.model.teacher["backbone"], self.benchmark):
                self.metrics.evaluation(self.finished, "spectrum", found)

    def report_broken(self, batch: Batch) -> None:
        """Names images that could not be read, in the log and in broken.txt; others took their places."""
        if not batch.broken:
            return
        with (self.folder / "broken.txt").open("a", encoding="utf-8") as file:
            file.writelines(f"{name}\n" for name in batch.broken)
        self.num_broken += len(batch.broken)
        self.metrics.say(
            f"not readable, others took their places ({self.num_broken} so far): {', '.join(batch.broken)}"
        )

    def report_nonfinite(self, step: int, batch: Batch, values: dict[str, Tensor]) -> None:
        """Keeps the batch; raises FloatingPointError unless the run is to skip it and it is not the third in a row."""
        self.nonfinite_in_a_row += 1
        kept = save_batch(self.folder, step, batch, values)
        wrong = ", ".join(name for name, value in values.items() if not bool(torch.as_tensor(value).isfinite().all()))
        say = f"step {step}: not finite: {wrong}; the weights were left as they were, the batch is in {kept}"
        if self.config.run.nonfinite == "stop" or self.nonfinite_in_a_row >= 3:
            raise FloatingPointError(f"{say}. See where it began: gramscope replay {self.folder} --step {step}")
        self.metrics.say(f"{say}; going on, as run.nonfinite says")


def prepare(folder: Path, config: Config, world: World) -> Run:
    """Models with the weights they start from, wrapped for many devices, and the newest checkpoint loaded."""
    if world.device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(config.seed)
    model = build(config)  # on the CPU: parallelize moves it, a block at a time where it is sharded
    checkpoints = Checkpoints(folder / "checkpoints", keep=config.run.keep, keep_every=config.run.keep_every)
    finished = checkpoints.newest()
    if finished is None:
        start_from(model, config)
    if finished is None or not checkpoints.has_gram_teacher(finished):
        load_gram_teacher(model, config)
    parallelize(model, config.parallel, world)
    o = config.optim
    optimizer = build_optimizer(
        model.student, betas=o.betas, layer_decay=o.layer_decay, patch_embed_lr=o.patch_embed_lr
    )
    if finished is not None:
        checkpoints.load(finished, model, optimizer)
    metrics = Metrics(folder, config, finished or 0, world.size)
    return Run(folder, config, model, optimizer, checkpoints, metrics, finished or 0)


class Heard(logging.Handler):
    """What the project's modules log from now on: kept until there is somebody to pass it on to."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.kept: list[str] = []
        self.say = self.kept.append
        for other in [handler for handler in LOG.handlers if isinstance(handler, Heard)]:
            LOG.removeHandler(other)  # of an earlier run in this process
        LOG.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.say(record.getMessage())

    def pass_on(self, say: Callable[[str], None]) -> None:
        """Says what was kept, and everything after it at once."""
        self.say = say
        for text in self.kept:
            say(text)


class Signals:
    """Remembers SIGINT, SIGTERM and SIGUSR1 (preemption), so that a step is finished and saved before leaving."""

    NAMES = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> "Signals":
        self.now = ""
        self.before = {name: signal.signal(name, self._note) for name in self.NAMES}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, handler in self.before.items():
            signal.signal(name, handler)
        if isinstance(value, FloatingPointError) and distributed.own() is not None:
            self.now = self.now or "not finite"
            self.asked()  # the other students, which go on, hear of it here

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.now and number == signal.SIGINT:
            raise KeyboardInterrupt  # asked twice: leave at once, the newest checkpoint stays
        self.now = signal.Signals(number).name

    def asked(self) -> bool:
        """Whether any process was told to stop, of any student: all then leave after the same step.

        What arrives here while the processes talk to each other is heard in the next step, by all of them.
        """
        if distributed.size(distributed.everyone()) == 1:
            return bool(self.now)
        told = distributed.all_sum(torch.tensor(float(bool(self.now)), device=self.device), distributed.everyone())
        if told > 0:
            self.now = self.now or "another process was told to stop"
        return bool(told > 0)


def main() -> None:
    """The command line of one process."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise SystemExit("usage: python -m core.train RUN, a folder with a config.json (gramscope train makes one)")
    try:
        train(enter(Path(sys.argv[1])))
    finally:
        distributed.stop()


if __name__ == "__main__":
    main()
