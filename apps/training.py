"""The commands that train: train, resume, doctor, replay, export. Each imports what it needs when it runs."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from core.config import Config
    from core.doctor import Finding

OVERRIDES = ("train", "doctor", "launch")  # commands whose options are those of a recipe
SHUTDOWN = 3600  # seconds that processes get for their last checkpoint
RECIPE = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RECIPE")]
RUN = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]


def train(
    recipe: RECIPE,
    out: Path | None = None,
    data: tuple[str, ...] = (),
    teachers: tuple[str, ...] = (),
    doctor: bool = True,
    on: int = 1,
) -> None:
    """Train a model with a recipe; every setting is an option, which `gramscope train RECIPE --help` shows.

    Args:
        recipe: Name of a recipe.
        out: Folder of the run; without it runs/<recipe>-<date>-<n>.
        data: Folders, archives or patterns with images, in place of the recipe's.
        teachers: Frozen models whose features the student learns: weights, runs, or efficientnet_lite2.
        doctor: Look for what will go wrong first, and refuse on red.
        on: Processes on this machine, one a GPU.
    """
    raise AssertionError("read by run_with_overrides")  # only its help is used


def doctor(what: RECIPE, data: tuple[str, ...] = (), teachers: tuple[str, ...] = (), on: int = 1) -> None:
    """Say what will go wrong with a recipe or a run, before it does; ends with status 1 on red.

    Args:
        what: Name of a recipe, with options as `gramscope train` has them, or folder of a run.
        data: Folders, archives or patterns with images, in place of the recipe's.
        teachers: Frozen models whose features the student learns: weights, runs, or efficientnet_lite2.
        on: Processes, over all machines.
    """
    raise AssertionError("read by run_with_overrides")  # only its help is used


def resume(run: RUN, steps: int | None = None, on: int = 1) -> None:
    """Go on with a run from its newest checkpoint.

    Args:
        run: Folder of the run.
        steps: New number of steps in all; schedules that reach to the end of the run stretch with it.
        on: Processes on this machine; another number than before will do.
    """
    from dataclasses import replace

    share_cores()
    from core.students import is_set

    if is_set(run):
        _resume_set(run, steps)
        return
    config = _check_run(run)
    finished = max(_checkpoints(run), default=0)
    if steps is not None:
        if steps <= finished:
            raise SystemExit(f"{run} has {finished} finished steps already; --steps is their number in all")
        from core.run_folder import change

        config = replace(config, steps=steps)
        change(run, config, at=finished)
    if finished >= config.steps:
        raise SystemExit(f"all {config.steps} steps of {run} are done; give it more with --steps")
    print(f"{run}: from step {finished} of {config.steps}", file=sys.stderr)
    _train(run, on)


def _resume_set(folder: Path, steps: int | None) -> None:
    """Goes on with a set, each student with the processes it was given."""
    from dataclasses import replace

    from apps.distilling import train_set
    from core.run_folder import change
    from core.students import students_in

    if steps is not None:
        for student in students_in(folder):
            config, finished = _check_run(folder / student.name), max(_checkpoints(folder / student.name), default=0)
            if steps <= finished:
                raise SystemExit(
                    f"{student.name} has {finished} finished steps already; --steps is their number in all"
                )
            change(folder / student.name, replace(config, steps=steps), at=finished)
    train_set(folder)


def export(
    run: RUN,
    step: int | None = None,
    layout: Literal["official", "hf", "timm"] = "official",
    out: Path | None = None,
    heads: bool = False,
) -> None:
    """Write the teacher of a run as weights that others read.

    Args:
        run: Folder of the run.
        step: How many steps it had learned; without it the newest.
        layout: Names of the tensors: as in the official release, transformers (hf) or timm.
        out: File or, for hf, folder; without it RUN/export/<step>-<layout>.
        heads: With the projection heads, for continuing in another run; official layout only.
    """
    _check_run(run)
    if heads and layout != "official":
        raise SystemExit(f"heads go into the official layout only, not into {layout}")
    from core.checkpoint import export as write
    from core.checkpoint import teacher_steps

    steps = sorted({*teacher_steps(run), *_checkpoints(run)})
    if step is None and not steps:
        raise SystemExit(f"{run} has neither an exported teacher nor a checkpoint yet")
    step = steps[-1] if step is None else step
    if out is None:
        out = run / "export" / f"{step}-{layout}{'' if layout == 'hf' else '.safetensors'}"
    try:
        print(write(run, step, layout, out, heads=heads))
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from None


def replay(run: RUN, step: int | None = None) -> None:
    """Run a step again that went wrong, and name the first tensor that is not finite.

    Args:
        run: Folder of the run.
        step: The step, counted from 0; without it the last one that went wrong.
    """
    _check_run(run)
    share_cores()
    from core.replay import replay as again

    try:
        print(again(run, step).text())
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from None


def run_with_overrides(command: str, arguments: Sequence[str]) -> None:
    """`train`, `doctor` and `launch`, whose options depend on the recipe that comes first."""
    from apps import launching
    from core.recipes import RECIPES, recipe

    share_cores()
    prog = f"gramscope {command}"
    commands: dict[str, tuple[Callable[..., Any], Any]] = {
        "train": (train, _train_options),
        "doctor": (doctor, _doctor_options),
        "launch": (launching.launch, launching.launch_options),
    }
    function, options_of = commands[command]
    if not arguments:
        print(f"{_recipes()}\n\nAs in: {prog} smoke\nEvery setting of one: {prog} RECIPE --help")
        return
    if arguments[0] in ("-h", "--help"):
        about = f"{(function.__doc__ or '').partition('Args:')[0].strip()}\n\n{_recipes()}"
        tyro.cli(function, prog=prog, args=["--help"], description=about)
    name, *options = arguments
    if name.startswith("-"):
        raise SystemExit(f"the recipe comes first: {prog} RECIPE {shlex.join(arguments)}; known: {', '.join(RECIPES)}")
    if command == "doctor" and (name not in RECIPES or (Path(name) / "config.json").exists()):
        _doctor_of_run(Path(name), options)
        return
    try:
        do = tyro.cli(options_of(recipe(name)), prog=f"{prog} {name}", args=options)
    except ValueError as error:  # no such recipe, or the configuration refuses a value
        raise SystemExit(str(error)) from None
    do()


def _recipes() -> str:
    from core.recipes import RECIPES

    return listing("Recipes", RECIPES)


def listing(title: str, table: Mapping[str, Callable[..., object]]) -> str:
    """The entries of a table with the first sentence of each, as wide as the terminal."""
    first = max(map(len, table)) + 4
    width = max(shutil.get_terminal_size().columns, 60)
    sentences = {name: (make.__doc__ or "").strip().partition("\n")[0] for name, make in table.items()}
    entries = (f"  {name:<{first - 2}}{sentence}" for name, sentence in sentences.items())
    return "\n".join(
        [f"{title}:", "", *(textwrap.fill(line, width, subsequent_indent=" " * first) for line in entries)]
    )


# What these return is a function whose options are those of the command and every setting of the configuration. Called
# with them it returns what is to be done, so that an error in the options is told from one in the doing.


def _train_options(config: "Config") -> Callable[..., Callable[[], None]]:
    from core.config import Config
    from core.recipes import with_data, with_teachers

    def train(
        settings: Annotated[Config, tyro.conf.arg(name="")] = config,
        *,
        out: Path | None = None,
        data: tuple[str, ...] = (),
        teachers: tuple[str, ...] = (),
        doctor: bool = True,
        on: int = 1,
    ) -> Callable[[], None]:
        """Train with this recipe; every setting below may be changed.

        Args:
            out: Folder of the run; without it runs/<recipe>-<date>-<n>.
            data: Folders, archives or patterns with images, in place of the recipe's.
            teachers: Frozen models whose features the student learns: weights, runs, or efficientnet_lite2.
            doctor: Look for what will go wrong first, and refuse on red.
            on: Processes on this machine, one a GPU.
        """
        return lambda: _start(with_teachers(with_data(settings, data), teachers), out=out, doctor=doctor, on=on)

    return train


def _doctor_options(config: "Config") -> Callable[..., Callable[[], None]]:
    from core.config import Config
    from core.recipes import with_data, with_teachers

    def doctor(
        settings: Annotated[Config, tyro.conf.arg(name="")] = config,
        *,
        data: tuple[str, ...] = (),
        teachers: tuple[str, ...] = (),
        on: int = 1,
    ) -> Callable[[], None]:
        """Say what will go wrong with this recipe; every setting below may be changed.

        Args:
            data: Folders, archives or patterns with images, in place of the recipe's.
            teachers: Frozen models whose features the student learns: weights, runs, or efficientnet_lite2.
            on: Processes, over all machines.
        """
        return lambda: _examine(with_teachers(with_data(settings, data), teachers), on=on)

    return doctor


def _start(config: "Config", *, out: Path | None, doctor: bool, on: int) -> None:
    """Makes the run's folder, unless the doctor objects, and trains in it."""
    from core.run_folder import create, new_folder

    if on < 1:
        raise SystemExit(f"--on is a number of processes, got {on}")
    if out is not None and (out / "config.json").exists():
        raise SystemExit(f"{out} already holds a run: go on with it (gramscope resume {out}) or choose another --out")
    if doctor:
        red = sum(finding.level == "red" for finding in findings(config, on, out))
        if red:
            raise SystemExit(f"not started: {red} red; correct that, or start all the same with --no-doctor")
    try:
        folder = create(config, new_folder(config.name) if out is None else out)
    except OSError as error:
        raise SystemExit(str(error)) from None
    print(f"run folder: {folder}", file=sys.stderr)
    _train(folder, on)


