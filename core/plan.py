"""What a set of students costs a step, and how many processes each should have (paper section 5.2).

On N_T processes that all show the teachers their share, a process of student i, of which there are N_Si, spends
B / N_T x C_T on the teachers and B / N_Si x C_Si on its student. The slowest student sets the pace of all: the others
wait for it when the next images go round.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch

from core.config import Config
from core.data.batch import Batch
from core.data.loader import mask_cell
from core.distill import SelfDistillation, Targets, build, split
from core.optimizer import build_optimizer, set_rates
from core.parallel import clip_gradients
from core.schedules import Rates, rates_at

ROUNDS = 3


@dataclass(frozen=True)
class Costs:
    """Seconds an image: of the teachers together, and of each student with its whole step."""

    teachers: float
    students: Mapping[str, float]

    def seconds(self, batch: int, processes: Mapping[str, int]) -> dict[str, float]:
        """Seconds a step of each student's processes, before they wait for one another."""
        everybody = sum(processes.values())
        return {
            name: batch / everybody * self.teachers + batch / processes[name] * cost
            for name, cost in self.students.items()
        }


def suggest(costs: Costs, batch: int, everybody: int) -> dict[str, int]:
    """The split of so many processes with the shortest step: each further one goes to the slowest student.

    Only numbers that divide the batch count, since a student's processes share it evenly. Raises ValueError when there
    are fewer processes than students or no split fits.
    """
    names = list(costs.students)
    if everybody < len(names):
        raise ValueError(f"{len(names)} students need at least {len(names)} processes, got {everybody}")
    allowed = [count for count in range(1, everybody + 1) if batch % count == 0]
    best: dict[int, tuple[float, dict[str, int]]] = {0: (0.0, {})}  # by processes given away: slowest so far, to whom
    for name in names:
        found: dict[int, tuple[float, dict[str, int]]] = {}
        for used, (slowest, given) in best.items():
            for count in allowed:
                total, pace = used + count, max(slowest, batch / count * costs.students[name])
                if total <= everybody and (total not in found or pace < found[total][0]):
                    found[total] = (pace, given | {name: count})
        best = found
    if everybody not in best:
        raise ValueError(
            f"no split of {everybody} processes fits: those of each student must divide the batch of {batch}; try "
            f"{max(best)} processes"
        )
    return best[everybody][1]


def measure(configs: Mapping[str, Config], *, images: int = 8) -> Costs:
    """The costs here and now: the best of a few rounds on noise, in this process alone, after one that warms up.

    images: how many a student's step has; on a CPU about as many as its processes will really have. No process group is
    needed and nothing is kept.
    """
    students = {}
    teachers = 0.0
    for name, config in configs.items():
        config = replace(config, parallel=replace(config.parallel, compile=False))
        torch.manual_seed(config.seed)
        model = build(config)
        optimizer = build_optimizer(model.student, layer_decay=config.optim.layer_decay)
        rates = rates_at(config.steps // 2, config)
        batch, chunk = noise(config, images), noise(config, config.distill.chunk)
        _, targets = model.look(batch, rates)
        teachers = max(teachers, best_of(partial(model.look, chunk, rates)) / config.distill.chunk)
        step = partial(take_step, model, optimizer, batch, targets, rates, config.optim.clip)
        students[name] = best_of(step) / images
    return Costs(teachers, students)


def take_step(
    model: SelfDistillation,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    targets: Targets,
    rates: Rates,
    clip: float,
) -> None:
    """What the loop of core/train.py does once the teachers have looked, without what it asks and writes."""
    from core.train import learn  # which reads files and folders that a plan has no use for

    learn(model, split(batch, targets, 1), rates)
    clip_gradients(model.student, clip)
    set_rates(optimizer, rates)
    optimizer.step()
    model.follow(rates.momentum)
    optimizer.zero_grad()


def best_of(call: Callable[[], object]) -> float:
    """Seconds of a call, the best of some rounds."""
    times = []
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times[1:])


def noise(config: Config, images: int) -> Batch:
    """A batch of the largest crops there are, of nothing."""
    sizes = max(config.crops.sizes, key=lambda size: size.global_size)
    cells = (sizes.global_size // mask_cell(config)) ** 2
    draw = torch.Generator().manual_seed(0)
    sides = ((2, sizes.global_size), (config.crops.num_local, sizes.local_size))
    wide, near = (torch.randn(count * images, 3, side, side, generator=draw) for count, side in sides)
    masks = torch.zeros(2 * images, cells, dtype=torch.bool)
    masks[::2, : max(cells * 3 // 10, 1)] = True  # half of the crops, three tenths of their patches
    return Batch(wide, near, None, masks)


def text(costs: Costs, batch: int, processes: Mapping[str, int]) -> str:
    """The plan for people, a line a student."""
    everybody = sum(processes.values())
    seconds = costs.seconds(batch, processes)
    slowest = max(seconds.values())
    lines = [
        f"batch {batch} on {everybody} processes; the teachers take {costs.teachers * 1e3:.1f} ms an image, "
        f"{batch / everybody * costs.teachers:.2f} s a step on every process",
        f"{'student':<20} {'processes':>9} {'ms an image':>12} {'s a step':>9} {'waits':>6}",
    ]
    lines += [
        f"{name:<20} {processes[name]:>9} {costs.students[name] * 1e3:>12.1f} {value:>9.2f} {1 - value / slowest:>6.0%}"
        for name, value in seconds.items()
    ]
    return "\n".join([*lines, f"expected: {slowest:.2f} s a step, {batch / slowest:.1f} images/s"])
