"""Several students of the same teachers, trained at once: who they are and which processes each has.

A set is a folder with `students.json` and a run folder for each student, which everything that reads runs reads.
`python -m core.train SET`, started by torchrun, trains them all; each process finds its student here.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from core.config import Config, load_config
from core.run_folder import create as create_run
from core.run_folder import replace_text

FILE = "students.json"
# What the students of a set have in common, since they look at the same images and hear the same teachers.
SHARED = ("seed", "steps", "data", "crops")


@dataclass(frozen=True)
class Student:
    """A student of a set: the name of its run folder, and how many processes train it."""

    name: str
    processes: int


def create(configs: Mapping[str, Config], processes: Mapping[str, int], folder: Path) -> Path:
    """The folder of a new set. Raises ValueError for students that cannot learn together; then nothing is written."""
    check_together(configs)
    students = [Student(name, processes[name]) for name in configs]
    for name, config in configs.items():
        create_run(config, folder / name)
    replace_text(folder / FILE, json.dumps([asdict(student) for student in students], indent=2) + "\n")
    return folder


def check_together(configs: Mapping[str, Config]) -> None:
    """Raises ValueError unless the students see the same images through the same teachers."""
    if not configs:
        raise ValueError("a set has at least one student")
    for name in configs:
        if not name or Path(name).name != name or name.startswith("."):
            raise ValueError(f"{name!r} is no name of a folder; call the student otherwise")
    first, reference = next(iter(configs.items()))
    for name, config in configs.items():
        if not config.distill.use:
            raise ValueError(f"{name} has no frozen teacher; set distill.teacher or distill.features")
        for what in SHARED:
            if getattr(config, what) != getattr(reference, what):
                raise ValueError(f"{name} differs from {first} in {what}, which the students of a set share")
        for what in ("teacher", "features", "chunk"):
            if getattr(config.distill, what) != getattr(reference.distill, what):
                raise ValueError(f"{name} differs from {first} in distill.{what}, which the students of a set share")
        ours, theirs = _masks(config), _masks(reference)
        if ours != theirs:
            raise ValueError(
                f"a mask token stands for {ours[0]} px of the crops in {name} and for {theirs[0]} px in {first}, or "
                "their masks are drawn otherwise; distill.student_scale makes them meet"
            )


def _masks(config: Config) -> tuple[object, ...]:
    from core.data.loader import mask_cell

    ibot = config.ibot
    return mask_cell(config), ibot.masked_crops, ibot.mask_ratio, ibot.mask_shift


def is_set(folder: Path) -> bool:
    """Whether a folder is that of a set."""
    return (folder / FILE).is_file()


def students_in(folder: Path) -> list[Student]:
    """The students of a set, in order of their processes. Raises ValueError for a damaged file."""
    try:
        return [Student(**entry) for entry in json.loads((folder / FILE).read_text(encoding="utf-8"))]
    except (ValueError, TypeError, OSError) as error:
        raise ValueError(f"{folder / FILE} cannot be read: {error}") from error


def place_in_set(run: Path) -> tuple[str, int]:
    """The name of a run among other students and its number there; "" and 0 for a run of its own."""
    if not is_set(run.absolute().parent):
        return "", 0
    names = [student.name for student in students_in(run.absolute().parent)]
    return (run.name, names.index(run.name)) if run.name in names else ("", 0)


def enter(folder: Path) -> Path:
    """The run folder that this process trains: the folder itself, or in a set its student's.

    In a set the processes are divided from here on. Raises ValueError when they are not as many as the set asks for.
    """
    if not is_set(folder):
        return folder
    from core import distributed  # brings torch, which whoever only asks what a folder is can do without

    students = students_in(folder)
    check_together({student.name: load_config(folder / student.name) for student in students})
    distributed.start()
    mine = distributed.divide([student.processes for student in students])
    return folder / students[mine].name