def _examine(config: "Config", *, on: int, folder: Path | None = None) -> None:
    if any(finding.level == "red" for finding in findings(config, on, folder, to=sys.stdout)):
        raise SystemExit(1)


def _doctor_of_run(folder: Path, options: Sequence[str]) -> None:
    from core.recipes import RECIPES

    if not folder.exists():
        raise SystemExit(f"{folder} is neither a recipe nor a run; known recipes: {', '.join(RECIPES)}")

    def doctor(on: int = 1) -> int:
        """Say what will go wrong with a run, before it does.

        Args:
            on: Processes, over all machines.
        """
        return on

    on = tyro.cli(doctor, prog=f"gramscope doctor {folder}", args=options)
    _examine(_check_run(folder), on=on, folder=folder)


def findings(config: "Config", on: int, folder: Path | None, to: Any = None) -> "list[Finding]":
    """What the doctor finds, printed."""
    from core.doctor import check, report

    found = check(config, world=on, folder=folder)
    print(report(found), file=sys.stderr if to is None else to)
    return found


def _train(folder: Path, on: int) -> None:
    """Trains here, or on several processes; says how it ended."""
    if on > 1:
        train_on_many(folder, on)
    else:
        _train_here(folder)
    from core.run_folder import check_run

    finished, steps = max(_checkpoints(folder), default=0), check_run(folder).steps
    if finished < steps:
        raise SystemExit(f"stopped after step {finished} of {steps}; go on with: gramscope resume {folder}")
    weights = folder / "teacher" / f"{finished}.safetensors"
    print(f"done. The teacher: {weights}; look at it with: gramscope app --weights {weights}", file=sys.stderr)


