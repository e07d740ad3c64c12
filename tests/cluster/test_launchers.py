"""Every launcher is asked the same: what it renders is the stored text, and what it cannot do it says."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from cluster import LAUNCHERS, Job, State, Target
from cluster.job import job_name, start_line
from cluster.kubernetes import of_objects
from cluster.skypilot import of_queue
from cluster.slurm import facts, render_array
from cluster.states import of_exit

TEXTS = Path(__file__).parent / "texts"
FOLDER = Path("/runs/nano")
PLACE = FOLDER / "jobs" / "1"
ONE = Job(name="nano", folder=FOLDER, module="core.train", arguments=(str(FOLDER),))
MANY = replace(ONE, nodes=2, processes=8, gpus=8, cpus=12, memory="900G", minutes=2880, environment={"NOTE": "it's me"})
PYTHON = "/envs/gramscope/bin/python"
TARGETS = {
    "local": Target(name="here", launcher="local", python=PYTHON),
    "slurm": Target(
        name="h100", launcher="slurm", partition="h100", account="vision", python=PYTHON,
        before=("module load cuda/13",), options=("--exclusive",), environment={"NCCL_DEBUG": "WARN"},
    ),
    "kubernetes": Target(name="pods", launcher="kubernetes", image="registry.example/gramscope:1", volume="runs"),
    "skypilot": Target(name="sky", launcher="skypilot", options=("accelerators=H100:8", "use_spot=true")),
    "ray": Target(name="rays", launcher="ray", python=PYTHON),
}  # fmt: skip
JOBS = {
    "local": replace(MANY, nodes=1, memory=""),
    "slurm": MANY,
    "kubernetes": MANY,
    "skypilot": MANY,
    "ray": replace(MANY, minutes=0, memory=""),
}


def test_every_launcher_is_asked():
    assert set(TARGETS) == set(JOBS) == set(LAUNCHERS)


@pytest.mark.parametrize("name", LAUNCHERS)
@pytest.mark.parametrize("size", ["one", "many"])
def test_the_text_is_the_stored_one(name, size):
    """After a change that is meant, look at what is written beside the old text and put it in its place."""
    job = JOBS[name] if size == "many" else ONE
    text = LAUNCHERS[name].render(job, TARGETS[name], PLACE)
    stored = TEXTS / f"{name}_{size}.txt"
    if not stored.exists() or stored.read_text() != text:
        stored.with_suffix(".new").write_text(text)
    assert text == stored.read_text()


@pytest.mark.parametrize("name", ["local", "slurm", "ray"])
def test_scripts_are_good_shell(name, tmp_path):
    import subprocess

    place = tmp_path / "a folder's name" / "jobs" / "1"
    for job in (ONE, JOBS[name]):
        text = LAUNCHERS[name].render(replace(job, folder=place.parents[1]), TARGETS[name], place)
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize("name", ["kubernetes", "skypilot"])
def test_manifests_are_good_yaml(name):
    documents = list(yaml.safe_load_all(LAUNCHERS[name].render(MANY, TARGETS[name], PLACE)))
    if name == "skypilot":
        (task,) = documents
        assert (
            task["num_nodes"] == 2 and task["resources"]["accelerators"] == "H100:8" and task["resources"]["use_spot"]
        )
        assert "export NOTE='it'\"'\"'s me'" in task["run"]
        return
    service, job = documents
    specification = job["spec"]
    assert specification["parallelism"] == specification["completions"] == 2
    pod = specification["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"].items() <= specification["template"]["metadata"]["labels"].items()
    assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 8, "cpu": 96, "memory": "900Gi"}


def test_stages_wait_for_each_other():
    text = LAUNCHERS["slurm"].render(MANY, TARGETS["slurm"], PLACE, ({"id": "12"}, {"id": "13"}))
    assert "#SBATCH --dependency=afterok:12:13\n" in text
    before = {"place": "/runs/first/jobs/1"}
    assert "while [ ! -e /runs/first/jobs/1/ended ]" in LAUNCHERS["local"].render(
        ONE, TARGETS["local"], PLACE, (before,)
    )
    for name in ("kubernetes", "skypilot", "ray"):
        with pytest.raises(ValueError, match="submit the next stage when this one is done"):
            LAUNCHERS[name].render(ONE, TARGETS[name], PLACE, (before,))


def test_a_sweep_is_one_array():
    places = [Path(f"/runs/{name}/jobs/1") for name in "abc"]
    text = render_array([ONE] * 3, TARGETS["slurm"], places, at_once=2)
    assert "#SBATCH --array=0-2%2\n" in text and "--output=/runs" not in text
    assert "2) exec bash /runs/c/jobs/1/script >> /runs/c/jobs/1/log.txt 2>&1 ;;" in text
    with pytest.raises(ValueError, match="want the same machines"):
        render_array([ONE, MANY], TARGETS["slurm"], places[:2])


@pytest.mark.parametrize(
    ("launcher", "job", "target", "words"),
    [
        ("local", {"nodes": 2}, {}, "one node"),
        ("local", {"memory": "8G"}, {}, "leave memory out"),
        ("kubernetes", {}, {"image": ""}, "names no image"),
        ("skypilot", {}, {"options": ("fast",)}, "accelerators=H100:8"),
        ("skypilot", {"gpus": 8}, {"options": ()}, "of which kind"),
        ("ray", {"minutes": 5}, {}, "leave minutes out"),
    ],
)
def test_what_cannot_be_had_is_said(launcher, job, target, words):
    with pytest.raises(ValueError, match=words):
        LAUNCHERS[launcher].render(replace(ONE, **job), replace(TARGETS[launcher], **target), PLACE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "Nano"}, "small letters"),
        ({"name": "a" * 60}, "at most 52"),
        ({"nodes": 0}, "nodes is at least 1"),
        ({"gpus": -1}, "gpus is at least 0"),
        ({"memory": "much"}, 'as "64G"'),
        ({"gpus": 3, "processes": 2}, "evenly"),
    ],
)
def test_jobs_that_cannot_be_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        replace(ONE, **change)


def test_any_text_becomes_a_name():
    assert job_name("ViT-7B / Gram stage!") == "vit-7b-gram-stage"
    assert job_name("---") == "run" and len(job_name("x" * 99)) == 52
    for text in ("A" * 60, "ä", "a_b", "9"):
        replace(ONE, name=job_name(text))


def test_one_process_needs_no_torchrun_and_nodes_need_a_place_to_meet():
    assert start_line(ONE, python="py") == "py -m core.train /runs/nano"
    with pytest.raises(ValueError, match="need an endpoint"):
        start_line(MANY)
    assert '--rdzv-endpoint "$HEAD:1"' in start_line(MANY, endpoint="$HEAD:1")


@pytest.mark.parametrize(
    ("code", "log", "state"),
    [
        (0, "CUDA out of memory, tried again", State.DONE),
        (1, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate", State.OUT_OF_MEMORY),
        (1, "DefaultCPUAllocator: can't allocate memory", State.OUT_OF_MEMORY),
        (137, "", State.OUT_OF_MEMORY),
        (143, "", State.CANCELLED),
        (1, "ValueError", State.FAILED),
    ],
)
def test_states_by_exit_status_and_log(code, log, state):
    assert of_exit(code, log).state == state


def test_scontrols_line_is_read():
    line = "JobId=7 JobName=nano Reason=Resources JobState=PENDING Restarts=2 ExitCode=0:0 Command=(null) Power="
    assert facts(line)["JobState"] == "PENDING" and facts(line)["Restarts"] == "2" and facts(line)["Power"] == ""


def ended_pod(reason: str) -> dict:
    return {"status": {"containerStatuses": [{"state": {"terminated": {"reason": reason}}}]}}


@pytest.mark.parametrize(
    ("job", "pods", "state", "words"),
    [
        ({"conditions": [{"type": "Complete", "status": "True"}]}, [], State.DONE, ""),
        ({"conditions": [{"type": "Failed", "status": "True"}]}, [ended_pod("OOMKilled")], State.OUT_OF_MEMORY, "OOM"),
        (
            {"conditions": [{"type": "Failed", "status": "True", "reason": "DeadlineExceeded"}]},
            [],
            State.OUT_OF_TIME,
            "Deadline",
        ),
        (
            {"conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}]},
            [{"status": {"reason": "NodeLost"}}],
            State.NODE_FAILED,
            "NodeLost",
        ),
        ({"conditions": [{"type": "Failed", "status": "True"}]}, [ended_pod("Error")], State.FAILED, ""),
        ({"ready": 1}, [], State.RUNNING, "1 of 2"),
        (
            {},
            [{"status": {"conditions": [{"type": "PodScheduled", "status": "False", "message": "no GPU is free"}]}}],
            State.WAITING,
            "no GPU is free",
        ),
    ],
)
def test_states_of_kubernetes(job, pods, state, words):
    found = of_objects({"spec": {"parallelism": 2}, "status": job}, pods)
    assert found.state == state and words in found.reason


def test_states_of_skypilot():
    queue = [
        {"job_id": 1, "job_name": "nano-1", "status": "SUCCEEDED"},
        {"job_id": 2, "job_name": "nano-1", "status": "ManagedJobStatus.RECOVERING", "recovery_count": 3},
        {"job_id": 3, "job_name": "other", "status": "FAILED_SETUP", "failure_reason": "no pip"},
    ]
    assert (of_queue(queue, "nano-1").state, of_queue(queue, "nano-1").restarts) == (State.WAITING, 3)
    assert of_queue(queue, "other").state == State.FAILED and of_queue(queue, "other").reason == "no pip"
    assert of_queue(queue, "third").state == State.UNKNOWN
