"""From a configuration to a job, on this machine."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from cluster import State, Submission, Target, find_target, submissions
from core.config import RunConfig, load_config
from core.doctor import report
from core.recipes import recipe
from core.run_folder import read_metrics
from workbench.follow import duration, sentence
from workbench.follow import report as stands
from workbench.launch import Refused, chain, fork, go_on, job_for, launch, machine_of, plan

HERE = find_target("local", Path("/nowhere"))


@pytest.fixture
def small():
    """The smoke recipe, six steps, saved every other."""
    base = recipe("smoke")
    run = RunConfig(log_every=1, checkpoint_every=2, export_every=3, probe_every=3, probes=2)
    return replace(base, steps=6, data=replace(base.data, batch_size=4), run=run)


def finished(submission: Submission, patience: float = 120) -> State:
    deadline = time.monotonic() + patience
    while not (state := submission.status().state).is_over:
        assert time.monotonic() < deadline, submission.logs()
        time.sleep(0.1)
    return state


@pytest.mark.long
def test_a_run_is_launched_followed_and_goes_on(small, tmp_path):
    folder = tmp_path / "nano run"
    made = launch(small, HERE, folder=folder)
    assert load_config(folder) == small
    assert (folder / "code" / "source" / "core" / "train.py").is_file()
    assert finished(made) == State.DONE, made.logs()
    told = stands(folder)
    assert (told["state"], told["step"], told["steps"], told["jobs"][0]["number"]) == ("done", 6, 6, 1)
    assert told["curves"][0]["name"] == "total" and told["curves"][0]["steps"] == list(range(6))
    assert [shown["step"] for shown in told["maps"]] == [0, 3, 6] and len(told["maps"][0]["images"]) == 2
    assert told["teachers"] == [0, 3, 6] and told["speed"]["cpus_busy"] > 0
    assert sentence(told).startswith("nano run: done, step 6 of 6, ")
    with pytest.raises(FileExistsError, match="already holds the run"):
        launch(small, HERE, folder=folder)

    again = go_on(folder)  # nothing is left to do, and that is no failure
    assert (again.number, finished(again)) == (2, State.DONE)
    assert [line["step"] for line in read_metrics(folder)] == list(range(6))


@pytest.mark.long
def test_two_processes_cancelled_in_the_middle_go_on_without_a_gap(small, tmp_path):
    long = replace(small, steps=4000, run=replace(small.run, probe_every=0, export_every=0))
    made = launch(long, HERE, folder=tmp_path / "run", processes=2)
    deadline = time.monotonic() + 120
    while len(read_metrics(tmp_path / "run")) < 4:
        assert time.monotonic() < deadline and not made.status().state.is_over, made.logs()
        time.sleep(0.1)
    with pytest.raises(ValueError, match="is running; cancel it first"):
        go_on(tmp_path / "run")
    made.cancel()
    while made.status().state == State.RUNNING:
        time.sleep(0.1)
    told = stands(tmp_path / "run")
    assert told["checkpoints"][-1] == told["step"] == len(read_metrics(tmp_path / "run"))
    again = go_on(tmp_path / "run")
    assert again.job.processes == 2
    while len(read_metrics(tmp_path / "run")) < told["step"] + 3:
        assert not again.status().state.is_over, again.logs()
        time.sleep(0.1)
    again.cancel()
    steps = [line["step"] for line in read_metrics(tmp_path / "run")]
    assert steps == list(range(len(steps)))
    while again.status().state == State.RUNNING:
        time.sleep(0.1)


def test_what_the_doctor_marks_red_is_not_submitted(small, tmp_path):
    broken = replace(small, data=replace(small.data, sources=()))
    with pytest.raises(Refused, match="source-none") as refused:
        launch(broken, HERE, folder=tmp_path / "run")
    assert any(finding.rule == "source-none" for finding in refused.value.findings)
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_what_the_engine_refuses_leaves_no_folder_that_would_refuse_the_next_attempt(small, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "none"))  # with Slurm's clients and without: no queue
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match="sbatch"):
        launch(small, find_target("slurm:gpu", Path("/nowhere")), folder=tmp_path / "run")
    with pytest.raises(ValueError, match="one node"):
        launch(small, HERE, nodes=2)
    assert not (tmp_path / "run").exists() and list((tmp_path / "runs").iterdir()) == []


def test_a_plan_makes_nothing_and_looks_at_the_target(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = recipe("vit7b_pretrain")
    config = replace(config, data=replace(config.data, sources=recipe("smoke").data.sources))
    target = Target(name="v100", launcher="slurm", gpus=4, gpu="V100", cpus=4, memory="100G")
    planned = plan(config, target)
    assert planned.job.world == planned.job.processes == 4
    assert "memory" in {finding.rule for finding in planned.red}, report(planned.findings)
    planned = plan(config, replace(target, gpu="H100", nodes=2))  # 16 GiB of models a GPU and not 33, 80 and not 32
    assert planned.job.world == 8
    assert "memory" not in {finding.rule for finding in planned.red}, report(planned.findings)
    assert list(tmp_path.iterdir()) == []


def test_a_job_gets_what_its_target_says_unless_it_says_otherwise(small, tmp_path):
    target = Target(name="x", launcher="slurm", nodes=2, gpus=4, cpus=3, minutes=10)
    job = job_for(tmp_path, small, target, minutes=20, nodes=None)
    assert (job.nodes, job.gpus, job.processes, job.cpus, job.minutes) == (2, 4, 4, 3, 20)
    assert job.environment["PYTHONPATH"] == str(tmp_path / "code" / "source")
    with pytest.raises(ValueError, match="no resource gpu; there are: nodes"):
        job_for(tmp_path, small, target, gpu=1)
    machine = machine_of(replace(target, gpu="H100"), job, tmp_path)
    assert [gpu.memory_gib for gpu in machine.gpus] == [80.0] * 4 and machine.cpus == 12


def test_tomorrows_edit_does_not_change_a_job_that_waits(small, tmp_path, monkeypatch):
    """The job imports from its run's folder, and data that lies beside the code is found from there."""
    import subprocess

    from cluster.snapshot import copy_code

    package = tmp_path / "mine"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text(
        "from pathlib import Path\nsaid = (Path(__file__).parent / 'data/x').read_text()"
    )
    (package / "data" / "x").write_text("today")
    place = copy_code([package], tmp_path / "run" / "source")
    (package / "__init__.py").write_text("said = 'tomorrow'")
    command = [HERE.interpreter, "-c", "import mine; print(mine.said)"]
    done = subprocess.run(command, env={"PYTHONPATH": str(place)}, cwd="/", capture_output=True, text=True)
    assert done.stdout == "today\n", done.stderr
    copy_code([package], place)  # anew
    done = subprocess.run(command, env={"PYTHONPATH": str(place)}, cwd="/", capture_output=True, text=True)
    assert done.stdout == "tomorrow\n", done.stderr


