"""Where a run stands, wherever it runs: what the card, the command line and whoever attaches later are told."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cluster import State, Status, Submission, submissions
from core.checkpoint import finished_checkpoints, teacher_steps
from core.dense.color import to_rgb
from workbench.runs import Run, RunSeries, open_run

POINTS = 200  # of a curve
TERMS = ("total", "dino_global", "dino_local", "ibot", "koleo", "gram")
SHOWN = 4  # images of a checkpoint
KEPT = 12  # checkpoints with pictures, the newest
LINES = 12  # of the log


def report(folder: Path, *, pictures: bool = True) -> dict[str, Any]:
    """All of it as JSON; see the keys below. Raises ValueError for a folder without a run.

    state, reason, restarts   of its last submission, in words; "not submitted" where there is none
    jobs                      every submission: number, target, state, reason, restarts
    step, steps, left         finished steps, of how many, and seconds to go (None: nobody can say yet)
    speed                     images a second, seconds a step, share waited for data, memory in GiB
    curves                    {name, steps, values} of each loss term, thinned
    teachers, checkpoints     steps with an exported teacher, and with a checkpoint
    maps                      {step, images: [{name, picture}]} of the newest checkpoints with probes
    log                       the last lines that it printed
    """
    run = open_run(folder)
    made = submissions(folder)
    stands = [each.status() for each in made]
    now = stands[-1] if stands else Status(State.UNKNOWN, "")
    finished = max([run.step, *finished_checkpoints(folder / "checkpoints")], default=0)
    if not made:
        word = "done" if finished >= run.config.steps else "not submitted"
    else:
        word = str(now.state)
        if now.state == State.DONE and finished < run.config.steps:
            word = "stopped"  # it saved and left before its end
    return {
        "name": run.name,
        "folder": str(folder.absolute()),
        "state": word,
        "reason": now.reason,
        "restarts": now.restarts,
        "jobs": [_job(each, status) for each, status in zip(made, stands, strict=True)],
        "step": finished,
        "steps": run.config.steps,
        "left": _left(run, finished) if word == "running" else None,
        "speed": _speed(run),
        "curves": [_curve(run, name) for name in TERMS if any(line.get(name) is not None for line in run.metrics)],
        "teachers": teacher_steps(folder),
        "checkpoints": finished_checkpoints(folder / "checkpoints"),
        "maps": maps_of(run) if pictures else [],
        "log": made[-1].logs(LINES) if made else "",
    }


def sentence(told: dict[str, Any]) -> str:
    """The same in one line."""
    parts = [f"{told['name']}: {told['state']}" + (f" ({told['reason']})" if told["reason"] else "")]
    parts.append(f"step {told['step']} of {told['steps']}")
    if told["speed"]:
        parts.append(f"{told['speed']['images_per_second']:.3g} images/s")
    if told["left"] is not None:
        parts.append(f"{duration(told['left'])} left")
    if told["restarts"]:
        parts.append(f"started again {told['restarts']} times")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """A length of time for people."""
    minutes = max(round(seconds / 60), 1)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes < 2880 else f"{minutes // 1440} d"


def _job(each: Submission, status: Status) -> dict[str, Any]:
    known = {"number": each.number, "target": each.target.name, "id": each.handle.get("id", "")}
    return known | {"state": str(status.state), "reason": status.reason, "restarts": status.restarts}


def _left(run: Run, finished: int) -> float | None:
    """Seconds to go at the pace of the last lines."""
    paces = [line["step_seconds"] for line in run.metrics[-5:] if line.get("step_seconds")]
    return (run.config.steps - finished) * sum(paces) / len(paces) if paces else None


def _speed(run: Run) -> dict[str, float]:
    if not run.metrics:
        return {}
    names = ("images_per_second", "step_seconds", "data_share", "memory_gib", "cpus_busy", "gpu_busy")
    return {name: run.metrics[-1][name] for name in names if run.metrics[-1].get(name) is not None}


def _curve(run: Run, name: str) -> dict[str, Any]:
    steps, values = run.curve(name)
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(POINTS, len(steps))).round().astype(int)).tolist()
    return {"name": name, "steps": [steps[at] for at in chosen], "values": [values[at] for at in chosen]}


def maps_of(run: Run) -> list[dict[str, Any]]:
    """The newest checkpoints' probes in PCA colours that can be followed, a pixel a patch, as data URLs."""
    if not run.probe_steps:
        return []
    try:
        series = RunSeries.of([run])
    except ValueError:  # a checkpoint that is being written, or probes that changed
        return []
    first = max(len(series) - KEPT, 0)
    shown = []
    rows = series.colored(reference=min(1, len(series) - 1))
    for moment, row in list(zip(series.moments, rows, strict=True))[first:]:
        pictures = []
        for name, pack in list(zip(series.images, row, strict=True))[:SHOWN]:
            features = pack.features()
            assert pack.basis is not None  # colored() gives each pack one
            seen = features.valid  # without what was only padded
            cells = to_rgb(pack.basis, features.patches).numpy()[seen.any(1)][:, seen.any(0)]
            pictures.append({"name": name, "picture": _url(cells)})
        shown.append({"step": moment.step, "images": pictures})
    return shown


def _url(cells: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(cells).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
