"""Rules on what a run writes and when."""

from importlib.util import find_spec

from core.doctor.case import Case, Found
from core.evals.segmentation import labelled_folder

INTERVALS = ("checkpoint_every", "keep_every", "export_every", "probe_every", "evaluate_every")


def interval_beyond_run(case: Case) -> Found:
    """Something due every so many steps of a shorter run is never due (checkpoint and teacher of the last step are
    written in any case)."""
    settings, steps = case.config.run, case.config.steps
    late = [f"{name} {getattr(settings, name)}" for name in INTERVALS if getattr(settings, name) > steps]
    if not late:
        return None
    return f"due only after the run's {steps} steps: run.{', run.'.join(late)}", "shorten them with the run"


def checkpoint_never(case: Case) -> Found:
    """A run that is killed goes on from its newest checkpoint."""
    if case.config.run.checkpoint_every > 0:
        return None
    return "run.checkpoint_every is 0: only the end is saved", "--run.checkpoint-every 250, for example"


def checkpoint_keep(case: Case) -> Found:
    """Intervals and numbers of kept things are counts."""
    settings = case.config.run
    wrong = [f"run.{name} {getattr(settings, name)}" for name in INTERVALS if getattr(settings, name) < 0]
    wrong += [f"run.keep {settings.keep}"] if settings.keep < 1 else []
    wrong += [f"run.probes {settings.probes}"] if settings.probes < 0 else []
    wrong += [f"run.log_every {settings.log_every}"] if settings.log_every < 1 else []
    if not wrong:
        return None
    return f"out of range: {', '.join(wrong)}", "run.keep and run.log_every are at least 1, the others at least 0"


def export_never(case: Case) -> Found:
    """Early teachers are what the Gram stage needs, and they cannot be had afterwards: old checkpoints are deleted."""
    if case.config.run.export_every > 0:
        return None
    return "run.export_every is 0: only the last teacher is exported", "--run.export-every 1000, for example"


def logger_missing(case: Case) -> Found:
    """TensorBoard and Weights & Biases are optional packages."""
    settings = case.config.run
    wanted = {"tensorboard": settings.tensorboard, "wandb": bool(settings.wandb)}
    missing = [name for name, wanted_ in wanted.items() if wanted_ and find_spec(name) is None]
    if not missing:
        return None
    return f"not installed: {', '.join(missing)}", "pip install 'gramscope[log]', or leave the setting out"


def masks_missing(case: Case) -> Found:
    """In-context segmentation during training reads a folder of images and masks; without it the run would end when
    the first evaluation is due."""
    settings = case.config.run
    if not settings.masks:
        return None
    try:
        labelled_folder(settings.masks)
    except ValueError as error:
        return f"run.masks: {error}", "--run.masks pets, the small set that comes with the code, or leave it out"
    return None


def masks_never(case: Case) -> Found:
    """In-context segmentation is measured whenever k-NN is due."""
    settings = case.config.run
    if not settings.masks or settings.evaluate_every > 0:
        return None
    return "run.masks is set and run.evaluate_every is 0: masks are never looked at", "--run.evaluate-every 500"


def probe_none(case: Case) -> Found:
    """Probes are the features of the same few images at every so many steps, for the views."""
    settings = case.config.run
    if settings.probe_every <= 0 or settings.probes > 0:
        return None
    return "run.probe_every is set and run.probes is 0", "--run.probes 8, or --run.probe-every 0"
