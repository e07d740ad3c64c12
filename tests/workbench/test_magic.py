"""Training from a cell."""

import pytest
from IPython.core.error import UsageError
from IPython.testing.globalipapp import get_ipython

from core.recipes import recipe
from workbench.magic import GramscopeMagics, configured


@pytest.fixture(scope="module")
def magic():
    """The magics in a shell."""
    shell = get_ipython()
    shell.run_line_magic("load_ext", "workbench.magic")
    return GramscopeMagics(shell)


def test_settings_are_lines_of_the_cell():
    cell = "optim.clip = 1.5\n# a remark\noptim.lr = constant(5e-4)\n"
    cell += "crops.sizes = (CropSizes(global_size=32, local_size=16),)"
    config = configured("smoke", cell)
    assert config.optim.clip == 1.5 and config.optim.lr.peak == 5e-4
    assert [size.global_size for size in config.crops.sizes] == [32]
    assert configured("smoke", "") == recipe("smoke")


def test_a_cell_may_define_the_recipe_itself():
    cell = "from core.recipes import recipe as named\nfrom dataclasses import replace\n"
    cell += "def recipe():\n    return replace(named('smoke'), steps=7)"
    assert configured("", cell).steps == 7
    with pytest.raises(ValueError, match=r"returns a int"):
        configured("", "def recipe():\n    return 3")


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("optim.clap = 1", "line 1: no setting 'clap' in OptimConfig; there are: lr"),
        ("\nsteps.more = 1", "line 2: steps is 20 and has no settings of its own"),
        ("print(1)", "line 1: a setting is"),
        ("optim.clip", "line 1: a setting is"),
        ("optim.clip = 1 +", "invalid syntax"),
        ("optim.clip = nothing", "nothing"),
        ("optim.clip = open('x')", "open"),
    ],
)
def test_what_cannot_be_understood_is_said_with_its_line(cell, words):
    with pytest.raises((ValueError, SyntaxError, NameError), match=words):
        configured("smoke", cell)


def test_a_dry_run_shows_the_text_and_makes_nothing(magic, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = magic.gramscope("train smoke --on slurm:gpu --nodes 2 --dry-run", "steps = 9").data
    assert "#SBATCH --nodes=2" in shown and "#SBATCH --partition=gpu" in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "cell", "words"),
    [
        ("", None, "train|attach"),
        ("dance", None, "train|attach"),
        ("train nothing", "", "no recipe called 'nothing'; known: vitl"),
        ("train smoke --on moon", "", "no target called 'moon'"),
        ("train smoke --nodes two", "", "invalid int"),
        ("train smoke", "optim.clap = 1", "no setting 'clap'"),
        ("train smoke", "optim.clip = ", "invalid syntax"),
        ("train smoke", "data.sources = ()", "source-none"),
        ("attach", None, "name the folder of one run"),
        ("attach nowhere", None, "nowhere"),
        ("status nowhere", None, "nowhere"),
        ("logs runs/x", None, "never submitted"),
        ("status x", "a cell", "only train has a cell"),
    ],
)
def test_a_line_that_cannot_be_gets_a_sentence(magic, line, cell, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as error:
        magic.gramscope(line, cell)
    assert words in str(error.value) or any(word in str(error.value) for word in words.split("|"))
