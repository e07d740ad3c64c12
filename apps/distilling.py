"""The command that trains several students of one teacher: distill. It imports what it needs when it runs."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from apps.training import findings, listing, share_cores, train_on_many

if TYPE_CHECKING:
    from core.config import Config

SET = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SET")]


def distill(
    students: SET = "",
    teacher: str | None = None,
    data: tuple[str, ...] = (),
    out: Path | None = None,
    on: int | None = None,
    processes: tuple[str, ...] = (),
    change: tuple[str, ...] = (),
    plan: bool = False,
    doctor: bool = True,
) -> None:
    """Train several students of one teacher at once; without a name, list the sets there are.

    Args:
        students: Name of a set.
        teacher: Run with heads, RUN or RUN@STEP, in place of the set's.
        data: Folders, archives or patterns with images, in place of the set's.
        out: Folder of the set; without it runs/<set>-<date>-<n>.
        on: Processes on this machine, shared out so that the students' steps take equally long, as measured here.
        processes: How many each student has, as in small=1 large=3, where you know better.
        change: Settings of all students, as in steps=500 optim.clip=1.0, or of one, as in large:optim.lr.peak=1e-4.
        plan: Measure and print what a step will cost, and leave.
        doctor: Look for what will go wrong first, and refuse on red.
    """
    share_cores()
    from core.recipes import with_data
    from core.sets import SETS

    if not students:
        print(f"{listing('Sets', SETS)}\n\nAs in: gramscope distill nano_pair --teacher runs/nano --plan")
        return
    if students not in SETS:
        raise SystemExit(f"no set called {students!r}; known: {', '.join(SETS)}")
    found = SETS[students]()
    try:
        configs = {name: with_data(config, data) for name, config in found.configs.items()}
        if teacher is not None:
            configs = {n: replace(c, distill=replace(c.distill, teacher=teacher)) for n, c in configs.items()}
        configs = changed(configs, change)
        _train(students, configs, found.processes, out=out, on=on, processes=processes, plan=plan, doctor=doctor)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from None


def _train(
    name: str,
    configs: "Mapping[str, Config]",
    usual: Mapping[str, int],
    *,
    out: Path | None,
    on: int | None,
    processes: Sequence[str],
    plan: bool,
    doctor: bool,
) -> None:
    from core.run_folder import new_folder
    from core.students import check_together, create

    check_together(configs)
    batch = next(iter(configs.values())).data.batch_size
    given = counts(processes, configs) if processes else None
    if doctor:
        for student, config in configs.items():
            print(f"{student}:", file=sys.stderr)
            if any(finding.level == "red" for finding in findings(config, (given or usual)[student], out)):
                raise SystemExit("not started; correct that, or start all the same with --no-doctor")
    if plan or (on is not None and given is None and len(configs) > 1):
        from core.plan import measure, suggest, text

        print("measuring what the teachers and each student cost here ...", file=sys.stderr)
        everybody = sum(given.values()) if given else on or sum(usual.values())
        costs = measure(configs, images=max(min(batch * len(configs) // everybody, 16), 2))
        given = given or suggest(costs, batch, everybody)
        print(text(costs, batch, given), file=sys.stdout if plan else sys.stderr)
    if plan:
        return
    given = given or ({next(iter(configs)): on} if on is not None else dict(usual))
    folder = create(configs, given, new_folder(name) if out is None else out)
    print(f"folder of the set: {folder}", file=sys.stderr)
    train_set(folder)


def train_set(folder: Path) -> None:
    """Trains the students of a set on this machine, each with its processes; says how it ended."""
    from core.checkpoint import finished_checkpoints
    from core.run_folder import check_run
    from core.students import students_in

    students = students_in(folder)
    train_on_many(folder, sum(student.processes for student in students))
    for student in students:
        run = folder / student.name
        finished, steps = max(finished_checkpoints(run / "checkpoints"), default=0), check_run(run).steps
        if finished < steps:
            raise SystemExit(f"stopped after step {finished} of {steps}; go on with: gramscope resume {folder}")
        print(f"done. {student.name}: {run / 'teacher' / f'{finished}.safetensors'}", file=sys.stderr)


def counts(words: Sequence[str], configs: Mapping[str, Any]) -> dict[str, int]:
    """Processes by student, of words such as small=1. Raises ValueError unless every student has some."""
    found = {}
    for word in words:
        name, _, number = word.partition("=")
        if name not in configs or not number.isdigit() or int(number) < 1:
            raise ValueError(
                f"--processes {word}: give each of {', '.join(configs)} a number, as in {next(iter(configs))}=1"
            )
        found[name] = int(number)
    if missing := [name for name in configs if name not in found]:
        raise ValueError(f"--processes leaves out {', '.join(missing)}; give every student some")
    return {name: found[name] for name in configs}


def changed(configs: "Mapping[str, Config]", words: Sequence[str]) -> "dict[str, Config]":
    """The configurations with settings changed, each word PATH=VALUE or STUDENT:PATH=VALUE, values as in JSON.

    Raises ValueError for what is no setting and for values of another kind.
    """
    from core.config import from_json

    tables = {name: asdict(config) for name, config in configs.items()}
    for word in words:
        where, _, value = word.partition("=")
        student, colon, path = where.rpartition(":")
        if colon and student not in tables:
            raise ValueError(f"--change {word}: no student called {student!r}; known: {', '.join(tables)}")
        for table in [tables[student]] if colon else tables.values():
            *parents, last = path.split(".")
            place: Any = table
            for part in parents:
                place = place.get(part) if isinstance(place, dict) else None
            if not isinstance(place, dict) or last not in place:
                raise ValueError(f"--change {word}: there is no setting {path}; gramscope train RECIPE --help has them")
            try:
                place[last] = json.loads(value)
            except json.JSONDecodeError:
                place[last] = value
    return {name: from_json(json.dumps(table)) for name, table in tables.items()}
