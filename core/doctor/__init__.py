"""The run doctor: what will go wrong, or is probably not meant, said before the first step and within seconds.

A rule is a function of a `Case` that returns what it found and what to do about it, or None; its docstring explains
why that matters. RULES holds them all, red or amber. Red: the run will stop, or train something that nobody can want.
Amber: it will run, and somebody should have a look.
"""

import inspect
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from core.config import Config
from core.doctor import crops, gram, history, init, machine, objective, rates, run, sources, teachers
from core.doctor.case import Case, Found, Machine

__all__ = ["RULES", "Finding", "Machine", "check", "report", "worst"]

Level = Literal["red", "amber"]

RULES: dict[str, tuple[Level, Callable[[Case], Found]]] = {
    # Gram anchoring
    "gram-teacher-missing": ("red", gram.teacher_missing),
    "gram-teacher-not-found": ("red", gram.teacher_not_found),
    "gram-teacher-architecture": ("red", gram.teacher_architecture),
    "gram-teacher-is-init": ("amber", gram.teacher_is_init),
    "gram-teacher-random": ("red", gram.teacher_random),
    "gram-two-teachers": ("red", gram.two_teachers),
    "gram-follow-ema": ("red", gram.follow_ema),
    "gram-stage-order": ("red", gram.stage_order),
    "gram-never-refreshed": ("amber", gram.never_refreshed),
    "gram-weight-zero": ("amber", gram.weight_zero),
    "gram-not-used": ("amber", gram.not_used),
    "gram-crop-smaller": ("red", gram.crop_smaller),
    "gram-crop-ratio": ("amber", gram.crop_ratio),
    "gram-distorted": ("amber", gram.distorted),
    "gram-images-small": ("amber", gram.images_small),
    "gram-batch-level": ("amber", gram.batch_level),
    # What the student starts from
    "init-not-found": ("red", init.not_found),
    "init-architecture": ("red", init.architecture),
    "init-narrow": ("red", init.narrow),
    "init-heads": ("red", init.heads),
    "init-no-heads": ("amber", init.no_heads),
    "init-warms-up-again": ("amber", init.warms_up_again),
    "init-missing-at-high-resolution": ("amber", init.missing_at_high_resolution),
    # Frozen teachers
    "teacher-not-found": ("red", teachers.not_found),
    "teacher-no-prototypes": ("red", teachers.no_prototypes),
    "teacher-other-prototypes": ("red", teachers.other_prototypes),
    "teacher-chunks": ("red", teachers.chunks),
    "teacher-cells": ("red", teachers.cells),
    "teacher-scale-alone": ("amber", teachers.student_scale_alone),
    "teacher-warms-up": ("amber", teachers.warms_up),
    # Model, crops and masks
    "arch-unknown": ("red", crops.arch_unknown),
    "crop-not-of-patches": ("red", crops.not_of_patches),
    "crop-local-not-smaller": ("amber", crops.local_not_smaller),
    "crop-no-local": ("red", crops.no_local),
    "crop-shares": ("red", crops.shares),
    "mask-nothing": ("red", crops.mask_nothing),
    "mask-everything": ("amber", crops.mask_everything),
    "mask-convnext": ("amber", crops.mask_convnext),
    # Batches and losses
    "batch-world": ("red", objective.batch_world),
    "batch-accumulate": ("red", objective.batch_accumulate),
    "koleo-alone": ("red", objective.koleo_alone),
    "koleo-group": ("red", objective.koleo_group),
    "loss-weights": ("red", objective.loss_weights),
    "loss-off": ("amber", objective.loss_off),
    "student-temperature": ("red", objective.student_temperature),
    # Rates
    "lr-positive": ("red", rates.lr_positive),
    "lr-unusual": ("amber", rates.lr_unusual),
    "warmup-too-long": ("amber", rates.warmup_too_long),
    "schedule-too-long": ("amber", rates.schedule_too_long),
    "teacher-temperature": ("red", rates.teacher_temperature),
    "teacher-temperature-unusual": ("amber", rates.teacher_temperature_unusual),
    "momentum-range": ("red", rates.momentum_range),
    "momentum-unusual": ("amber", rates.momentum_unusual),
    "teacher-never-moves": ("red", rates.teacher_never_moves),
    "last-layer-frozen": ("amber", rates.last_layer_frozen),
    "optimizer-range": ("red", rates.optimizer_range),
    # Data
    "source-none": ("red", sources.none),
    "source-unreadable": ("red", sources.unreadable),
    "source-too-small": ("red", sources.too_small),
    "source-shares": ("red", sources.shares),
    "images-broken": ("amber", sources.images_broken),
    "images-small": ("amber", sources.images_small),
    "evaluate-no-labels": ("amber", sources.evaluate_no_labels),
    # What is written
    "interval-beyond-run": ("amber", run.interval_beyond_run),
    "checkpoint-never": ("amber", run.checkpoint_never),
    "checkpoint-keep": ("red", run.checkpoint_keep),
    "export-never": ("amber", run.export_never),
    "masks-missing": ("red", run.masks_missing),
    "masks-never": ("amber", run.masks_never),
    "probe-none": ("amber", run.probe_none),
    "logger-missing": ("red", run.logger_missing),
    # The machine
    "disk-space": ("red", machine.disk_space),
    "disk-space-later": ("amber", machine.disk_space_later),
    "memory": ("red", machine.memory),
    "memory-tight": ("amber", machine.memory_tight),
    "fp8-hardware": ("red", machine.fp8_hardware),
    "fp8-precision": ("red", machine.fp8_precision),
    "fp8-widths": ("red", machine.fp8_widths),
    "bf16-on-cpu": ("amber", machine.bf16_on_cpu),
    "compile-on-cpu": ("amber", machine.compile_on_cpu),
    "workers": ("amber", machine.workers),
    # A run that exists already
    "run-finished": ("amber", history.finished),
    "run-half-checkpoint": ("amber", history.half_checkpoint),
    "run-export-broken": ("red", history.export_broken),
    "run-not-finite": ("amber", history.not_finite),
    "run-broken-images": ("amber", history.broken_images),
    "run-not-learning": ("amber", history.not_learning),
}


