"""The commands that train: what they refuse, what they hand on, and a small run from start to export."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from apps import cli, training
from core.config import load_config
from core.recipes import RECIPES, recipe
from core.run_folder import create, read_metrics

ROOT = Path(__file__).parents[2]


@pytest.fixture
def trained(monkeypatch) -> list[tuple[Path, int]]:
    """Receives the folders that would be trained in."""
    calls: list[tuple[Path, int]] = []
    monkeypatch.setattr(training, "_train", lambda folder, on: calls.append((folder, on)))
    return calls


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def gramscope(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "apps.cli", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment, **options)


def refused(*arguments: object) -> str:
    with pytest.raises(SystemExit) as left:
        cli.main([str(argument) for argument in arguments])
    assert isinstance(left.value.code, str), "left without a sentence"
    return left.value.code


def fake_checkpoint(run: Path, step: int) -> None:
    (run / "checkpoints" / str(step)).mkdir(parents=True)
    (run / "checkpoints" / str(step) / ".metadata").touch()


# Help and refusals


@pytest.mark.parametrize("command", ["train", "doctor"])
def test_without_a_recipe_the_recipes_are_listed(command, capsys):
    cli.main([command])
    shown = capsys.readouterr().out
    for name, function in RECIPES.items():
        first = function.__doc__.split()[:4]
        assert re.search(rf"^  {name} +{' '.join(map(re.escape, first))}", shown, re.M), name
    assert max(map(len, shown.splitlines())) <= 80


def test_help_of_a_recipe_shows_every_setting_with_its_value(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["train", "nano_pretrain", "--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    options = set(re.findall(r"--[\w.-]+", shown))

    def leaves(value, path):
        for name, inner in value.items():
            if isinstance(inner, dict):
                yield from leaves(inner, [*path, name])
            else:
                yield "--" + ".".join([*path, name]).replace("_", "-")

    from dataclasses import asdict

    settings = set(leaves(asdict(recipe("nano_pretrain")), []))
    missing = {name for name in settings if not any(option.startswith(name) for option in options)}
    assert missing == {"--distill.features"}  # a list that is empty here; --teachers fills it
    assert {"--out", "--data", "--teachers", "--on", "--no-doctor"} <= options
    assert re.search(r"--data\.batch-size INT\W+over all processes \(default: 32\)", shown)


def test_help_and_refusals_come_without_torch(here):
    code = (
        "import sys, apps.cli\n"
        "for words in (['train'], ['train', '--help'], ['train', 'smoke', '--help'], ['train', 'smok'],\n"
        "              ['train', 'smoke', '--steps', '0'], ['resume', 'nowhere'], ['export', 'nowhere']):\n"
        "    try: apps.cli.main(words)\n"
        "    except SystemExit: pass\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert out.stderr == "False\n"


def test_unknown_names_are_answered_with_the_known_ones(here):
    assert refused("train", "vit_s").startswith("no recipe called 'vit_s'; known: vitl, ")
    assert "vit_s is neither a recipe nor a run; known recipes: vitl, " in refused("doctor", "vit_s")
    assert refused("train", "--steps", "3").startswith("the recipe comes first: gramscope train RECIPE --steps 3")


def test_wrong_values_are_one_sentence(here, trained, capsys):
    assert refused("train", "smoke", "--steps", 0) == "steps is at least 1, got 0"
    assert "gram.use needs gram_size" in refused("train", "smoke", "--gram.use")
    assert "--on is a number of processes, got 0" in refused("train", "smoke", "--on", 0)
    for words in (["--optim.lr.peek", "3"], ["--run.nonfinite", "pause"], ["--steps", "many"]):
        with pytest.raises(SystemExit) as left:
            cli.main(["train", "smoke", *words])
        assert left.value.code == 2
    assert "Perhaps you meant" in capsys.readouterr().err
    assert trained == [] and list(here.iterdir()) == []


@pytest.mark.parametrize("command", ["resume", "export", "replay"])
def test_what_is_no_run_is_said(command, here):
    assert refused(command, "nowhere") == "nowhere is no run folder: it has no config.json"


# train


def test_train_makes_a_folder_with_the_changed_recipe(here, trained, capsys):
    cli.main(["train", "smoke", "--steps", "7", "--optim.lr.peak", "3e-3", "--optim.betas", ".8", ".9", "--seed", "5"])
    ((folder, on),) = trained
    assert on == 1
    assert re.fullmatch(r"runs/smoke-\d{4}-\d\d-\d\d-1", str(folder))
    base = recipe("smoke")
    lr = replace(base.optim.lr, peak=3e-3)
    assert load_config(folder) == replace(base, steps=7, seed=5, optim=replace(base.optim, lr=lr, betas=(0.8, 0.9)))
    shown = capsys.readouterr().err
    assert "AMBER  warmup-too-long" in shown  # seven steps of a recipe for twenty
    assert f"run folder: {folder}" in shown


def test_train_takes_teachers_of_features(here, trained):
    cli.main(["train", "smoke", "--teachers", "dinov2_vits14_saliency", "--crops.num-local", "4", "--no-doctor"])
    assert [teacher.name for teacher in load_config(trained[0][0]).distill.features] == ["dinov2_vits14_saliency"]


def test_train_takes_paths_and_a_folder(here, trained):
    from PIL import Image

    for name in ("a", "b"):
        (here / name).mkdir()
        for index in range(8):
            Image.new("RGB", (64, 64)).save(here / name / f"{index}.png")
    cli.main(["train", "smoke", "--data", "a", "b", "--data.batch-size", "4", "--out", "mine"])
    config = load_config(Path("mine"))
    assert [source.path for source in config.data.sources] == ["a", "b"]
    assert config.data.batch_size == 4
    assert trained == [(Path("mine"), 1)]


def test_train_refuses_on_red_and_leaves_nothing(here, trained, capsys):
    said = refused("train", "smoke", "--data", "no/such/folder")
    assert said == "not started: 1 red; correct that, or start all the same with --no-doctor"
    assert "RED    source-unreadable" in capsys.readouterr().err
    assert trained == [] and list(here.iterdir()) == []


def test_train_starts_on_red_when_told_so(here, trained):
    cli.main(["train", "smoke", "--data", "no/such/folder", "--no-doctor"])
    assert len(trained) == 1


def test_train_never_goes_into_another_run(here, trained):
    create(recipe("smoke"), Path("mine"))
    assert "already holds a run: go on with it (gramscope resume mine)" in refused("train", "smoke", "--out", "mine")
    Path("other").mkdir()
    Path("other/notes.txt").touch()
    assert "other is not empty and holds no run" in refused("train", "smoke", "--out", "other")
    assert trained == []


@pytest.mark.long
@pytest.mark.parametrize("words", [["train", "smok"], ["resume", "mine"], ["replay", "mine"]])
def test_waiting_threads_leave_the_cores_to_others_from_the_start(words, here):
    """The variable counts only when it is set before torch is loaded."""
    create(recipe("smoke"), Path("mine"))
    code = f"""
