"""The commands that reach clusters: launch, and status, logs, cancel, requeue of what was launched."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from cluster import Submission
    from core.config import Config

RUN = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]


def launch(
    recipe: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RECIPE")],
    on: str = "local",
    out: Path | None = None,
    data: tuple[str, ...] = (),
    nodes: int | None = None,
    processes: int | None = None,
    gpus: int | None = None,
    cpus: int | None = None,
    memory: str | None = None,
    minutes: int | None = None,
    dry_run: bool = False,
    after: Path | None = None,
    doctor: bool = True,
) -> None:
    """Submit a recipe's training to a cluster, or to this machine in the background; every setting is an option.

    Args:
        recipe: Name of a recipe.
        on: Target: local, slurm:PARTITION, ray, or a name in ~/.config/gramscope/targets.toml.
        out: Folder of the run; without it runs/<recipe>-<date>-<n>.
        data: Folders, archives or patterns with images, in place of the recipe's.
        nodes: Machines.
        processes: Processes on each; one a GPU where there are GPUs.
        gpus: GPUs on each.
        cpus: CPUs of a process.
        memory: Memory of a machine, as 64G.
        minutes: After which it saves, leaves, and goes back into the queue.
        dry_run: Print what would be submitted, and leave.
        after: Folder of a launched run that has to end well first.
        doctor: Look for what will go wrong first, and refuse on red.
    """
    raise AssertionError("read by run_with_overrides")  # only its help is used


def launch_options(config: "Config") -> Callable[..., Callable[[], None]]:
    """As in apps/training.py: a function whose options are the command's and every setting of the configuration."""
    from core.config import Config
    from core.recipes import with_data

    def launch(
        settings: Annotated[Config, tyro.conf.arg(name="")] = config,
        *,
        on: str = "local",
        out: Path | None = None,
        data: tuple[str, ...] = (),
        nodes: int | None = None,
        processes: int | None = None,
        gpus: int | None = None,
        cpus: int | None = None,
        memory: str | None = None,
        minutes: int | None = None,
        dry_run: bool = False,
        after: Path | None = None,
        doctor: bool = True,
    ) -> Callable[[], None]:
        """Submit this recipe's training to a cluster; every setting below may be changed.

        Args:
            on: Target: local, slurm:PARTITION, ray, or a name in ~/.config/gramscope/targets.toml.
            out: Folder of the run; without it runs/<recipe>-<date>-<n>.
            data: Folders, archives or patterns with images, in place of the recipe's.
            nodes: Machines.
            processes: Processes on each; one a GPU where there are GPUs.
            gpus: GPUs on each.
            cpus: CPUs of a process.
            memory: Memory of a machine, as 64G.
            minutes: After which it saves, leaves, and goes back into the queue.
            dry_run: Print what would be submitted, and leave.
            after: Folder of a launched run that has to end well first.
            doctor: Look for what will go wrong first, and refuse on red.
        """
        wants = {"nodes": nodes, "processes": processes, "gpus": gpus, "cpus": cpus, "memory": memory}
        wants |= {"minutes": minutes}
        resources = {name: value for name, value in wants.items() if value is not None}
        before = [_last(after)] if after is not None else []
        config = with_data(settings, data)
        return lambda: _launch(config, on, out, before, dry_run=dry_run, doctor=doctor, **resources)

    return launch


def _launch(
    config: "Config",
    on: str,
    out: Path | None,
    before: "list[Submission]",
    *,
    dry_run: bool,
    doctor: bool,
    **resources: Any,
) -> None:
    from cluster import LAUNCHERS, find_target
    from core.doctor import report
    from workbench.launch import Refused, launch, plan

    try:
        target = find_target(on)
        planned = plan(config, target, folder=out, later=bool(before), **resources)
        if planned.findings:
            print(report(planned.findings), file=sys.stderr)
        if cost := planned.cost_words(target):
            print(cost, file=sys.stderr)
        if dry_run:
            handles = tuple(each.handle for each in before)
            place = planned.folder / "jobs" / "1"
            print(LAUNCHERS[target.launcher].render(planned.job, target, place, handles), end="")
            return
        made = launch(config, target, folder=out, after=before, force=not doctor, **resources)
    except Refused:
        raise SystemExit("not submitted; correct that, or submit all the same with --no-doctor") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise SystemExit(str(error)) from None
    print(f"run folder: {made.job.folder}", file=sys.stderr)
    print(f"how it stands: gramscope status {made.job.folder}", file=sys.stderr)


def status(run: RUN) -> None:
    """Say how a launched run stands.

    Args:
        run: Folder of the run.
    """
    from workbench.follow import report, sentence

    try:
        print(sentence(report(run, pictures=False)))
    except ValueError as error:
        raise SystemExit(str(error)) from None


def logs(run: RUN, lines: int = 50) -> None:
    """Print what a launched run printed last.

    Args:
        run: Folder of the run.
        lines: How many lines.
    """
    try:
        print(_last(run).logs(lines))
    except (OSError, RuntimeError) as error:
        raise SystemExit(str(error)) from None


def cancel(run: RUN) -> None:
    """Tell a launched run to save and leave.

    Args:
        run: Folder of the run.
    """
    _do(run, "cancel")


def requeue(run: RUN) -> None:
    """Stop a launched run and queue it again; it goes on from its newest checkpoint.

    Args:
        run: Folder of the run.
    """
    _do(run, "requeue")


def _do(run: Path, action: str) -> None:
    try:
        getattr(_last(run), action)()
    except (OSError, RuntimeError) as error:
        raise SystemExit(str(error)) from None
    status(run)


def _last(run: Path) -> "Submission":
    from cluster import submissions

    try:
        made = submissions(run)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    if not made:
        raise SystemExit(f"{run} was never launched; gramscope launch RECIPE --on TARGET does that")
    return made[-1]