@dataclass(frozen=True)
class Finding:
    """What a rule found: its id, red or amber, the facts, what to do, and why it matters."""

    rule: str
    level: Level
    found: str
    do: str
    why: str


def check(
    config: Config, *, world: int = 1, folder: Path | None = None, machine: Machine | None = None
) -> list[Finding]:
    """What the rules find in a run of `world` processes, red first.

    folder: the run's folder, whether it exists yet or not; where it does, what lies in it is looked at too. machine:
    without it this one.
    """
    case = Case(config, world, folder, Machine.here(folder) if machine is None else machine)
    findings = []
    for name, (level, rule) in RULES.items():
        if answer := rule(case):
            found, do = answer
            why = " ".join(inspect.cleandoc(rule.__doc__ or "").split())
            findings.append(Finding(name, level, found, do, why))
    return sorted(findings, key=lambda finding: finding.level != "red")


def worst(findings: Sequence[Finding]) -> str:
    """ "red", "amber" or "green": the state of the whole run."""
    levels = {finding.level for finding in findings}
    return next((level for level in ("red", "amber") if level in levels), "green")


def report(findings: Sequence[Finding], *, width: int = 100) -> str:
    """The findings as text for people, every level said in words."""
    if not findings:
        return f"GREEN  all {len(RULES)} rules are content."
    parts = []
    for finding in findings:
        lines = [("       ", f"Do: {finding.do}"), ("       ", f"Why: {finding.why}")]
        head = textwrap.fill(
            f"{finding.level.upper():<5}  {finding.rule}: {finding.found}", width, subsequent_indent=" " * 7
        )
        rest = [textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent) for indent, text in lines]
        parts.append("\n".join([head, *rest]))
    red = sum(finding.level == "red" for finding in findings)
    counted = f"{red} red, {len(findings) - red} amber, {len(RULES) - len(findings)} of {len(RULES)} rules are content."
    return "\n\n".join([*parts, counted])
