"""Everything that moves with the step: learning rate, weight decay, EMA momentum, teacher temperature, loss weights.

A value is a function of the step and of nothing else, so a resumed run needs no counter.
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core.config import Config


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A linear warm-up to `peak`, a cosine to `end`, then `end` for good; all lengths in steps.

    `start == peak == 0` with `end > 0` makes the cosine a ramp upwards (half-cosine), as the paper's later stages
    use it. `inclusive` is the older form that ViT-L on ImageNet-1k was trained with: the warm-up's last step is at the
    peak and the cosine stops just above its end; `stretch` then cuts the tail of a cosine that is longer by that
    share and rescales what is left.
    """

    start: float
    peak: float
    end: float
    warmup: int = 0
    cosine: int | None = 0  # None: until the last step of the run
    inclusive: bool = False
    stretch: float = 0.0

    def __post_init__(self) -> None:
        if self.warmup < 0 or (self.cosine is not None and self.cosine < 0):
            raise ValueError(f"a schedule's warm-up and cosine are numbers of steps, got {self.warmup}, {self.cosine}")
        if self.stretch < 0 or (self.stretch and not self.inclusive):
            raise ValueError("stretch is at least 0 and belongs to an inclusive schedule")

    def at(self, step: int, total: int) -> float:
        """The value at a step, counted from 0, of a run of `total` steps."""
        if step < self.warmup:
            pieces = max(self.warmup - 1, 1) if self.inclusive else self.warmup
            return self.start + step * ((self.peak - self.start) / pieces)
        position = step - self.warmup
        length = max(total - self.warmup, 0) if self.cosine is None else self.cosine
        if position >= length:
            return self.end
        if self.inclusive:
            return self.end + (self.peak - self.end) * self._share_left(position, length)
        if length == 1:
            return self.peak
        angle = math.pi if position == length - 1 else position * (math.pi / (length - 1))
        return self.end + (self.peak - self.end) * (1 + math.cos(angle)) / 2

    def _share_left(self, position: int, length: int) -> float:
        if not self.stretch:
            return 0.5 * (1 + math.cos(math.pi * position / length))
        points = int((1 + self.stretch) * length)
        first, last = ((math.cos(math.pi * index / (points - 1)) + 1) / 2 for index in (position, length - 1))
        return (first - last) / (1 - last)


def constant(value: float) -> Schedule:
    """The same value at every step."""
    return Schedule(start=value, peak=value, end=value)


@dataclass(frozen=True)
class Rates:
    """What the schedules say at one step."""

    lr: float
    last_layer_lr: float  # of the heads' last layers: 0 while they are frozen
    weight_decay: float
    momentum: float  # of the EMA teacher
    teacher_temp: float
    local_weight: float  # on the DINO loss of local crops
    gram_weight: float


def rates_at(step: int, config: "Config") -> Rates:
    """The rates of a step, counted from 0."""
    optim, total = config.optim, config.steps
    lr = scaled(optim.lr, lr_factor(optim.scaling, config.data.batch_size)).at(step, total)
    return Rates(
        lr=lr,
        last_layer_lr=0.0 if step < optim.freeze_last_layer else lr,
        weight_decay=optim.weight_decay.at(step, total),
        momentum=optim.momentum.at(step, total),
        teacher_temp=optim.teacher_temp.at(step, total),
        local_weight=config.dino.local_weight.at(step, total),
        gram_weight=config.gram.weight.at(step, total) if config.gram.use else 0.0,
    )


def scaled(lr: Schedule, factor: float) -> Schedule:
    """A learning rate for another batch: peak and end scaled, in the older form the peak alone."""
    return replace(lr, peak=lr.peak * factor, end=lr.end if lr.inclusive else lr.end * factor)


def lr_factor(scaling: str, batch_size: int) -> float:
    """What a base learning rate is multiplied by for a global batch: 4 sqrt(b/1024), b/256 or 1."""
    return {"sqrt_1024": 4 * math.sqrt(batch_size / 1024), "linear_256": batch_size / 256, "none": 1.0}[scaling]
