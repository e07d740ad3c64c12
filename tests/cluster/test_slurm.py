"""Jobs on a real Slurm of virtual nodes."""

import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cluster import State, Status, Submission, find_target, submissions, submit, sweep
from cluster.slurm import TOLD, happened

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("slurm")]
# Virtual nodes have names that lead nowhere: their address is said.
LOW = replace(find_target("slurm:low", Path("/nowhere")), address="127.0.0.1")


@pytest.fixture(scope="module")
def deaf(slurm, make_nap, tmp_path_factory) -> Submission:
    """A job that outstays its minute, while other tests do what they do."""
    job = make_nap(tmp_path_factory.mktemp("deaf"))("deaf", seconds=300, minutes=1, cpus=4)
    return submit(job, replace(LOW, options=("--signal=B:CONT@1",)))  # in place of the signal that it hears


def wait(submission: Submission, condition: Callable[[Status], bool], patience: float = 120) -> Status:
    deadline = time.monotonic() + patience
    while not condition(status := submission.status()):
        assert not status.state.is_over, (status, submission.logs())
        assert time.monotonic() < deadline, (status, submission.logs())
        time.sleep(0.2)
    return status


def over(status: Status) -> bool:
    return status.state.is_over


def runs(status: Status) -> bool:
    return status.state == State.RUNNING


def scontrol(*words: str) -> str:
    done = subprocess.run(["scontrol", *words], capture_output=True, text=True, timeout=20, check=True)
    return done.stdout


def started(submission: Submission, word: str = "start 0") -> None:
    wait(submission, lambda _: word in submission.logs())


def at_once(submission: Submission) -> None:
    """A requeued job waits two minutes; not here."""
    wait(submission, lambda status: status.state == State.WAITING)
    scontrol("update", f"jobid={submission.handle['id']}", "StartTime=now")


def test_a_job_runs_to_its_end_and_is_found_again(nap, deaf):
    job = nap("one")
    made = submit(job, LOW)
    assert wait(made, over).state == State.DONE
    assert made.logs() == "start 0\nend"
    assert submissions(job.folder) == [made]


def test_requeued_it_saves_and_is_started_again(nap):
    made = submit(nap("again", seconds=60), LOW)
    started(made)
    made.requeue()
    status = wait(made, lambda status: status.state == State.WAITING)
    assert status.restarts == 1 and status.reason.startswith("requeued")
    at_once(made)
    started(made, "start 1")
    assert "heard SIGTERM" in made.logs() and "saved" in made.logs()
    made.cancel()
    assert wait(made, over).state == State.CANCELLED


def test_who_has_more_right_makes_it_wait(nap):
    everything = {"nodes": 3, "cpus": 4, "memory": "1000M"}  # the deaf one has a node
    low = submit(nap("low", seconds=60, **everything), replace(LOW, options=("--signal=B:USR1@30",)))
    started(low)
    high = submit(nap("high", seconds=1, **everything), replace(LOW, partition="high"))
    status = wait(low, lambda status: status.state == State.WAITING, 90)
    assert status.restarts == 1 and status.reason.startswith("preempted")
    assert "saved" in low.logs(400)  # before what torchrun has to say about it
    assert wait(high, over).state == State.DONE
    low.cancel()


def test_too_much_memory_is_named(nap):
    made = submit(nap("greedy", seconds=30, holding=900, memory="300M"), LOW)
    assert wait(made, over).state == State.OUT_OF_MEMORY
    assert "exceeded memory limit" in made.logs()


def test_a_node_that_fails_is_named_and_the_job_goes_on_elsewhere(nap):
    made = submit(nap("unlucky", seconds=60), LOW)
    started(made)
    node = subprocess.run(
        ["squeue", "-h", "-j", made.handle["id"], "-o", "%N"], capture_output=True, text=True, check=True
    ).stdout.strip()
    scontrol("update", f"nodename={node}", "state=down", "reason=test")
    try:
        status = wait(made, lambda status: status.restarts > 0)
        assert status.state == State.WAITING and " failed" in status.reason
        # Which one, srun is told a moment after the job's end is: under load, after it is in the log.
        wait(made, lambda status: status.reason.partition(";")[0] == f"node {node} failed")
        time.sleep(5)  # the credentials of the first start are still being revoked
        at_once(made)
        started(made, "start 1")
    finally:
        made.cancel()
        # Fails where the node has come back by itself.
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], capture_output=True)


def test_when_time_is_nearly_up_it_saves_and_goes_back_into_the_queue(nap):
    made = submit(nap("slow", seconds=300, minutes=1), replace(LOW, options=("--signal=B:USR1@55",)))
    assert wait(made, lambda status: status.state == State.WAITING and status.restarts > 0).restarts == 1
    assert "heard SIGUSR1\nsaved" in made.logs()
    made.cancel()


def test_a_sweep_is_one_array_of_jobs_of_their_own(nap):
    jobs = [nap(f"job-{number}", status=int(number == 1)) for number in range(3)]
    made = sweep(jobs, LOW, at_once=2)
    assert len({each.handle["id"].partition("_")[0] for each in made}) == 1
    states = [wait(each, over).state for each in made]
    assert states == [State.DONE, State.FAILED, State.DONE]
    assert all({"start 0", "end"} <= set(each.logs().splitlines()) for each in made)


def test_stages_wait_for_the_one_before(nap):
    first = submit(nap("first", seconds=3), LOW)
    second = submit(nap("second"), LOW, after=[first])
    assert wait(second, lambda status: status.reason == "Dependency").state == State.WAITING
    assert wait(second, over).state == State.DONE
    broken = submit(nap("broken", status=1), LOW)
    never = submit(nap("never"), LOW, after=[broken])
    assert wait(never, over).state == State.CANCELLED


def test_what_slurm_refuses_is_said_in_its_words_and_leaves_nothing(nap):
    job = nap("one")
    with pytest.raises(RuntimeError, match=r"sbatch: .*invalid partition"):
        submit(job, find_target("slurm:moon", Path("/nowhere")))
    assert submissions(job.folder) == []


def test_a_queue_that_does_not_answer_is_unknown_not_over(nap, monkeypatch):
    made = submit(nap("one"), LOW)
    wait(made, over)
    monkeypatch.setenv("SLURM_CONF", "/nowhere/slurm.conf")
    assert made.status().state in (State.UNKNOWN, State.DONE)


def test_past_its_time_it_is_out_of_time(deaf):
    assert wait(deaf, over, 150).state == State.OUT_OF_TIME
    assert "TIME LIMIT" in deaf.logs()


def test_the_reason_is_that_of_the_last_start():
    end = "*** JOB 5 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO {} ***\n"
    assert happened(f"{TOLD}\n{end.format('JOB REQUEUE')}").startswith("preempted, or its time")
    assert happened(f"{TOLD}\n{end.format('JOB REQUEUE')}step\n{end.format('JOB REQUEUE')}Terminated") == "requeued"
    assert happened(end.format("JOB REQUEUE") + "step\nsrun: error: Node failure on n2\n") == "node n2 failed"
    assert happened(f"srun: error: Node failure on n2\n{end.format('NODE FAILURE')}") == "node n2 failed"
    assert happened("nothing") == "stopped"