def test_stages_are_looked_at_before_any_is_submitted(small, tmp_path):
    first = (small, tmp_path / "first")
    broken = (replace(small, data=replace(small.data, sources=())), tmp_path / "second")
    with pytest.raises(Refused, match="source-none"):
        chain([first, broken], HERE)
    assert not (tmp_path / "first").exists()


@pytest.mark.long
def test_a_second_stage_waits_for_what_the_first_leaves(small, tmp_path):
    second = replace(small, init=replace(small.init, student=str(tmp_path / "first")))
    made = chain([(small, tmp_path / "first"), (second, tmp_path / "second")], HERE)
    assert [finished(each) for each in made] == [State.DONE] * 2, made[1].logs()
    assert read_metrics(tmp_path / "second")[-1]["step"] == 5


def test_a_fork_begins_with_a_teacher_of_the_run(taught):
    config = fork(taught.folder, 10, steps=50)
    assert config.init.student == f"{taught.folder.absolute()}@10"
    assert (config.steps, config.name) == (50, "nano_pretrain_from_10")
    with pytest.raises(ValueError, match="exported no teacher of step 11; there are: 10, 20"):
        fork(taught.folder, 11)


def test_a_run_that_was_never_submitted_is_followed_as_well(make_run, tmp_path):
    told = stands(make_run(tmp_path / "nano"))
    assert (told["state"], told["jobs"], told["log"]) == ("not submitted", [], "")
    with pytest.raises(ValueError, match="was never submitted; name a target"):
        go_on(tmp_path / "nano")
    assert submissions(tmp_path / "nano") == []


def test_durations_are_for_people():
    assert [duration(s) for s in (3, 600, 5400, 400_000)] == ["1 min", "10 min", "1 h 30 min", "4 d"]