def _train_here(folder: Path) -> None:
    from core.train import train as loop

    try:
        loop(folder)
    except KeyboardInterrupt:
        raise SystemExit(
            f"left at once; the newest checkpoint is {max(_checkpoints(folder), default='none')}"
        ) from None
    except (ArithmeticError, OSError, ValueError, ImportError) as error:
        with (folder / "log.txt").open("a", encoding="utf-8") as log:
            traceback.print_exc(file=log)
        raise SystemExit(f"{error} (details: {folder / 'log.txt'})") from None


def train_on_many(folder: Path, on: int) -> None:
    """Starts torchrun and waits. A first Ctrl-C or SIGTERM lets the processes save and leave, a second ends them.

    torchrun gets a session of its own: on a terminal's Ctrl-C the processes would otherwise hear it twice, from the
    terminal and from torchrun.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(on)]
    command += ["--shutdown-timeout", str(SHUTDOWN), "-m", "core.train", str(folder)]
    threads = str(max((os.cpu_count() or 1) // on, 1))
    asked: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        asked.append(number)
        if len(asked) > 1:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.send_signal(signal.SIGTERM)

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]
    environment = {"OMP_NUM_THREADS": threads} | dict(os.environ)
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if status and not asked:
        raise SystemExit(f"training failed, see above and {folder / 'log.txt'}")


def share_cores() -> None:
    """Threads that wait sleep, unless the environment says otherwise; to be called before torch is loaded.

    By default they spin. Where data workers or anything else want the same cores, a step then takes ten times as long.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _check_run(folder: Path) -> "Config":
    from core.run_folder import check_run

    try:
        return check_run(folder)
    except ValueError as error:
        raise SystemExit(str(error)) from None


def _checkpoints(folder: Path) -> list[int]:
    from core.checkpoint import finished_checkpoints

    return finished_checkpoints(folder / "checkpoints")
