"""The numbers of a run: one JSON object a line in metrics.jsonl, and the same to TensorBoard and Weights & Biases.

A line holds `step`, every loss term under its name and their sum `total` (unweighted terms; of this very step, not
smoothed), every rate of `core.schedules.Rates`, `grad_norm_<module>` before clipping, and

    time                 seconds since 1970
    images_per_second    over all processes and the steps since the line before
    step_seconds         mean over the same steps
    data_share           share of that time spent waiting for the next batch
    memory_gib           largest so far: allocated on the GPU, or of this process where there is none
    cpus_busy            cores that the main process kept busy, its data workers not counted
    gpu_busy             share of its last moments in which its GPU did something, where its driver tells

A number that is not finite is written as null: JSON has no other word for it.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from core import distributed
from core.config import Config, to_json
from core.progress import Progress
from core.run_folder import keep_metrics_before, lock, replace_text
from core.schedules import Rates
from core.students import place_in_set

Numbers = Mapping[str, Tensor | float]
Writer = Callable[[int, dict[str, float]], None]  # takes a step and its numbers under the names `group/name`


class Metrics:
    """Writes the numbers of a run from `first_step` on; on the main process alone, elsewhere it is silent.

    Entering drops lines of `first_step` and later, which a run that was killed had written past its checkpoint.
    """

    def __init__(self, folder: Path, config: Config, first_step: int, world_size: int) -> None:
        self.folder, self.config, self.first_step, self.world_size = folder, config, first_step, world_size
        self.active = False
        self.began, self.written = 0.0, 0  # of all steps that this process has done
        self.seconds = self.waited = self.last = self.busy = 0.0  # of the steps since the line before
        self.steps = 0

    def __enter__(self) -> "Metrics":
        self.active = distributed.is_main()
        if self.active:
            with ExitStack() as opened:
                opened.enter_context(lock(self.folder))
                keep_metrics_before(self.folder, self.first_step)
                self.file = opened.enter_context((self.folder / "metrics.jsonl").open("a", encoding="utf-8"))
                label, row = place_in_set(self.folder)
                self.progress = Progress(
                    self.folder, steps=self.config.steps, first_step=self.first_step, label=label, row=row
                )
                opened.callback(self.progress.close)
                self.writers = open_writers(self.folder, self.config, self.first_step)
                for _, close in self.writers:
                    opened.callback(close)
                self.opened = opened.pop_all()
            self.began = time.perf_counter()
            self._start_window()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.active:
            return
        self.active = False
        if value is not None and not isinstance(value, KeyboardInterrupt):
            self.progress.say(f"stopped: {value or type(value).__name__}")
        self.opened.close()

    def due(self, step: int) -> bool:
        """Whether this step is logged: every `log_every`, and the last."""
        return step % self.config.run.log_every == 0 or step == self.config.steps - 1

    def write(
        self,
        step: int,
        terms: Numbers,
        rates: Rates,
        norms: Numbers,
        *,
        data_seconds: float = 0.0,
        step_seconds: float | None = None,
    ) -> None:
        """Notes a finished step; only a logged one waits for the device, so call it on every step.

        terms and norms are means over processes already. step_seconds: without it, the time since the call before.
        """
        if not self.active:
            return
        now = time.perf_counter()
        self.seconds += now - self.last if step_seconds is None else step_seconds
        self.waited += data_seconds
        self.steps += 1
        self.written += 1
        self.last = now
        if self.due(step):
            self._write(step, terms, rates, norms)
            self._start_window()
        self.progress.advance()

    def say(self, text: str) -> None:
        """A line for people, on the terminal and in log.txt."""
        if self.active:
            self.progress.say(text)

    def evaluation(self, step: int, name: str, values: Mapping[str, float]) -> None:
        """Writes evals/<step>/<name>.json; `step` is the number of finished steps, as in a checkpoint's name."""
        if not self.active:
            return
        numbers = {key: float(value) for key, value in values.items()}
        text = json.dumps({key: _finite(value) for key, value in numbers.items()}, indent=2)
        replace_text(self.folder / "evals" / str(step) / f"{name}.json", text + "\n")
        for write, _ in self.writers:  # at the last step that it has seen, so that a resume at `step` keeps it
            write(max(step - 1, 0), {f"{name}/{key}": value for key, value in numbers.items()})
        # Parts of a whole, `flowers/top1_k10`, stay in the file.
        whole = ", ".join(f"{key} {value:.4g}" for key, value in numbers.items() if "/" not in key)
        self.progress.say(f"{name} after {step} steps: {whole}")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done inside counts in no step: evaluations, probes, checkpoints.

        The time left counts it, since more of it will come; not what comes before the first step, which comes once.
        """
        began, busy = time.perf_counter(), time.process_time()
        yield
        took = time.perf_counter() - began
        self.last += took
        self.busy += time.process_time() - busy
        if not self.written:
            self.began += took

    def _write(self, step: int, terms: Numbers, rates: Rates, norms: Numbers) -> None:
        images = self.config.data.batch_size * self.steps
        groups: dict[str, dict[str, float]] = {
            "loss": {name: float(value) for name, value in terms.items()},
            "rates": asdict(rates),
            "grad_norm": {name: float(norm) for name, norm in norms.items()},
            "speed": {
                "images_per_second": images / max(self.seconds, 1e-9),
                "step_seconds": self.seconds / self.steps,
                "data_share": min(self.waited / max(self.seconds, 1e-9), 1.0),
            },
        }
        groups["speed"]["cpus_busy"] = (time.process_time() - self.busy) / max(self.seconds, 1e-9)
        if (memory := peak_memory_gib()) is not None:
            groups["speed"]["memory_gib"] = memory
        if (busy := gpu_busy()) is not None:
            groups["speed"]["gpu_busy"] = busy
        line: dict[str, Any] = {"step": step, "time": round(time.time(), 3)}
        for group, values in groups.items():
            prefix = "grad_norm_" if group == "grad_norm" else ""
            line |= {prefix + name: _finite(value) for name, value in values.items()}
        self.file.write(json.dumps(line, allow_nan=False) + "\n")
        self.file.flush()
        for write, _ in self.writers:
            write(
                step, {f"{group}/{name}": value for group, values in groups.items() for name, value in values.items()}
            )
        left = (self.config.steps - 1 - step) * (time.perf_counter() - self.began) / self.written
        shown = {name: line[name] for name in groups["loss"]}
        self.progress.report(step, shown, groups["speed"]["images_per_second"], left)

    def _start_window(self) -> None:
        self.seconds = self.waited = 0.0
        self.steps = 0
        self.last, self.busy = time.perf_counter(), time.process_time()


def open_writers(folder: Path, config: Config, first_step: int) -> list[tuple[Writer, Callable[[], None]]]:
    """The further writers that the configuration asks for, each with the function that closes it.

    Raises ModuleNotFoundError with a sentence when their package is not installed.
    """
    writers = []
    if config.run.tensorboard:
        writers.append(_tensorboard(folder, first_step))
    if config.run.wandb:
        writers.append(_wandb(folder, config))
    return writers


def _tensorboard(folder: Path, first_step: int) -> tuple[Writer, Callable[[], None]]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(_missing("run.tensorboard", "tensorboard")) from error
    board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)  # hides what a killed run wrote beyond

    def write(step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            board.add_scalar(name, value, step)
        board.flush()

    return write, board.close


def _wandb(folder: Path, config: Config) -> tuple[Writer, Callable[[], None]]:
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(_missing("run.wandb", "wandb")) from error
    # The folder's name is the run's identity there, so a resumed run goes on in the same curves. Without a network:
    # WANDB_MODE=offline. `step` is a metric of its own, since wandb's counter refuses to go back on a resume.
    name = folder.resolve().name
    run = wandb.init(
        project=config.run.wandb,
        id=name,
        name=name,
        resume="allow",
        dir=str(folder),
        config=json.loads(to_json(config)),
    )
    run.define_metric("step")
    run.define_metric("*", step_metric="step")

    def write(step: int, numbers: dict[str, float]) -> None:
        run.log({"step": step, **numbers})

    return write, run.finish


def _missing(setting: str, package: str) -> str:
    return f"{setting} needs the package {package}: pip install 'gramscope[log]', or leave the setting out"


def peak_memory_gib() -> float | None:
    """The largest memory so far in GiB: allocated on the GPU, else of this process; None where nobody can say."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def gpu_busy() -> float | None:
    """The share of its last moments in which the GPU did something; None without one, or where its driver is mute."""
    if not torch.cuda.is_available():
        return None
    try:
        return torch.cuda.utilization() / 100
    except (ModuleNotFoundError, RuntimeError):  # nvidia-ml-py is not installed, or may not ask
        return None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
