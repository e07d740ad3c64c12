"""Runs as they lie on disk, and series of their checkpoints."""

import json
import math

import numpy as np
import pytest

from core.dense.degradation import PANEL, dense_structure, gram_distance, local_distant
from core.dense.packs import open_pack
from core.models import build_backbone
from core.probes import open_probes, write_probes
from core.recipes import recipe
from workbench.images import list_samples, open_image
from workbench.runs import SHIPPED, Moment, Run, RunSeries, open_run, shipped_run, shipped_seeds
from workbench.scorecards import curves_of, rows_of

STEPS = (0, 10, 20)


@pytest.fixture(scope="module")
def run(make_run, tmp_path_factory) -> Run:
    return open_run(make_run(tmp_path_factory.mktemp("runs") / "first"))


@pytest.fixture(scope="module")
def series(run) -> RunSeries:
    return RunSeries.of([run])


def test_numbers_of_a_run(run):
    assert run.name == "first" and run.config.steps == 100 and run.step == 21
    assert run.curve("total") == ([0, 5, 10, 15, 20], [9.0, 8.5, 8.0, 7.5, 7.0])
    assert run.curve("gram")[0] == [5, 10, 15, 20]
    with pytest.raises(KeyError, match=r"no 'koleo'; there are: gram, total"):
        run.curve("koleo")
    found = run.evaluation("incontext")
    assert found["miou"] == {0: 0.5, 10: 0.4, 20: 0.3}
    assert all(map(math.isnan, found["iou/0"].values()))
    assert run.evaluation("knn") == {}


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(ValueError, match="no run folder"):
        open_run(tmp_path)


def test_packs_of_a_step_that_is_not_there(run):
    assert run.probe_steps == [0, 10, 20]
    with pytest.raises(ValueError, match="no probes of step 5; there are: 0, 10, 20"):
        run.packs(5)


def test_a_series_holds_every_checkpoint_in_order(run, series):
    assert [moment.step for moment in series.moments] == [0, 10, 20]
    assert len(series.images) == 3
    pack = series.pack(series.moments[1], 2)
    assert pack.labels["step"] == "10" and pack.picture["name"] == series.images[2]
    assert series.pack(series.moments[1], 2) is pack
    with pytest.raises(IndexError, match="no image 3 among 3"):
        series.pack(series.moments[0], 3)


def test_tables_are_what_the_panel_says_of_the_packs(series):
    table = series.table("local_distant")
    assert table.shape == (3, 3)
    wanted = [[local_distant(series.map(moment, image)) for image in range(3)] for moment in series.moments]
    assert table == pytest.approx(np.array(wanted), abs=2e-3)  # training measured before the eight bits
    with pytest.raises(KeyError, match="no metric 'beauty'"):
        series.table("beauty")


def test_what_compares_does_so_with_the_chosen_moment(series):
    first = series.table("gram_distance")
    assert first[0].tolist() == [0, 0, 0] and (first[1:] > 0).all()
    last = series.table("gram_distance", against=series.moments[2])
    assert last[2].tolist() == [0, 0, 0]
    wanted = gram_distance(series.map(series.moments[0], 1), series.map(series.moments[2], 1))
    assert last[0, 1] == pytest.approx(wanted)


def test_the_scorecard_has_a_line_a_metric_and_tau_with_the_runs_own_proxy(series):
    assert series.proxy() == [0.5, 0.4, 0.3]
    lines = series.scorecard()
    assert [line.name for line in lines] == list(PANEL)
    assert {line.name: line.tau for line in lines}["gram_distance"] in (-1.0, -1 / 3)
    assert math.isnan(series.scorecard(proxy=[math.nan] * 3)[0].tau)


def test_dense_structure_comes_from_training(run, series):
    maps = [series.map(series.moments[0], image) for image in range(3)]
    seeds = [dense_structure(maps, seed=seed).dse for seed in range(3)]
    assert series.together("dse")[0] == pytest.approx(np.mean(seeds), abs=0.05)
    assert math.isnan(series.together("nothing")[0])


def test_a_run_that_goes_on_is_seen_after_a_refresh_and_half_written_probes_are_not(make_run, tmp_path):
    run = open_run(make_run(tmp_path / "live", steps=(0,)))
    assert run.step == 21 and run.probe_steps == [0]
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 25, "total": 6.0}) + "\n")
    assert run.step == 21
    run.refresh()
    assert run.step == 26
    write_probes(run.folder, 10, build_backbone("vit_nano", patch_size=8, depth=1).eval(), open_probes(run.config))
    panel = run.folder / "probes" / "10" / "panel.json"
    text = panel.read_text()
    panel.unlink()
    assert run.probe_steps == [0]
    panel.write_text(text)
    assert run.probe_steps == [0, 10]


def test_runs_without_a_panel_are_measured_from_their_packs(make_run, tmp_path):
    run = open_run(make_run(tmp_path / "old"))
    wanted = RunSeries.of([run]).table("mean_cosine")
    for step in STEPS:
        (run.folder / "probes" / str(step) / "panel.json").unlink()
    assert run.probe_steps == [0, 10, 20]
    assert RunSeries.of([run]).table("mean_cosine") == pytest.approx(wanted, abs=2e-3)