import builtins, os, sys, apps.cli
plain = builtins.__import__
def watched(name, *rest):
    if name == "torch" and "torch" not in sys.modules:
        assert os.environ.get("OMP_WAIT_POLICY") == "PASSIVE", "torch came first"
    return plain(name, *rest)
builtins.__import__ = watched
from apps import training
training._train = lambda *_: None
try: apps.cli.main({words!r})
except SystemExit: pass
print(os.environ["OMP_WAIT_POLICY"])
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, capture_output=True, text=True, env=environment | {"PYTHONPATH": str(ROOT)})
    assert out.stdout.splitlines()[-1:] == ["PASSIVE"], out.stderr


# resume, export, doctor


def test_resume_goes_on_from_the_newest_checkpoint(here, trained, capsys):
    create(recipe("smoke"), Path("mine"))
    fake_checkpoint(Path("mine"), 10)
    cli.main(["resume", "mine", "--on", "2"])
    assert trained == [(Path("mine"), 2)]
    assert "mine: from step 10 of 20" in capsys.readouterr().err


def test_resume_may_lengthen_a_run_and_keeps_what_was_before(here, trained):
    create(recipe("smoke"), Path("mine"))
    fake_checkpoint(Path("mine"), 20)
    assert refused("resume", "mine") == "all 20 steps of mine are done; give it more with --steps"
    assert "20 finished steps already" in refused("resume", "mine", "--steps", 15)
    cli.main(["resume", "mine", "--steps", "30"])
    assert load_config(Path("mine")).steps == 30
    assert load_config(Path("mine/code/config-until-20.json")).steps == 20
    assert len(trained) == 1


