"""A job that was handed to an engine: recorded in the run's folder, so that anybody finds it again.

FOLDER/jobs/1/job.json      what was submitted, where, and what the engine calls it
FOLDER/jobs/1/script        the text that was submitted
FOLDER/jobs/1/log.txt       what it printed
FOLDER/jobs/1/ended         its exit status, written by the job itself
"""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cluster.job import Job
from cluster.launcher import Handle, Launcher
from cluster.states import Status
from cluster.targets import Target

RECORD, SCRIPT, LOG, ENDED = "job.json", "script", "log.txt", "ended"


@dataclass(frozen=True)
class Submission:
    """One submission of a job; see the module's docstring for what lies in `place`."""

    job: Job
    target: Target
    handle: Handle
    place: Path
    submitted: float  # seconds since 1970

    @property
    def launcher(self) -> Launcher:
        from cluster import LAUNCHERS

        return LAUNCHERS[self.target.launcher]

    @property
    def number(self) -> int:
        """Of this submission among those of the run."""
        return int(self.place.name)

    def status(self) -> Status:
        """How it stands."""
        return self.launcher.status(self.handle, self.place)

    def logs(self, lines: int = 50) -> str:
        """The last lines that it printed."""
        return self.launcher.logs(self.handle, self.place, lines)

    def cancel(self) -> None:
        """Ends it; a run in training saves first where the engine is patient enough."""
        self.launcher.cancel(self.handle, self.place)

    def requeue(self) -> "Submission":
        """Stops it and queues it again; a run in training goes on from its newest checkpoint."""
        again = replace(self, handle=self.launcher.requeue(self.handle, self.place))
        again.write()
        return again

    def write(self) -> None:
        """Writes the record; whoever reads meanwhile sees the old one or the new one."""
        record = {
            "job": asdict(self.job) | {"folder": str(self.job.folder), "environment": dict(self.job.environment)},
            "target": asdict(self.target),
            "handle": self.handle,
            "submitted": self.submitted,
        }
        draft = self.place / f"{RECORD}.{os.getpid()}"
        draft.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        draft.replace(self.place / RECORD)


def submit(job: Job, target: Target, *, after: Sequence[Submission] = ()) -> Submission:
    """Hands a job to the target's engine and records it in the run's folder.

    after: submissions that have to end well first. Raises RuntimeError with the engine's words when it refuses;
    nothing is recorded then.
    """
    from cluster import LAUNCHERS

    launcher = LAUNCHERS[target.launcher]
    place = _new_place(job.folder)
    try:
        text = launcher.render(job, target, place, tuple(each.handle for each in after))
        (place / SCRIPT).write_text(text, encoding="utf-8")
        handle = launcher.submit(job, target, place, text)
    except BaseException:
        _remove(place)
        raise
    made = Submission(job, target, handle, place, time.time())
    made.write()
    return made


def sweep(jobs: Sequence[Job], target: Target, *, at_once: int = 0) -> list[Submission]:
    """Hands many jobs over together: on Slurm as one array, elsewhere one by one.

    at_once: how many run at a time, 0 for as many as there is room for. Raises ValueError where the engine cannot
    hold jobs back, RuntimeError when it refuses.
    """
    if target.launcher != "slurm":
        if at_once:
            raise ValueError(f"{target.launcher} starts what it has room for; at_once is for Slurm")
        return [submit(job, target) for job in jobs]
    from cluster import slurm

    places = [_new_place(job.folder) for job in jobs]
    for job, place in zip(jobs, places, strict=True):
        (place / SCRIPT).write_text(slurm.render(job, target, place), encoding="utf-8")
    try:
        handles = slurm.submit_array(places, slurm.render_array(jobs, target, places, at_once=at_once))
    except BaseException:
        for place in places:
            _remove(place)
        raise
    made = [
        Submission(job, target, handle, place, time.time())
        for job, handle, place in zip(jobs, handles, places, strict=True)
    ]
    for each in made:
        each.write()
    return made


def _remove(place: Path) -> None:
    for path in place.iterdir():
        path.unlink()
    place.rmdir()


def _new_place(folder: Path) -> Path:
    jobs = folder.absolute() / "jobs"
    jobs.mkdir(parents=True, exist_ok=True)
    number = max((int(path.name) for path in jobs.iterdir() if path.name.isdecimal()), default=0)
    while True:
        number += 1
        try:
            (jobs / str(number)).mkdir()
        except FileExistsError:
            continue  # somebody else submits at this moment
        return jobs / str(number)


def submissions(folder: Path) -> list[Submission]:
    """What was submitted for a run, in order. Raises ValueError for a damaged record."""
    places = [path.parent for path in folder.absolute().glob(f"jobs/*/{RECORD}") if path.parent.name.isdecimal()]
    return [_read(place) for place in sorted(places, key=lambda place: int(place.name))]


def _read(place: Path) -> Submission:
    try:
        record: dict[str, Any] = json.loads((place / RECORD).read_text(encoding="utf-8"))
        job, target = record["job"], record["target"]
        lists = ("before", "options")
        return Submission(
            Job(**job | {"folder": Path(job["folder"]), "arguments": tuple(job["arguments"])}),
            Target(**target | {name: tuple(target[name]) for name in lists}),
            record["handle"],
            place,
            record["submitted"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{place / RECORD} is damaged: {error}") from error


def ended(place: Path) -> int | None:
    """The exit status that a job left, None while there is none."""
    try:
        return int((place / ENDED).read_text())
    except (FileNotFoundError, ValueError):
        return None


def last_lines(path: Path, lines: int) -> str:
    """The end of a text file, without reading all of it; empty where there is none yet."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(file.tell() - 400 * lines, 0))
            text = file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    # A progress bar writes over its line: what stands there at the end counts.
    shown = [line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n") if line.strip()]
    return "\n".join(shown[-lines:])
