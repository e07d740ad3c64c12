"""The Gram lens: its matrix against the real one, in Python and in a browser opened from disk."""

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import traitlets

from core.dense.cards import ModelCard
from core.dense.degradation import DenseMap, cls_patch_cosine, local_distant, mean_cosine, spatial_contrast
from core.dense.extract import DenseFeatures
from core.dense.geometry import plan
from core.dense.packs import Pack, pack_features
from core.dense.similarity import normalize
from tests.workbench.widgets.frames import FRAME
from workbench.views import pane_values
from workbench.widgets.gram import GramLens


def make_pack(rows: int, cols: int, *, seed: int = 0, dim: int = 24, side: int = 16, name: str = "scene") -> Pack:
    """Smooth features with noise over a grey photograph whose right rim is padding where cols does not fit."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, dim, 3, 3, generator=draw)
    wide = torch.nn.functional.interpolate(coarse, (rows, cols), mode="bicubic", align_corners=True)[0].permute(1, 2, 0)
    patches = wide + 0.3 * torch.randn(rows, cols, dim, generator=draw)
    geometry = plan(cols * side, rows * side, side, size=max(cols, rows) * side)
    features = DenseFeatures(
        patches=patches, cls=patches[0, 0], registers=patches[0, :0], geometry=geometry, layer=0, norm=True
    )
    return pack_features(features, ModelCard(f"seed {seed}", f"{seed:016x}"), name, growing=True)


def gram_of(pack: Pack) -> np.ndarray:
    """The whole matrix, from the codes."""
    unit = normalize(pack.features().patches)[torch.from_numpy(np.array(pack.valid, dtype=bool))].double().numpy()
    return unit @ unit.T


@pytest.fixture(scope="module")
def early() -> Pack:
    return make_pack(12, 10)


@pytest.fixture(scope="module")
def late() -> Pack:
    return make_pack(12, 10, seed=1)


WIDGETS = Path(__file__).parents[3] / "workbench" / "widgets"

# --- Python


def test_the_matrix_is_that_of_all_cosines(early, late):
    lens = GramLens(early, late)
    assert lens.matrix() == pytest.approx(gram_of(early), abs=1e-5)
    lens.against = 1
    assert lens.matrix() == pytest.approx(gram_of(early) - gram_of(late), abs=1e-5)
    lens.against = 0
    assert (lens.matrix() == 0).all()


def test_blocks_are_means_of_the_matrix(early):
    whole = gram_of(early)
    blocks = GramLens(early).matrix(side=7)
    edges = [at * 120 // 7 for at in range(8)]
    wanted = [[whole[a:b, c:d].mean() for c, d in itertools.pairwise(edges)] for a, b in itertools.pairwise(edges)]
    assert blocks == pytest.approx(np.array(wanted), abs=1e-5)


def test_what_cannot_be_shown_is_refused(early, late):
    lens = GramLens(early, late)
    for name, value, words in [
        ("pack", 2, "0 to 1"),
        ("against", 5, "0 to 1"),
        ("selection", [[12, 0]], "12 rows and 10 columns"),
        ("window", [0.5, 0.5], "low and a higher"),
        ("window", [0.5, 1.5], "low and a higher"),
        ("limits", [1.0, 0.0], "low and a higher"),
        ("order", "spiral", "order"),
        ("simulate", {"cls": 2, "noise": 0, "place": 0}, "0 to 1"),
        ("simulate", {"cls": 0}, "simulate is"),
    ]:
        with pytest.raises(traitlets.TraitError, match=words):
            setattr(lens, name, value)
    with pytest.raises(ValueError, match="something to show"):
        GramLens()
    other = make_pack(4, 4, name="elsewhere")
    object.__setattr__(other, "header", other.header | {"picture": {"name": "elsewhere", "digest": "0" * 16}})
    with pytest.raises(ValueError, match="one photograph"):
        GramLens(early, other)


def test_the_still_shows_the_matrix(early):
    still = np.asarray(GramLens(early).still())
    assert still.shape == (384, 384, 3)
    assert (still[np.arange(384), np.arange(384)] == still[0, 0]).all()  # cosine 1 along the diagonal


# --- the page

READY = "() => window.gramscope?.shown?.complete"


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    pages, problems = [], []

    def go(lens: GramLens, **options: Any) -> Any:
        path = lens.save(tmp_path / f"{len(pages)}.html")
        page = browser.new_page(**{"viewport": {"width": 1100, "height": 900}} | options)
        pages.append(page)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: problems.append(request.url) if request.url.startswith("http") else None)
        page.goto(path.as_uri())
        page.wait_for_function(READY)
        page.evaluate(FRAME)
        return page

    yield go
    for page in pages:
        page.close()
    assert problems == []


def matrix_of(page: Any) -> np.ndarray:
    side, values = page.evaluate("() => { const { side, values } = gramscope.matrix(); return [side, [...values]]; }")
    return np.array(values).reshape(side, side)


def order_of(page: Any) -> np.ndarray:
    return np.array(page.evaluate("() => [...gramscope.order.cells]"))


@pytest.mark.long
def test_the_page_has_the_same_matrix_and_it_is_symmetric(early, show):
    page = show(GramLens(early))
    found = matrix_of(page)
    assert found == pytest.approx(gram_of(early), abs=2e-6)
    assert np.abs(found - found.T).max() <= 1e-6


def test_a_row_is_the_similarity_map(early, show):
    page = show(GramLens(early))
    for index in (0, 37, 119):
        row = np.array(page.evaluate("index => [...gramscope.row(index)]", index)).reshape(12, 10)
        digest = early.picture["digest"]
        from core.dense.geometry import patch_centre

        x, y = patch_centre(early.geometry, index // 10, index % 10)
        wanted = pane_values([early], {"pack": 0}, [{"image": digest, "x": x, "y": y, "sign": 1}])
        assert row == pytest.approx(wanted, abs=2e-6)
        assert row.ravel() == pytest.approx(matrix_of(page)[index], abs=2e-6)


@pytest.mark.long
def test_orders_are_permutations_and_reorder_the_matrix(early, show):
    page = show(GramLens(early))
    whole = gram_of(early)
    for order in ("hilbert", "cluster"):
        page.evaluate("order => gramscope.set('order', order)", order)
        cells = order_of(page)
        assert sorted(cells) == list(range(120))
        assert matrix_of(page) == pytest.approx(whole[np.ix_(cells, cells)], abs=2e-6)


def test_along_the_hilbert_curve_neighbours_follow_each_other(show):
    page = show(GramLens(make_pack(8, 8)))
    page.evaluate("() => gramscope.set('order', 'hilbert')")
    cells = order_of(page)
    steps = [abs(a // 8 - b // 8) + abs(a % 8 - b % 8) for a, b in itertools.pairwise(cells)]
    assert set(steps) == {1}


def test_clusters_stand_as_blocks(show):
    """Three kinds of patches, mixed up on the photo."""
    draw = torch.Generator().manual_seed(3)
    kinds = torch.randint(3, (8, 8), generator=draw)
    patches = torch.eye(24)[kinds] + 0.02 * torch.randn(8, 8, 24, generator=draw)
    geometry = plan(128, 128, 16, size=128)
    features = DenseFeatures(
        patches=patches, cls=patches[0, 0], registers=patches[0, :0], geometry=geometry, layer=0, norm=True
    )
    pack = pack_features(features, ModelCard("kinds", "0" * 16), "mixed", growing=True)
    page = show(GramLens(pack, order="cluster", clusters=3))
    ordered = kinds.flatten().numpy()[order_of(page)]
    assert np.count_nonzero(np.diff(ordered)) == 2
    bounds = page.evaluate("() => gramscope.order.bounds")
    assert bounds == (np.flatnonzero(np.diff(ordered)) + 1).tolist()


def test_the_list_names_the_rows_that_changed_most(early, late, show):
    page = show(GramLens(early, late, against=1))
    change = np.sqrt(((gram_of(early) - gram_of(late)) ** 2).mean(1))
    found = page.evaluate("() => gramscope.changed.map(({ index, size }) => [index, size])")
    assert [index for index, _ in found] == np.argsort(-change, kind="stable")[:6].tolist()
    assert [size for _, size in found] == pytest.approx(np.sort(change)[::-1][:6].tolist(), rel=1e-4)
    first = page.locator(".gs-changes li").first
    first.hover()
    row = page.evaluate("() => gramscope.order.cells[gramscope.hover.row]")
    assert row == found[0][0]


def test_a_map_minus_itself_is_exactly_nothing(early, show):
    page = show(GramLens(early, early, against=0))
    assert (matrix_of(page) == 0).all()


def test_hovering_the_matrix_names_both_patches_and_their_cosine(early, show):
    page = show(GramLens(early))
    box = page.locator("canvas").nth(1).bounding_box()

    def at(place):
        return (place + 0.5) / 120

    page.mouse.move(box["x"] + at(70) * box["width"], box["y"] + at(33) * box["height"])
    page.evaluate(FRAME)
    wanted = gram_of(early)[33, 70]
    assert page.locator(".gs-read").text_content() == f"row 3, col 3 and row 7, col 0: cosine {wanted:.3f}"


def test_brushing_rows_chooses_patches_and_a_lasso_on_the_photo_too(early, show):
    page = show(GramLens(early))
    box = page.locator("canvas").nth(1).bounding_box()
    x = box["x"] + box["width"] / 2
    page.mouse.move(x, box["y"] + box["height"] * 20.5 / 120)
    page.mouse.down()
    page.mouse.move(x, box["y"] + box["height"] * 24.5 / 120, steps=3)
    page.mouse.up()
    assert page.evaluate("() => gramscope.host.state.get('selection')") == [[2, col] for col in range(5)]
    photo = page.locator("canvas").nth(0).bounding_box()

    def place(row, col):
        return (
            photo["x"] + photo["width"] * (col + 0.5) / 10,
            photo["y"] + photo["height"] * (row + 0.5) / 12,
        )

    page.mouse.move(*place(4, 3))
    page.mouse.down()
    page.mouse.move(*place(5, 5), steps=4)
    page.mouse.up()
    wanted = [[row, col] for row in (4, 5) for col in (3, 4, 5)]
    assert page.evaluate("() => gramscope.host.state.get('selection')") == wanted
    page.locator("canvas").nth(1).focus()
    page.keyboard.press("Escape")
    assert page.evaluate("() => gramscope.host.state.get('selection')") == []


@pytest.mark.long
def test_zoom_keeps_what_is_under_the_pointer_and_shows_exact_rows(show):
    pack = make_pack(30, 30)
    page = show(GramLens(pack))
    assert matrix_of(page).shape == (384, 384)
    box = page.locator("canvas").nth(1).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 4)
    before = page.evaluate("() => gramscope.placeAt(0.25)")
    for _ in range(6):
        page.mouse.wheel(0, -200)
    page.evaluate(FRAME)
    assert abs(page.evaluate("() => gramscope.placeAt(0.25)") - before) <= 1
    first, last = page.evaluate("() => gramscope.range")
    assert last - first < 100
    assert matrix_of(page) == pytest.approx(gram_of(pack)[first:last, first:last], abs=2e-6)


def test_padding_takes_no_part(show):
    geometry = plan(100, 100, 16, size=100)
    patches = torch.randn(geometry.rows, geometry.cols, 24, generator=torch.Generator().manual_seed(0))
    features = DenseFeatures(
        patches=patches, cls=patches[0, 0], registers=patches[0, :0], geometry=geometry, layer=0, norm=True
    )
    pack = pack_features(features, ModelCard("padded", "0" * 16), "padded", growing=True)
    page = show(GramLens(pack))
    assert len(order_of(page)) == int(np.count_nonzero(pack.valid))
    assert not math.isnan(matrix_of(page).sum())


@pytest.mark.long
def test_a_map_of_65536_patches_is_shown_without_its_matrix(show):
    """Its matrix would take 17 GB; the page takes means over blocks."""
    page = show(GramLens(make_pack(256, 256, dim=32, side=4)))
    found = matrix_of(page)
    assert found.shape == (384, 384)
    page.locator("canvas").nth(1).focus()
    page.keyboard.press("ArrowDown")
    page.evaluate(FRAME)
    assert page.locator(".gs-read").text_content().startswith("row 0, col")


# --- the collapse dial


def turn(page: Any, cls: float = 0, noise: float = 0, place: float = 0) -> None:
    page.evaluate("levels => gramscope.set('simulate', levels)", {"cls": cls, "noise": noise, "place": place})


def measured(page: Any) -> dict[str, float]:
    return page.evaluate("async () => (await import(dialAt)).measures(gramscope.shown)")


@pytest.fixture
def dial(show) -> Callable[..., Any]:
    """A page whose dial module can be asked as well."""

    def go(pack: Pack) -> Any:
        page = show(GramLens(pack))
        source = (WIDGETS / "dial.js").read_text()
        page.evaluate(
            "text => { window.dialAt = URL.createObjectURL(new Blob([text], {type: 'text/javascript'})); }", source
        )
        return page

    return go


def features(page: Any) -> np.ndarray:
    """The unit patches on show."""
    rows, cols, dim = page.evaluate("() => [gramscope.shown.rows, gramscope.shown.cols, gramscope.shown.dim]")
    codes = page.evaluate("() => [...gramscope.shown.codes]")
    unit = np.array(codes, dtype=np.float64).reshape(rows * cols, dim)
    return unit / np.linalg.norm(unit, axis=1, keepdims=True)


def token_of(page: Any) -> np.ndarray:
    token = np.array(page.evaluate("() => [...gramscope.base.blocks.cls]"))
    return token / np.linalg.norm(token)


def test_at_zero_it_is_the_map_to_the_last_bit(early, dial):
    page = dial(early)
    before = matrix_of(page)
    turn(page, cls=0.4)
    assert page.evaluate("() => gramscope.shown.simulated")
    turn(page)
    assert page.evaluate("() => gramscope.shown === gramscope.base")
    assert (matrix_of(page) == before).all()


def test_towards_cls_is_the_formula_and_the_cosine_rises_all_the_way(early, dial):
    page = dial(early)
    base, token = features(page), token_of(page)
    last = -1.0
    for share in (0.0, 0.2, 0.5, 0.8, 1.0):
        turn(page, cls=share)
        wanted = (1 - share) * base + share * token
        wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
        found = features(page)
        assert (found * wanted).sum(1).min() > 1 - 2e-4  # eight bits
        cosine = measured(page)["cls_patch_cosine"]
        assert cosine > last
        last = cosine
    assert last == pytest.approx(1, abs=1e-3)


def test_the_page_measures_what_python_measures(dial):
    pack = make_pack(18, 14)
    page = dial(pack)
    for levels in ({}, {"cls": 0.3}, {"noise": 0.7}, {"place": 1.0}, {"cls": 0.2, "noise": 0.4, "place": 0.3}):
        turn(page, **levels)
        unit = torch.from_numpy(features(page)).float().view(18, 14, 24)
        map = DenseMap(
            unit, torch.from_numpy(token_of(page)).float(), torch.from_numpy(np.array(pack.valid, dtype=bool))
        )
        found = measured(page)
        for metric in (cls_patch_cosine, local_distant, spatial_contrast, mean_cosine):
            assert found[metric.__name__] == pytest.approx(metric(map), abs=2e-5), (metric.__name__, levels)


@pytest.mark.long
def test_noise_and_place_do_what_they_are_for(dial):
    page = dial(make_pack(16, 16))
    healthy = measured(page)
    turn(page, noise=1.5)
    assert measured(page)["local_distant"] < healthy["local_distant"] - 0.1
    turn(page, place=1.5)
    noisy = matrix_of(page)
    page.evaluate("() => gramscope.set('pack', 0)")
    assert (matrix_of(page) == noisy).all()  # the same every time
    other = dial(make_pack(16, 16, seed=7))
    turn(other, place=2.0)
    alike = np.corrcoef(matrix_of(other).ravel(), noisy.ravel())[0, 1]
    assert alike > 0.5  # two pictures that share nothing now look alike


def test_patches_keep_their_places_while_the_dial_turns(early, dial):
    page = dial(early)
    page.evaluate("() => gramscope.set('order', 'cluster')")
    before = order_of(page)
    turn(page, cls=0.9, noise=0.5)
    assert (order_of(page) == before).all()


def test_a_simulation_says_that_it_is_one(early, dial):
    page = dial(early)
    page.get_by_label("Towards CLS").fill("0.5")
    page.evaluate(FRAME)
    assert "simulation of" in page.locator("figure").nth(1).text_content()
    assert page.locator(".gs-dial tr").first.locator("td").count() == 4  # before and after
    page.get_by_role("button", name="As it is").click()
    page.evaluate(FRAME)
    assert "simulation" not in page.locator("figure").nth(1).text_content()


def test_its_random_numbers_are_those_of_posix(dial, early):
    """drand48 after srand48(1) begins with 0.0416303447718782."""
    page = dial(early)
    source = (WIDGETS / "dial.js").read_text().replace("function random", "export function random")
    first = page.evaluate(
        "async text => (await import(URL.createObjectURL(new Blob([text], {type: 'text/javascript'})))).random(1)()",
        source,
    )
    assert first == pytest.approx(0.0416303447718782, abs=1e-9)


@pytest.mark.long
def test_a_turn_of_the_dial_at_48_x_48_x_384_is_drawn(dial):
    """How long it takes is measured by `make bench`; here that it works at that size."""
    page = dial(make_pack(48, 48, dim=384))
    turn(page, cls=0.5)
    assert matrix_of(page).shape == (384, 384)