def test_export_refuses_what_there_is_not(here):
    create(recipe("smoke"), Path("mine"))
    assert "neither an exported teacher nor a checkpoint yet" in refused("export", "mine")
    assert "heads go into the official layout only" in refused("export", "mine", "--heads", "--layout", "hf")
    (Path("mine") / "teacher").mkdir()
    (Path("mine") / "teacher" / "5.safetensors").write_bytes(b"half")
    assert "has no teacher of step 7; there are: 5" in refused("export", "mine", "--step", 7)
    assert "5.safetensors" in refused("export", "mine")


def test_doctor_answers_for_recipes_and_runs(here, capsys):
    cli.main(["doctor", "smoke"])
    assert capsys.readouterr().out.startswith("GREEN  all ")
    cli.main(["doctor", "smoke", "--parallel.compile"])
    assert capsys.readouterr().out.startswith("AMBER  compile-on-cpu")
    with pytest.raises(SystemExit) as left:
        cli.main(["doctor", "smoke", "--on", "3"])
    assert left.value.code == 1
    assert "RED    batch-world" in capsys.readouterr().out

    create(recipe("smoke"), Path("mine"))
    fake_checkpoint(Path("mine"), 20)
    cli.main(["doctor", "mine"])
    assert capsys.readouterr().out.startswith("AMBER  run-finished: all 20 steps are done")
    Path("notes").mkdir()
    assert "notes is no run folder" in refused("doctor", "notes")


def test_an_error_in_training_is_a_sentence_and_the_rest_is_in_the_log(here, monkeypatch):
    from core import train

    def failing(folder):
        raise FloatingPointError("step 3: not finite: ibot")

    monkeypatch.setattr(train, "train", failing)
    said = refused("train", "smoke", "--out", "mine")
    assert said == "step 3: not finite: ibot (details: mine/log.txt)"
    assert "Traceback" in Path("mine/log.txt").read_text()


def test_a_second_interrupt_says_what_is_left(here, monkeypatch):
    from core import train

    def interrupted(folder):
        fake_checkpoint(folder, 10)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train", interrupted)
    assert refused("train", "smoke", "--out", "mine") == "left at once; the newest checkpoint is 10"


def test_an_unfinished_run_says_how_to_go_on(here, monkeypatch):
    from core import train

    monkeypatch.setattr(train, "train", lambda folder: fake_checkpoint(folder, 10))
    assert (
        refused("train", "smoke", "--out", "mine") == "stopped after step 10 of 20; go on with: gramscope resume mine"
    )


# From start to end


SMALL = ["--data.batch-size", "4", "--crops.num-local", "2", "--steps", "6", "--run.checkpoint-every", "3"]


