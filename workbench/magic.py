"""Training from a cell: `%load_ext workbench.magic`, then

    %%gramscope train nano_pretrain --on slurm:gpu --nodes 2
    data.batch_size = 64
    optim.lr = constant(5e-4)

    %gramscope attach runs/nano_pretrain-2026-01-31-1     # a card, from any kernel
    %gramscope status | logs | cancel | requeue  RUN

The cell's body are settings by their dotted names, or Python that defines `recipe()`, a function that returns a
configuration. It is kept as a module in the run's folder, code/cell.py; nothing is pickled.
"""

import ast
import importlib.util
import shlex
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_cell_magic, magics_class
from IPython.display import Code

import core.config
import core.schedules
from cluster import LAUNCHERS, find_target, submissions
from core.config import Config
from core.recipes import RECIPES, recipe, with_data
from workbench.follow import report, sentence
from workbench.launch import Refused, go_on, launch, plan
from workbench.widgets.card import RunCard

CELL = "cell.py"


class Words(ArgumentParser):
    """Refuses with a sentence in place of the program's end."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"%gramscope: {message}\n{self.format_usage()}")


def train_words() -> Words:
    """What may stand behind `%%gramscope train`."""
    words = Words("%%gramscope train", add_help=False)
    words.add_argument("recipe", nargs="?", default="", help="name of a recipe; without it the cell defines recipe()")
    words.add_argument("--on", default="local", help="target: local, slurm:PARTITION, ray, or a name in targets.toml")
    words.add_argument("--data", nargs="+", default=[], help="folders, archives or patterns with images")
    words.add_argument("--out", type=Path, help="folder of the run")
    words.add_argument("--force", action="store_true", help="submit although the doctor objects")
    words.add_argument("--dry-run", action="store_true", help="show the text that would be submitted")
    for name in ("nodes", "processes", "gpus", "cpus", "minutes"):
        words.add_argument(f"--{name}", type=int)
    words.add_argument("--memory")
    return words


@magics_class
class GramscopeMagics(Magics):
    """`%gramscope` and `%%gramscope`."""

    @line_cell_magic
    def gramscope(self, line: str, cell: str | None = None) -> Any:
        """Trains what the cell says, or shows, stops and continues runs; see the module's docstring."""
        command, *words = shlex.split(line) or [""]
        try:
            if command == "train":
                return self.train(words, cell or "")
            if cell is not None:
                raise UsageError(f"%%gramscope {command}: only train has a cell")
            if command == "attach":
                return RunCard(self.one_run(words))
            if command in ("status", "logs", "cancel", "requeue", "resume"):
                return self.tell(command, words)
        except (OSError, ValueError, RuntimeError, SyntaxError, NameError, TypeError) as error:
            raise UsageError(str(error)) from error
        raise UsageError("%gramscope train|attach|status|logs|cancel|requeue|resume; see workbench/magic.py")

    def train(self, words: Sequence[str], cell: str) -> Any:
        """A card of the run that was submitted, at once; with --dry-run the text that would be."""
        asked = train_words().parse_args(list(words))
        config = with_data(configured(asked.recipe, cell), asked.data)
        names = ("nodes", "processes", "gpus", "cpus", "minutes", "memory")
        resources = {name: getattr(asked, name) for name in names if getattr(asked, name) is not None}
        target = find_target(asked.on)
        if asked.dry_run:
            planned = plan(config, target, folder=asked.out, **resources)
            text = LAUNCHERS[target.launcher].render(planned.job, target, planned.folder / "jobs" / "1")
            return Code(text, language="yaml" if target.launcher in ("kubernetes", "skypilot") else "bash")
        try:
            made = launch(config, target, folder=asked.out, force=asked.force, **resources)
        except Refused as refused:
            raise UsageError(str(refused)) from None
        (made.job.folder / "code" / CELL).write_text(f"# {' '.join(words)}\n{cell}", encoding="utf-8")
        return RunCard(made.job.folder)

    def one_run(self, words: Sequence[str]) -> Path:
        if len(words) != 1:
            raise UsageError("name the folder of one run")
        return Path(words[0]).expanduser()

    def tell(self, command: str, words: Sequence[str]) -> None:
        """What became of it, in a line."""
        folder = self.one_run(words)
        if command == "resume":
            print(f"submitted once more, as number {go_on(folder).number}")
            return
        made = submissions(folder)
        if command in ("cancel", "requeue", "logs") and not made:
            raise ValueError(f"{folder} was never submitted")
        if command == "logs":
            print(made[-1].logs())
            return
        if command == "cancel":
            made[-1].cancel()
        if command == "requeue":
            made[-1].requeue()
        print(sentence(report(folder, pictures=False)))


def configured(name: str, cell: str) -> Config:
    """The recipe of that name with the settings of a cell, or what the cell's `recipe()` returns.

    Raises ValueError, naming the line, for what cannot be understood.
    """
    tree = ast.parse(cell)
    if any(isinstance(node, ast.FunctionDef) and node.name == "recipe" for node in tree.body):
        found = run_cell(cell)()
        if not isinstance(found, Config):
            raise ValueError(f"recipe() in the cell returns a {type(found).__name__}, not a core.config.Config")
        return found
    if not name:
        raise ValueError(f"name a recipe, or define recipe() in the cell; recipes: {', '.join(RECIPES)}")
    config = recipe(name)
    for node in tree.body:
        config = set_one(config, node)
    return config


def run_cell(cell: str) -> Any:
    """The function `recipe` of a cell, run as a module of its own, apart from the notebook's names."""
    specification = importlib.util.spec_from_loader("gramscope_cell", loader=None)
    assert specification is not None
    module = importlib.util.module_from_spec(specification)
    exec(compile(cell, CELL, "exec"), module.__dict__)  # the notebook's own words, as any of its cells
    return module.recipe


def set_one(config: Config, node: ast.stmt) -> Config:
    """The configuration after one line `section.name = value`; values are Python, with the names of core.config and
    core.schedules."""
    if not isinstance(node, ast.Assign) or len(node.targets) != 1:
        raise ValueError(f"line {node.lineno}: a setting is `optim.clip = 3.0`, not {ast.unparse(node)!r}")
    names = {**vars(core.schedules), **vars(core.config)}
    value = eval(compile(ast.Expression(node.value), CELL, "eval"), {"__builtins__": {}}, names)
    return _replaced(config, ast.unparse(node.targets[0]).split("."), value, node.lineno)


def _replaced(part: Any, path: Sequence[str], value: Any, line: int) -> Any:
    name, *rest = path
    known = [field.name for field in fields(part)]
    if name not in known:
        raise ValueError(f"line {line}: no setting {name!r} in {type(part).__name__}; there are: {', '.join(known)}")
    inner = getattr(part, name)
    if rest and not is_dataclass(inner):
        raise ValueError(f"line {line}: {name} is {inner!r} and has no settings of its own")
    return replace(part, **{name: _replaced(inner, rest, value, line) if rest else value})


def load_ipython_extension(shell: InteractiveShell) -> None:
    """What `%load_ext workbench.magic` calls."""
    shell.register_magics(GramscopeMagics)
