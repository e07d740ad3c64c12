"""What the monitor knows of a folder of runs."""

import json
import shutil

import pytest

from apps.monitor.watch import Watch
from workbench.runs import SHIPPED


@pytest.fixture
def runs(make_run, tmp_path):
    make_run(tmp_path / "first", steps=(0, 10))
    make_run(tmp_path / "second", steps=(0, 10, 20), seed=5)
    return tmp_path


def test_runs_are_listed_the_newest_last_and_what_is_damaged_is_not(runs, make_run):
    watch = Watch(runs)
    assert watch.names == ["first", "second"] and watch.latest == ["second"]
    (runs / "broken").mkdir()
    (runs / "broken" / "config.json").write_text("{")
    assert watch.names == ["first", "second"]
    shutil.rmtree(runs / "second" / "probes")
    assert watch.latest == ["first"]  # a run without probes has nothing to show


@pytest.mark.parametrize(
    ("student", "probes", "story"),
    [
        ("runs/first", 3, ["first", "second"]),
        ("first@10", 3, ["first", "second"]),
        ("first@5", 3, ["second"]),  # what came after that is not its past
        ("elsewhere", 3, ["second"]),
        ("second", 3, ["second"]),
        ("first", 2, ["second"]),  # other images
    ],
)
def test_the_latest_run_comes_after_those_that_it_goes_on_from(student, probes, story, make_run, tmp_path):
    make_run(tmp_path / "first", steps=(0, 10))
    second = make_run(tmp_path / "second", steps=(10,), probes=probes)
    config = json.loads((second / "config.json").read_text())
    config["init"]["student"] = student
    (second / "config.json").write_text(json.dumps(config))
    assert Watch(tmp_path).latest == story


def test_of_the_runs_that_come_along_a_whole_story_is_shown():
    assert Watch(SHIPPED).latest == ["dense", "decay", "heal"]
    assert len(Watch(SHIPPED).show(["dense", "decay", "heal"]).series) == 10


def test_a_run_alone_is_watched_as_well(runs):
    assert Watch(runs / "first").names == ["first"]


def test_a_series_is_made_once_and_again_when_a_step_is_new(runs, make_run):
    watch = Watch(runs)
    shown = watch.show(["first"])
    assert watch.show(["first"]) is shown
    assert len(shown.packs) == 2 * 3 and [moment["step"] for moment in shown.state["moments"]] == [0, 10]
    before = watch.signature(["first"])
    make_run.probe(runs / "first", 20)
    assert watch.signature(["first"]) != before
    later = watch.show(["first"])
    assert [moment["step"] for moment in later.state["moments"]] == [0, 10, 20]
    assert [pack.id for pack in later.packs[:6]] == [pack.id for pack in shown.packs]  # colours stay while it trains


def test_several_runs_follow_each_other(runs):
    shown = Watch(runs).show(["first", "second"])
    assert [moment["run"] for moment in shown.state["moments"]] == ["first"] * 2 + ["second"] * 3


def test_where_runs_stand_is_told_in_words(runs):
    assert Watch(runs).progress(["first"]) == "first: step 21 of 100, total loss 7, 2 checkpoints"
    with pytest.raises(ValueError, match="holds no run third any more"):
        Watch(runs).progress(["third"])
