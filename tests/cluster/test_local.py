"""Jobs on this machine, for real."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cluster import State, find_target, submissions, submit, sweep
from cluster.submission import last_lines

HERE = find_target("local", Path("/nowhere"))


def wait(submission, state: State, patience: float = 30):
    """Until the job stands so; any other end fails."""
    deadline = time.monotonic() + patience
    while (status := submission.status()).state != state:
        assert not status.state.is_over and time.monotonic() < deadline, (status, submission.logs())
        time.sleep(0.05)
    return status


def started(submission, word: str = "start", patience: float = 30) -> None:
    deadline = time.monotonic() + patience
    while word not in submission.logs():
        assert time.monotonic() < deadline, submission.logs()
        time.sleep(0.05)


def test_a_job_runs_to_its_end_and_is_found_again(nap):
    job = nap("one")
    made = submit(job, HERE)
    assert wait(made, State.DONE).reason == ""
    assert made.logs() == "start 0\nend"
    (found,) = submissions(job.folder)
    assert found == made and found.status() == made.status()
    assert submit(job, HERE).number == 2 and len(submissions(job.folder)) == 2


def test_a_job_outlives_who_started_it(nap, tmp_path):
    """As when the kernel of a notebook is killed."""
    job = nap("survivor", seconds=2)
    code = (
        "import os, signal; from pathlib import Path; from cluster import Job, find_target, submit\n"
        f"submit(Job(name={job.name!r}, folder=Path({str(job.folder)!r}), module='napper', "
        f"arguments={job.arguments!r}, environment={dict(job.environment)!r}), find_target('local'))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL
    (found,) = submissions(job.folder)
    assert found.status().state == State.RUNNING
    wait(found, State.DONE)
    assert found.logs().endswith("end")


def test_cancel_lets_it_save(nap):
    made = submit(nap("long", seconds=60), HERE)
    started(made)
    made.cancel()
    deadline = time.monotonic() + 20
    while made.status().state == State.RUNNING:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert made.logs() == "start 0\nheard SIGTERM\nsaved"
    made.cancel()  # again: nothing happens


def test_requeue_starts_it_again_under_the_same_number_and_where_it_was(nap, tmp_path, monkeypatch):
    made = submit(nap("long", seconds=60), HERE)
    started(made)
    directory = os.getcwd()
    monkeypatch.chdir(tmp_path)
    again = made.requeue()
    assert os.readlink(f"/proc/{again.handle['id']}/cwd") == directory
    started(again, "saved\nstart 0")
    assert again.place == made.place and again.handle != made.handle
    assert submissions(made.job.folder) == [again]
    again.cancel()


@pytest.mark.parametrize(
    ("nap_of", "state", "words"),
    [({"status": 3}, State.FAILED, "status 3"), ({"holding": 10**7}, State.OUT_OF_MEMORY, "")],
)
def test_bad_ends_are_what_they_are(nap, nap_of, state, words):
    made = submit(nap("bad", **nap_of), HERE)
    assert words in wait(made, state).reason


def test_a_killed_job_is_not_running(nap):
    made = submit(nap("killed", seconds=60), HERE)
    started(made)
    os.killpg(int(made.handle["id"]), signal.SIGKILL)
    assert "killed" in wait(made, State.FAILED).reason


def test_another_process_with_the_same_number_is_not_the_job(nap):
    made = submit(nap("one"), HERE)
    wait(made, State.DONE)
    impostor = replace(made, handle=made.handle | {"id": str(os.getpid())})
    assert impostor.status().state == State.DONE


def test_a_job_on_another_machine_is_not_looked_for_here(nap):
    made = submit(nap("one", seconds=30), HERE)
    far = replace(made, handle=made.handle | {"host": "elsewhere"})
    assert far.status().state == State.UNKNOWN and "elsewhere" in far.status().reason
    made.cancel()


def test_stages_follow_each_other_and_one_that_fails_ends_the_next(nap):
    first = submit(nap("first", seconds=1), HERE)
    second = submit(nap("second"), HERE, after=[first])
    wait(second, State.DONE)
    assert first.status().state == State.DONE
    broken = submit(nap("broken", status=1), HERE)
    never = submit(nap("never"), HERE, after=[broken])
    wait(never, State.FAILED)
    assert "the job before failed" in never.logs() and "start" not in never.logs()


def test_a_time_limit_lets_it_save(nap):
    made = submit(nap("slow", seconds=60, minutes=1), HERE)
    text = (made.place / "script").read_text()
    assert "timeout --signal=USR1 --kill-after=3600 60 " in text
    made.cancel()


def test_many_jobs_are_submitted_together(nap):
    jobs = [nap(f"job-{number}") for number in range(3)]
    made = sweep(jobs, HERE)
    for each in made:
        wait(each, State.DONE)
    with pytest.raises(ValueError, match="at_once is for Slurm"):
        sweep(jobs, HERE, at_once=1)


def test_what_is_refused_leaves_nothing_behind(nap):
    job = nap("two", nodes=2)
    with pytest.raises(ValueError, match="one node"):
        submit(job, HERE)
    assert submissions(job.folder) == [] and list((job.folder / "jobs").iterdir()) == []


def test_a_damaged_record_is_named(nap):
    made = submit(nap("one"), HERE)
    wait(made, State.DONE)
    (made.place / "job.json").write_text("{")
    with pytest.raises(ValueError, match=r"jobs/1/job\.json is damaged"):
        submissions(made.job.folder)


def test_only_the_last_lines_are_read_and_a_bar_counts_once(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("".join(f"line {number}\n" for number in range(100_000)) + "10 %\r50 %\r90 %\n")
    assert last_lines(path, 2) == "line 99999\n90 %"
    assert last_lines(tmp_path / "none", 2) == ""
