"""What a launcher is: a module with these functions, listed in `cluster.LAUNCHERS`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from cluster.job import Job
from cluster.states import Status
from cluster.targets import Target

Handle = dict[str, str]  # what an engine needs to find a job again; kept as JSON in the run's folder


class Launcher(Protocol):
    """`place` is the folder of one submission: its script, its log and what the job leaves at its end."""

    def render(self, job: Job, target: Target, place: Path, after: tuple[Mapping[str, str], ...] = ()) -> str:
        """The text that is submitted. after: jobs that have to end well before this one starts."""

    def submit(self, job: Job, target: Target, place: Path, text: str) -> Handle:
        """Hands the text to the engine. Raises RuntimeError with what the engine said when it refuses."""

    def status(self, handle: Mapping[str, str], place: Path) -> Status:
        """How the job stands."""

    def logs(self, handle: Mapping[str, str], place: Path, lines: int) -> str:
        """The last lines that the job printed."""

    def cancel(self, handle: Mapping[str, str], place: Path) -> None:
        """Ends the job; one that trains saves first, if the engine is patient enough."""

    def requeue(self, handle: Mapping[str, str], place: Path) -> Handle:
        """Stops the job and queues it again under the same number where the engine can."""
