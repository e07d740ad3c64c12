"""Run folders: made once, complete, and read whatever a killed process left in them."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from core import run_folder
from core.config import load_config
from core.recipes import recipe
from core.run_folder import (
    change,
    check_run,
    code_state,
    create,
    keep_metrics_before,
    new_folder,
    read_metrics,
    replace_text,
    runs_in,
)

SMOKE = recipe("smoke")


def git(folder, *arguments):
    identity = ["-c", "user.name=A", "-c", "user.email=a@b.c"]
    subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True)


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_new_folder_holds_the_configuration_and_what_ran_it(tmp_path):
    folder = create(replace(SMOKE, seed=7), tmp_path / "run", command=["gramscope", "train", "smoke"])
    assert names(folder) == ["code/changes.diff", "code/commit.txt", "code/environment.json", "config.json"]
    assert load_config(folder) == replace(SMOKE, seed=7)
    record = json.loads((folder / "code" / "environment.json").read_text())
    assert record["seed"] == 7
    assert record["command"] == ["gramscope", "train", "smoke"]
    assert record["python"] == ".".join(map(str, sys.version_info[:3]))
    import numpy

    assert record["packages"]["numpy"] == numpy.__version__
    assert record["cpus"] >= 1 and isinstance(record["gpus"], list)


def test_a_run_is_never_overwritten(tmp_path):
    create(SMOKE, tmp_path)
    with pytest.raises(FileExistsError, match=r"already holds the run 'smoke': go on with it \(gramscope resume"):
        create(replace(SMOKE, seed=1), tmp_path)
    assert load_config(tmp_path).seed == 0


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(FileExistsError, match="is not empty and holds no run"):
        create(SMOKE, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="choose another folder"):
        create(SMOKE, tmp_path / "file")


def test_a_creation_that_was_cut_off_is_made_again(tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "commit.txt").write_text("x")
    assert check_run(create(SMOKE, tmp_path)) == SMOKE


def test_runs_started_on_one_day_are_numbered(tmp_path):
    first, second = new_folder("smoke", tmp_path / "runs"), new_folder("smoke", tmp_path / "runs")
    assert first != second
    assert first.name.rpartition("-")[2] == "1" and second.name.rpartition("-")[2] == "2"
    assert first.name.startswith("smoke-20")


def test_a_changed_configuration_leaves_the_one_before(tmp_path):
    create(SMOKE, tmp_path)
    change(tmp_path, SMOKE, at=5)
    assert "code/config-until-5.json" not in names(tmp_path)  # nothing changed
    change(tmp_path, replace(SMOKE, steps=99), at=10)
    assert load_config(tmp_path).steps == 99
    assert load_config(tmp_path / "code" / "config-until-10.json") == SMOKE


def test_what_is_no_run_is_named_with_the_runs_nearby(tmp_path):
    create(SMOKE, tmp_path / "mine")
    with pytest.raises(ValueError, match=r"is no run folder: it has no config\.json; runs there: mine"):
        check_run(tmp_path)
    with pytest.raises(ValueError, match="runs there: mine"):
        check_run(tmp_path / "typo")
    (tmp_path / "mine" / "config.json").write_text('{"stepz": 3}')
    with pytest.raises(ValueError, match="cannot be read: config has no setting stepz"):
        check_run(tmp_path / "mine")


def test_runs_are_listed_oldest_first(tmp_path):
    import os

    for number, name in enumerate(("b", "a", "c")):
        create(SMOKE, tmp_path / name)
        os.utime(tmp_path / name, (number, number))
    assert [run.name for run in runs_in(tmp_path)] == ["b", "a", "c"]
    assert runs_in(tmp_path / "none") == []


# Metrics


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "total": 9.5}\n{"step": 10, "total": 9.0}\n{"step": 20, "tot')
    assert [entry["step"] for entry in read_metrics(tmp_path)] == [0, 10]
    assert read_metrics(tmp_path / "none") == []


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1{"step": 2}\n{"step": 3}\n')
    with pytest.warns(UserWarning, match="left out unreadable lines 2"):
        assert [entry["step"] for entry in read_metrics(tmp_path)] == [0, 3]


def test_lines_from_the_resumed_step_on_are_dropped_to_the_byte(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = ['{"step": 0, "total": 1e-05}', '{"step": 10,"total":  2}', '{"step": 20, "total": 3}']
    path.write_text("\n".join(lines) + '\n{"step": 30')
    keep_metrics_before(tmp_path, 20)
    assert path.read_text() == f"{lines[0]}\n{lines[1]}\n"
    keep_metrics_before(tmp_path, 0)
    assert path.read_text() == ""
    keep_metrics_before(tmp_path / "none", 3)
    assert not (tmp_path / "none").exists()


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    path.write_text("old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_folder.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace_text(path, "new")
    assert path.read_text() == "old"


# The code


def test_commit_and_changes_of_a_checkout_are_kept(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("one = 1\n")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-qm", "First")
    (tmp_path / "a.py").write_text("one = 2\n")
    (tmp_path / "grüße.py").write_text("new\n")
    commit, changes = code_state(tmp_path)
    head = subprocess.run(["git", "-C", tmp_path, "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    assert commit.splitlines()[0] == head.strip()
    assert commit.splitlines()[2] == "First"
    assert "# not in git: grüße.py" in changes
    assert "-one = 1\n+one = 2\n" in changes

    # The kept difference applies to the kept commit.
    (tmp_path.parent / "kept.diff").write_text(changes)
    git(tmp_path, "checkout", "-q", "a.py")
    git(tmp_path, "apply", str(tmp_path.parent / "kept.diff"))
    assert (tmp_path / "a.py").read_text() == "one = 2\n"


def test_code_without_git_says_so(tmp_path, monkeypatch):
    assert code_state(tmp_path)[0].startswith("no git checkout; gramscope ")
    git(tmp_path, "init", "-q")  # as when the package is installed into a folder of another project
    (tmp_path / "site-packages").mkdir()
    assert code_state(tmp_path / "site-packages")[1] == "# no git checkout\n"
    assert code_state(tmp_path)[0] == "no commit yet\n"
    monkeypatch.setattr(run_folder.shutil, "which", lambda name: None)
    assert code_state(tmp_path)[0].startswith("no git checkout")


def test_making_a_folder_does_not_load_torch(tmp_path):
    code = f"""
import sys
from pathlib import Path
from core.recipes import recipe
from core.run_folder import create
create(recipe("smoke"), Path({str(tmp_path / "run")!r}))
print("torch" in sys.modules)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "False\n"
