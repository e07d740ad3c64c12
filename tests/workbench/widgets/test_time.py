"""The checkpoint slider from Python: what it is given, what it refuses, what it leaves in a file."""

import json
import math

import numpy as np
import pytest
import torch
import traitlets

from core.dense.color import project, to_rgb
from core.dense.degradation import PANEL
from core.dense.geometry import patch_centre
from core.dense.scorecard import Alarm, Interval
from workbench.runs import RunSeries, open_run
from workbench.scorecards import COLUMNS, alarm_words, curves_of, rows_of
from workbench.widgets.time import TimeSlider, series_of


@pytest.fixture(scope="module")
def run(make_run, tmp_path_factory):
    return open_run(make_run(tmp_path_factory.mktemp("runs") / "nano"))


@pytest.fixture
def view(run) -> TimeSlider:
    return TimeSlider(run)


def test_it_opens_at_the_last_checkpoint_with_all_packs(view):
    assert (view.time, view.image, view.against) == (2, 0, None)
    assert [moment["step"] for moment in view.moments] == [0, 10, 20]
    assert len(view.packs) == 9 and view.pack_ids == [pack.id for pack in view.packs]
    assert view.pack.labels["step"] == "20"
    view.time, view.image = 1, 2
    assert view.pack.labels["step"] == "10" and view.pack is view.packs[1 * 3 + 2]


def test_runs_folders_and_series_are_all_sources(run, make_run, tmp_path):
    second = make_run(tmp_path / "second", seed=3)
    assert len(TimeSlider(run.folder, second).moments) == 6
    series = RunSeries.of([run])
    assert series_of((series,)) is series
    with pytest.raises(ValueError, match="one series"):
        TimeSlider(series, run)
    with pytest.raises(ValueError, match="no run folder"):
        TimeSlider(tmp_path / "nothing")


def test_the_point_is_a_patch_of_the_first_checkpoint_and_a_pixel_for_all(view):
    view.point = (2, 3)
    pack = view.table[0][0]
    x, y = patch_centre(pack.geometry, 2, 3)
    assert view.queries == [{"image": pack.picture["digest"], "x": x, "y": y, "sign": 1}]
    assert view.point == (2, 3)
    view.image = 1
    assert view.point is None  # it lies in another photograph
    view.point = None
    assert view.queries == []


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("time", 3, "0 to 2"),
        ("time", -1, "0 to 2"),
        ("image", 3, "0 to 2"),
        ("against", 9, "0 to 2"),
        ("against", "other", "a run, nano"),
        ("limits", [1.0, 0.0], "limits"),
        ("queries", [{"image": "x"}], "a query is"),
        ("camera", {"x": 2, "y": 0, "zoom": 1}, "a camera is"),
        ("show", "nothing", "show"),
        ("compare", "blink", "compare"),
    ],
)
def test_what_cannot_be_shown_is_refused_and_nothing_is_lost(view, name, value, words):
    before = getattr(view, name)
    with pytest.raises(traitlets.TraitError, match=words):
        setattr(view, name, value)
    assert getattr(view, name) == before


def test_curves_are_the_panel_with_intervals_and_json_can_hold_them(view):
    curves = {curve["name"]: curve for curve in view.curves}
    assert set(PANEL) <= set(curves) and "miou" in curves and "knn" not in curves  # nobody evaluated k-NN
    assert curves["miou"]["values"] == [0.5, 0.4, 0.3]
    table = view.series.table("mean_cosine")
    assert curves["mean_cosine"]["values"] == pytest.approx(table.mean(1).tolist())
    low, high = curves["mean_cosine"]["low"], curves["mean_cosine"]["high"]
    assert all(a <= value <= b for a, value, b in zip(low, curves["mean_cosine"]["values"], high, strict=True))
    assert curves["gram_distance"]["title"].endswith("to step 0")
    assert "NaN" not in json.dumps(view.curves)
    assert view.curves == curves_of(view.series)


def test_an_alarm_is_a_sentence(view):
    alarm = Alarm(since=2, best=1, loss=Interval(0.3, 0.2, 0.4), worst=(2, 0))
    words = alarm_words(alarm, view.series)
    assert words == f"Worse than at nano, step 10 since nano, step 20; most on {view.images[2]}, {view.images[0]}"


def test_colours_are_one_basis_a_checkpoint_turned_towards_the_last(view):
    last = view.table[-1]
    assert all(pack.basis.source == last[0].basis.source for pack in last)
    for row in view.table[:-1]:
        assert all(torch.equal(pack.basis.axes, row[0].basis.axes) for pack in row)
        scores, wanted = (
            torch.cat([project(pack.basis, (x := pack.features()).patches[x.valid]) for pack in packs])
            for packs in (row, last)
        )
        scores, wanted = scores - scores.mean(0), wanted - wanted.mean(0)
        rotation = torch.linalg.svd(scores.T @ wanted)
        assert torch.allclose(rotation.U @ rotation.Vh, torch.eye(3), atol=1e-3)  # nothing is left to turn


def test_the_same_checkpoint_twice_has_the_same_colours(make_run, run, tmp_path):
    """Two runs with equal weights: what does not change does not change colour."""
    twin = open_run(make_run(tmp_path / "twin"))
    view = TimeSlider(run, twin)
    for image in range(3):
        ours, theirs = (
            to_rgb(pack.basis, pack.features().patches) for pack in (view.table[2][image], view.table[5][image])
        )
        assert int((ours.int() - theirs.int()).abs().max()) <= 1


@pytest.mark.long
def test_the_saved_page_holds_everything_and_the_still_shows_checkpoints(view, tmp_path):
    view.point = (2, 3)
    page = view.save(tmp_path / "time.html").read_text()
    assert all(pack.id in page for pack in view.packs)
    assert "ribbon.js" in page and "similarity.js" in page and "http://" not in page.replace("http://www.w3.org", "")
    still = np.asarray(view.still())
    assert still.shape[1] > 2 * still.shape[0]  # three side by side
    assert len(np.unique(still.reshape(-1, 3), axis=0)) > 50


def test_numbers_that_there_are_not_are_null(run):
    series = RunSeries.of([run])
    series.proxy = lambda *_: [math.nan, 0.4, math.nan]
    assert curves_of(series)[0]["values"] == [None, 0.4, None]


def test_the_scorecard_is_a_row_a_metric(run):
    series = RunSeries.of([run])
    rows = rows_of(series)
    assert [row[0] for row in rows] == [metric.title for metric in PANEL.values()]
    assert all(len(row) == len(COLUMNS) for row in rows)
    last = series.table("mean_cosine")[-1].mean()
    row = next(row for row in rows if row[0] == "Mean cosine")
    assert row[1:3] == ("rises", f"{last:.3f}")
    tau = next(line.tau for line in series.scorecard() if line.name == "mean_cosine")
    assert row[4] == f"{tau:.3f}"