@pytest.mark.long
def test_a_run_from_start_to_export(here, capsys):
    cli.main(["train", "smoke", *SMALL, "--out", "mine"])
    assert [line["step"] for line in read_metrics(Path("mine"))] == list(range(6))
    assert "done. The teacher: mine/teacher/6.safetensors" in capsys.readouterr().err

    cli.main(["resume", "mine", "--steps", "8"])
    lines = read_metrics(Path("mine"))
    assert [line["step"] for line in lines] == list(range(8))
    assert all(line["total"] > 0 for line in lines)

    import torch

    from core.models.weights import load_backbone

    official = load_backbone(Path("mine/teacher/8.safetensors"))
    capsys.readouterr()
    for layout in ("official", "hf", "timm"):
        cli.main(["export", "mine", "--layout", layout])
        path = Path(capsys.readouterr().out.strip())
        assert path.exists() and path.name.startswith(f"8-{layout}")
        backbone = load_backbone(path)
        for name, tensor in official.state_dict().items():
            if name != "mask_token":  # timm has none
                torch.testing.assert_close(backbone.state_dict()[name], tensor, rtol=0, atol=0, msg=f"{layout} {name}")
    cli.main(["export", "mine", "--step", "6", "--heads", "--out", "early.safetensors"])
    from safetensors import safe_open

    with safe_open("early.safetensors", "pt") as file:
        assert "dino_head.last_layer.weight" in file.keys()  # noqa: SIM118 - no dictionary

    cli.main(["replay", "mine", "--step", "4"])
    assert "All is finite this time" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no step of mine was not finite"):
        cli.main(["replay", "mine"])
    cli.main(["doctor", "mine"])
    assert "run-finished" in capsys.readouterr().out

    # The next stages continue it.
    cli.main(["train", "smoke", *SMALL, "--init.student", "mine@6", "--out", "next", "--optim.freeze-last-layer", "0"])
    assert len(read_metrics(Path("next"))) == 6


def start(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "apps.cli", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd, env=environment
    )


def wait_for_steps(process: subprocess.Popen[str], run: Path, steps: int) -> None:
    deadline = time.monotonic() + 200
    while len(read_metrics(run)) < steps:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "no steps were trained"
        time.sleep(0.1)


@pytest.mark.long
@pytest.mark.parametrize("on", [1, 2])
def test_an_interrupted_run_saves_and_goes_on_as_if_nothing_had_been(tmp_path, on):
    settings = [*SMALL, "--steps", "400", "--run.checkpoint-every", "400", "--parallel.precision", "fp32"]
    process = start("train", "smoke", *settings, "--out", "mine", "--on", on, cwd=tmp_path)
    try:
        wait_for_steps(process, tmp_path / "mine", 3)
        process.send_signal(signal.SIGINT)
        shown, _ = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    said = re.search(r"stopped after step (\d+) of 400; go on with: gramscope resume mine", shown)
    assert process.returncode == 1 and said, shown
    finished = int(said[1])
    lines = read_metrics(tmp_path / "mine")
    assert len(lines) == finished >= 3

    more = finished + 3
    out = gramscope("resume", "mine", "--steps", more, "--on", on, cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    lines = read_metrics(tmp_path / "mine")
    assert [line["step"] for line in lines] == list(range(more))

    straight = gramscope("train", "smoke", *settings, "--steps", more, "--out", "straight", "--on", on, cwd=tmp_path)
    assert straight.returncode == 0, straight.stderr
    terms = ("total", "dino_global", "dino_local", "ibot", "koleo")
    for line, other in zip(lines, read_metrics(tmp_path / "straight"), strict=True):
        assert {name: line[name] for name in terms} == {name: other[name] for name in terms}


@pytest.mark.long
def test_processes_that_fail_are_reported(tmp_path):
    create(replace(recipe("smoke"), data=replace(recipe("smoke").data, sources=())), tmp_path / "mine")
    out = gramscope("resume", "mine", "--on", "2", cwd=tmp_path)
    assert out.returncode == 1
    assert out.stderr.rstrip().endswith("training failed, see above and mine/log.txt")


@pytest.mark.long
def test_the_smoke_recipe_as_it_stands(tmp_path):
    out = gramscope("train", "smoke", cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    (run,) = (tmp_path / "runs").iterdir()
    lines = read_metrics(run)
    assert [line["step"] for line in lines] == list(range(20))
    assert lines[-1]["total"] < lines[0]["total"]
    assert json.loads((run / "code" / "environment.json").read_text())["command"][1:] == ["train", "smoke"]
    assert sorted(path.name for path in (run / "teacher").iterdir()) == [
        "0.safetensors",
        "10.safetensors",
        "20.safetensors",
    ]
