"""Rules on everything that moves with the step."""

from dataclasses import asdict

from core.doctor.case import Case, Found
from core.schedules import Schedule, lr_factor, rates_at

RELEASED_LR = 5.657e-3  # ViT-L on ImageNet-1k, the highest effective rate of any released run


def lr_positive(case: Case) -> Found:
    """A learning rate of zero teaches nothing and a negative one unteaches."""
    values = [rates_at(step, case.config).lr for step in _marks(case, case.config.optim.lr)]
    if min(values) >= 0 and max(values) > 0:
        return None
    return f"the learning rate goes from {min(values):g} to {max(values):g}", "set optim.lr.peak and optim.lr.end"


def lr_unusual(case: Case) -> Found:
    """Base rates are multiplied by 4 sqrt(batch / 1024), by batch / 256, or not at all (optim.scaling). A rate that was
    meant as it stands, or a batch that changed since, moves it unseen; the highest of the released runs is 5.7e-3."""
    optim, batch = case.config.optim, case.config.data.batch_size
    peak = max(rates_at(step, case.config).lr for step in _marks(case, optim.lr))
    if 1e-6 <= peak <= 1.1 * RELEASED_LR or peak <= 0:
        return None
    factor = lr_factor(optim.scaling, batch)
    base = max(optim.lr.peak, optim.lr.end, optim.lr.start)
    return (
        f"the learning rate reaches {peak:.3g}: a base of {base:g} times {factor:.4g} ({optim.scaling}, batch {batch})",
        "change optim.lr.peak, or --optim.scaling none to take rates as they stand",
    )


def warmup_too_long(case: Case) -> Found:
    """A rate that is still warming up when the run ends has never been what the recipe means. Lengths are in steps and
    do not shrink with --steps."""
    steps = case.config.steps
    long = [f"{name} {schedule.warmup}" for name, schedule in _schedules(case) if schedule.warmup >= steps]
    if not long:
        return None
    return f"warm-ups as long as the run of {steps} steps or longer: {', '.join(long)}", "shorten them with the run"


def schedule_too_long(case: Case) -> Found:
    """A cosine that the run's end cuts off never reaches its last value. Lengths are in steps and do not shrink with
    --steps."""
    steps = case.config.steps
    long = [
        f"{name} {schedule.warmup} + {schedule.cosine}"
        for name, schedule in _schedules(case)
        if schedule.cosine and schedule.warmup < steps < schedule.warmup + schedule.cosine
    ]
    if not long:
        return None
    return f"cosines that go on after the run's {steps} steps: {', '.join(long)}", "shorten them with the run"


def teacher_temperature(case: Case) -> Found:
    """The teacher's logits are divided by its temperature before they go through the exponential."""
    temperature = case.config.optim.teacher_temp
    low = min(temperature.at(step, case.config.steps) for step in _marks(case, temperature))
    return (f"optim.teacher_temp goes down to {low:g}", "released runs use 0.04 to 0.07") if low <= 0 else None


def teacher_temperature_unusual(case: Case) -> Found:
    """Targets are to be sharper than the student's own answers, or both drift to the same flat distribution."""
    temperature = case.config.optim.teacher_temp
    values = [temperature.at(step, case.config.steps) for step in _marks(case, temperature)]
    student = min(case.config.dino.student_temp, case.config.ibot.student_temp)
    if min(values) <= 0 or (min(values) >= 0.02 and max(values) < student):
        return None
    return (
        f"optim.teacher_temp goes from {min(values):g} to {max(values):g}, the student's temperature is {student:g}",
        "stay between 0.02 and the student's temperature",
    )


def momentum_range(case: Case) -> Found:
    """The teacher becomes momentum times itself plus the rest of the student; outside 0 to 1 it runs away."""
    values = _momenta(case)
    if all(0 <= value <= 1 for value in values):
        return None
    return f"optim.momentum goes from {min(values):g} to {max(values):g}", "released runs use 0.992 to 1"


def momentum_unusual(case: Case) -> Found:
    """A teacher that follows within a few steps gives the student its own noise back. 0.99 forgets half in 69 steps."""
    low = min(_momenta(case))
    if not 0 <= low < 0.9:
        return None
    return f"optim.momentum goes down to {low:g}", "0.99 and more, unless the run has only some hundred steps"


def teacher_never_moves(case: Case) -> Found:
    """With a momentum of 1 from start to end the teacher keeps its first weights: random ones, from scratch."""
    if min(_momenta(case)) < 1:
        return None
    return "optim.momentum is 1 at every step", "start below 1"


def last_layer_frozen(case: Case) -> Found:
    """While the last layers are frozen the prototypes keep their random directions."""
    freeze, steps = case.config.optim.freeze_last_layer, case.config.steps
    if freeze < steps:
        return None
    return f"optim.freeze_last_layer is {freeze}, the run has {steps} steps", "freeze a hundredth of the run or less"


def optimizer_range(case: Case) -> Found:
    """Values that AdamW and its groups cannot use."""
    optim = case.config.optim
    decay = optim.weight_decay
    wrong = [f"betas {optim.betas}"] if not all(0 <= beta < 1 for beta in optim.betas) else []
    wrong += [f"layer_decay {optim.layer_decay:g}"] if not 0 < optim.layer_decay <= 1 else []
    wrong += [f"patch_embed_lr {optim.patch_embed_lr:g}"] if optim.patch_embed_lr < 0 else []
    wrong += [f"clip {optim.clip:g}"] if optim.clip < 0 else []
    low = min(decay.at(step, case.config.steps) for step in _marks(case, decay))
    wrong += [f"weight_decay {low:g}"] if low < 0 else []
    if not wrong:
        return None
    return f"out of range in optim: {', '.join(wrong)}", "betas in [0, 1), layer_decay in (0, 1], the others at least 0"


def _schedules(case: Case) -> list[tuple[str, Schedule]]:
    config, optim = case.config, case.config.optim
    named = [
        (f"optim.{name}", getattr(optim, name)) for name in asdict(optim) if isinstance(getattr(optim, name), Schedule)
    ]
    named.append(("dino.local_weight", config.dino.local_weight))
    return [*named, ("gram.weight", config.gram.weight)] if config.gram.use else named


def _marks(case: Case, schedule: Schedule) -> list[int]:
    """Steps at which a schedule has its extremes."""
    steps, cosine = case.config.steps, schedule.cosine or 0
    turns = {0, schedule.warmup - 1, schedule.warmup, schedule.warmup + cosine, steps - 1}
    return sorted(step for step in turns if 0 <= step < steps)


def _momenta(case: Case) -> list[float]:
    momentum = case.config.optim.momentum
    return [momentum.at(step, case.config.steps) for step in _marks(case, momentum)]