def test_stages_follow_each_other_and_runs_of_other_images_are_refused(make_run, run, tmp_path):
    second = open_run(make_run(tmp_path / "second", steps=(0, 10), seed=5))
    series = RunSeries.of([run, second])
    assert [moment.title for moment in series.moments[2:4]] == ["first, step 20", "second, step 0"]
    assert series.table("mean_cosine").shape == (5, 3)
    other = open_run(make_run(tmp_path / "other", steps=(0,), probes=2))
    with pytest.raises(ValueError, match="look at different images"):
        RunSeries.of([run, other])
    with pytest.raises(ValueError, match="no probes yet"):
        RunSeries.of([open_run(make_run(tmp_path / "empty", steps=()))])


def test_a_moment_says_where_it_is(run):
    assert Moment(run, 10).title == "first, step 10"
    assert "3 with probes" in repr(run)


# ---------------------------------------------------------------- the runs that come with the project


def test_the_small_runs_that_come_with_the_project_are_one_story():
    dense, decay, heal, without = map(shipped_run, ("dense", "decay", "heal", "heal_without"))
    for branch in (heal, without):
        series = RunSeries.of([dense, decay, branch])
        assert len(series) == 10 and len(series.images) == 4
        assert np.isfinite(series.table("cls_patch_cosine")).all()
        assert np.isfinite(
            np.array([series.proxy(), series.proxy("objects", "auc"), series.proxy("knn", "top1_k10")])
        ).all()
    assert heal.config.gram.use and not without.config.gram.use
    assert (heal.config.init, heal.config.steps) == (without.config.init, without.config.steps)
    assert heal.config.steps <= decay.config.steps / 5
    scratch = RunSeries.of([shipped_run("nano_pretrain")])
    assert len(scratch) == 10 and scratch.images == series.images
    with pytest.raises(ValueError, match="there are: decay, dense, heal, heal_without, nano_pretrain"):
        shipped_run("vit7b")


def test_they_are_what_the_recipes_of_the_laboratory_make():
    for name in ("dense", "decay", "heal", "heal_without"):
        run, made = shipped_run(name).config, recipe(name)
        for part in ("steps", "model", "dino", "ibot", "koleo", "optim", "crops"):
            assert getattr(run, part) == getattr(made, part), (name, part)
        assert run.gram.weight == made.gram.weight and run.distill.features == made.distill.features


def test_measures_without_labels_agree_with_labels_in_them():
    """Decay and heal, seed 0: at least three of the panel follow in-context mIoU (Kendall's tau of 0.6 or more)."""
    series = RunSeries.of([shipped_run(name) for name in ("dense", "decay", "heal")])
    falls = {"falls": 1, "rises": -1}
    agreeing = [line.name for line in series.scorecard() if line.tau * falls[PANEL[line.name].decay] >= 0.6]
    assert {"cls_patch_cosine", "gram_distance", "spatial_contrast"} <= set(agreeing)


def test_what_is_global_is_told_apart_and_may_rise_while_maps_decay():
    series = RunSeries.of([shipped_run("dense"), shipped_run("decay")])
    *dense, knn, rank, spread = rows_of(series)
    assert [row[0] for row in (knn, rank, spread)] == ["k-NN accuracy", "RankMe", "LiDAR"]
    assert {row[1] for row in (knn, rank, spread)} == {"global, not dense"} and len(dense) == len(PANEL)
    assert rank[2] == f"{series.proxy('spectrum', 'rank_me')[-1]:.3f}" and float(rank[4]) < -0.6
    groups = {curve["name"]: curve["group"] for curve in curves_of(series)}
    assert {groups[name] for name in ("knn", "rank_me", "lidar")} == {"Global, not dense"}


def test_every_seed_decays_heals_with_the_anchor_and_does_not_without():
    rows = {(row["run"], row["step"], row["seed"]): row for row in shipped_seeds()}
    seeds = {seed for *_, seed in rows}
    assert len(seeds) == 3

    def of(run: str, step: int, name: str) -> list[float]:
        return [rows[run, step, seed][name] for seed in sorted(seeds)]

    given, lost = of("dense", 200, "miou"), of("decay", 500, "miou")
    healed, without = of("heal", 100, "miou"), of("heal_without", 100, "miou")
    assert max(lost) < min(healed) and max(without) < min(healed) < max(given)  # more than seeds differ
    assert all(np.array(of("decay", 500, "cls_patch_cosine")) > of("dense", 200, "cls_patch_cosine"))


def test_they_are_small_and_name_no_machine_and_show_our_photographs():
    files = [path for path in SHIPPED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8e6
    assert {path.suffix for path in files} == {".md", ".json", ".jsonl", ".dfp"}
    ours = {open_image(sample.path).name: open_image(sample.path).digest for sample in list_samples()}
    for path in files:
        if path.suffix == ".dfp":
            picture = open_pack(path).picture
            assert picture["digest"] == ours[picture["name"]], path
        else:
            assert '"/' not in path.read_text(), path
