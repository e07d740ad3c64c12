"""Rules on a run folder that has been trained in."""

import math

from core.doctor.case import Case, Found, read_shapes
from core.run_folder import read_metrics


def finished(case: Case) -> Found:
    """A run that has reached its last step has nothing to resume."""
    from core.checkpoint import finished_checkpoints

    steps = finished_checkpoints(case.run / "checkpoints") if case.run else []
    if not steps or steps[-1] < case.config.steps:
        return None
    return f"all {case.config.steps} steps are done", "give it more with gramscope resume RUN --steps N"


def half_checkpoint(case: Case) -> Found:
    """A checkpoint is written under another name and renamed when it is whole; one that was interrupted stays behind
    and is never read."""
    from core.checkpoint import leftovers

    half = [path.name for path in leftovers(case.run / "checkpoints")] if case.run else []
    return (f"half-written checkpoints: {', '.join(half)}", "delete them to free the space") if half else None


def export_broken(case: Case) -> Found:
    """An exported teacher is what evaluations, later stages and the workbench read."""
    from core.checkpoint import teacher_steps

    if case.run is None:
        return None
    wrong = []
    for step in teacher_steps(case.run):
        try:
            read_shapes(case.run / "teacher" / f"{step}.safetensors")
        except (OSError, ValueError) as error:
            wrong.append(str(error))
    return ("; ".join(wrong), "delete it; a resume from an earlier checkpoint writes it again") if wrong else None


def not_finite(case: Case) -> Found:
    """A step whose loss was no number leaves its batch behind, so that it can be run again under a magnifying glass."""
    if case.run is None or not (folder := case.run / "nonfinite").is_dir():
        return None
    steps = sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal())
    if not steps:
        return None
    return f"the loss was not finite at step {', '.join(map(str, steps[-5:]))}", f"gramscope replay {case.run}"


def broken_images(case: Case) -> Found:
    """Images that could not be read were replaced by others; broken.txt names them."""
    if case.run is None or not (path := case.run / "broken.txt").exists():
        return None
    lines = set(path.read_text(encoding="utf-8", errors="replace").splitlines())
    return (f"{len(lines)} images could not be read", f"see {path}") if lines else None


def not_learning(case: Case) -> Found:
    """At the start every prototype is as likely as every other and the DINO loss is ln K. When it is still there after
    the warm-ups, the student has not found anything to tell images apart by."""
    optim = case.config.optim
    after = max(optim.lr.warmup, optim.freeze_last_layer, optim.teacher_temp.warmup) + 500
    lines = [line for line in read_metrics(case.run) if line["step"] >= after] if case.run else []
    values = [line["dino_global"] for line in lines[-10:] if isinstance(line.get("dino_global"), float)]
    chance = math.log(case.config.dino.head.prototypes)
    if not values or min(values) < chance - 0.05:
        return None
    return (
        f"the DINO loss is still {values[-1]:.2f} after {lines[-1]['step']} steps; ln K is {chance:.2f}",
        "try another learning rate or a higher teacher temperature, and look at the images",
    )
