"""The charts hold the numbers that numpy gives."""

import json

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

from core.dense.reference import NullCurves, null_curves, standing
from core.dense.similarity import cosine_map
from workbench.plots import cosine_by_distance, cosine_histogram, knn_curve, knn_stages, seed_curves


@pytest.fixture(scope="module")
def patches() -> torch.Tensor:
    return torch.randn(6, 9, 12, generator=torch.Generator().manual_seed(0)) + 0.5


@pytest.fixture(scope="module")
def null(patches) -> NullCurves:
    other = torch.randn(5, 4, 12, generator=torch.Generator().manual_seed(1))
    return null_curves(patches, [other])


def curves(figure: go.Figure) -> dict[str, go.Scatter | go.Bar]:
    return {trace.name: trace for trace in figure.data}


@pytest.mark.parametrize("signed", [False, True])
def test_every_curve_is_a_density_and_equals_numpys(patches, null, signed):
    cosines = cosine_map(patches, [(1, 2)], negatives=[(4, 4)] if signed else [])
    limits = (-2, 2) if signed else (-1, 1)
    found = curves(cosine_histogram(cosines, null, signed=signed))
    values = [cosines, null.same_image, null.other_images]
    assert len(found) == 3
    for trace, numbers in zip(found.values(), values, strict=True):
        expected, edges = np.histogram(numbers.double().numpy(), bins=len(trace.x), range=limits, density=True)
        np.testing.assert_allclose(trace.x, (edges[1:] + edges[:-1]) / 2, atol=1e-6)
        np.testing.assert_allclose(trace.y, expected, rtol=1e-5)  # edges are kept in fp32
        assert np.sum(trace.y) * (limits[1] - limits[0]) / len(trace.x) == pytest.approx(1, abs=1e-5)


def test_padding_is_no_part_of_the_density(patches, null):
    cosines = cosine_map(patches, [(1, 2)])
    padded = torch.cat([cosines, torch.full((2, 9), torch.nan)])
    with_padding, without = (curves(cosine_histogram(c, null))["this query"] for c in (padded, cosines))
    np.testing.assert_array_equal(with_padding.y, without.y)


def test_the_axes_show_all_that_cosines_can_be(patches, null):
    cosines = cosine_map(patches, [(1, 2)])
    for signed, limits in ((False, (-1, 1)), (True, (-2, 2))):
        assert tuple(cosine_histogram(cosines, null, signed=signed).layout.xaxis.range) == limits
    with pytest.raises(ValueError, match="span"):
        cosine_histogram(cosines * 2, null)


def test_the_mark_stands_at_its_cosine_and_only_when_given(patches, null):
    cosines = cosine_map(patches, [(1, 2)])
    (line,) = cosine_histogram(cosines, null, mark=0.625).layout.shapes
    assert line.x0 == line.x1 == 0.625
    assert not cosine_histogram(cosines, null).layout.shapes


def test_without_another_photo_there_is_no_curve_for_it(patches):
    found = curves(cosine_histogram(cosine_map(patches, [(1, 2)]), null_curves(patches)))
    assert list(found) == ["this query", "random pairs, same photo"]


def test_no_two_curves_share_both_colour_and_dash(patches, null):
    _, same, other = curves(cosine_histogram(cosine_map(patches, [(1, 2)]), null)).values()
    assert same.line.color != other.line.color and same.line.dash != other.line.dash


def test_the_mean_by_distance_is_that_of_all_pairs(patches, null):
    unit = torch.nn.functional.normalize(patches.double(), dim=-1).reshape(-1, 12).numpy()
    cosines = unit @ unit.T
    row, col = np.divmod(np.arange(54), 9)
    apart = np.abs(row[:, None] - row) + np.abs(col[:, None] - col)
    (trace,) = cosine_by_distance(null).data
    assert list(trace.x) == list(range(1, 14))
    np.testing.assert_allclose(trace.y, [cosines[apart == distance].mean() for distance in trace.x], atol=1e-5)


def test_distances_without_a_pair_are_left_out(patches):
    valid = torch.zeros(6, 9, dtype=torch.bool)
    valid[0, 0] = valid[0, 1] = valid[5, 8] = True
    (trace,) = cosine_by_distance(null_curves(patches, valid=valid)).data
    assert list(trace.x) == [1, 12, 13] and np.isfinite(trace.y).all()


def test_the_percentile_beside_the_charts_is_numpys(null):
    references = null.same_image.double().numpy()
    for share in (1, 25, 50, 90, 99):
        value = float(np.percentile(references, share, method="midpoint"))
        assert standing(value, null.same_image).percentile == pytest.approx(share, abs=100 / len(references))
    value = 0.3
    assert standing(value, null.same_image).z == pytest.approx((value - references.mean()) / references.std(), abs=1e-5)


def test_accuracy_over_steps_is_what_the_run_wrote_in_the_order_of_steps(tmp_path):
    for step, value in ((1000, 0.5), (0, 0.1), (200, 0.3)):
        (tmp_path / "run" / "evals" / str(step)).mkdir(parents=True)
        numbers = {"top1_k10": value, "flowers/top1_k10": value / 2, "majority": 0.2, "flowers/majority": 0.2}
        (tmp_path / "run" / "evals" / str(step) / "knn.json").write_text(json.dumps(numbers))
    found = curves(knn_curve([tmp_path / "run"]))
    assert list(found["run, mean"].x) == [0, 200, 1000]
    assert list(found["run, mean"].y) == [0.1, 0.3, 0.5]
    assert list(found["run, flowers"].y) == [0.05, 0.15, 0.25]
    assert list(found["run, commonest class"].y) == [0.2, 0.2]


def test_a_run_that_was_never_evaluated_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"run\.evaluate_every"):
        knn_curve([tmp_path])


def test_stages_follow_each_other_a_colour_a_data_set(tmp_path):
    for run, last in (("first", 1000), ("second", 200)):
        for step in (0, last):
            path = tmp_path / run / "evals" / str(step) / "knn.json"
            path.parent.mkdir(parents=True)
            numbers = {"top1_k10": 0.1 + step / 2000, "flowers/top1_k10": 0.2, "majority": 0.15, "top1_k20": 0.9}
            path.write_text(json.dumps(numbers))
    figure = knn_stages([tmp_path / "first", tmp_path / "second"])
    traces = {(trace.name, trace.x[0]): trace for trace in figure.data}
    assert list(traces["mean", 0].y) == [0.1, 0.6] and list(traces["mean", 0].x) == [0, 1000]
    assert list(traces["mean", 1000].x) == [1000, 1200]
    assert traces["mean", 0].line.color == traces["mean", 1000].line.color != traces["flowers", 0].line.color
    assert [trace.name for trace in figure.data if trace.showlegend] == ["flowers", "mean", "commonest class"]
    assert [note.text for note in figure.layout.annotations] == ["first", "second"]
    assert figure.layout.yaxis.range[1] == pytest.approx(0.63)
    with pytest.raises(FileNotFoundError, match=r"run\.evaluate_every"):
        knn_stages([tmp_path])


def test_seeds_are_thin_their_mean_is_thick_and_branches_leave_one_point():
    rows = [
        {"run": run, "seed": seed, "at": at, "knn": value + seed}
        for run, at, value in [("before", 0, 1.0), ("before", 10, 2.0), ("with", 15, 4.0), ("without", 15, 1.0)]
        for seed in (0, 1)
    ]
    figure = seed_curves(rows, {"knn": "k-NN accuracy"})
    thick = {trace.name: trace for trace in figure.data if trace.line.width > 2}
    assert (list(thick["before"].x), list(thick["before"].y)) == ([0, 10], [1.5, 2.5])
    assert (list(thick["with"].x), list(thick["with"].y)) == ([10, 15], [2.5, 4.5])
    assert (list(thick["without"].x), list(thick["without"].y)) == ([10, 15], [2.5, 1.5])
    thin = [list(trace.y) for trace in figure.data if trace.line.width < 2 and trace.name == "with"]
    assert thin == [[2.0, 4.0], [3.0, 5.0]]
    assert len({trace.line.color for trace in thick.values()}) == 3
    with pytest.raises(ValueError, match="needs rows"):
        seed_curves([], {"knn": "k-NN accuracy"})
