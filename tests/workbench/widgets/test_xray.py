"""The token X-ray: what it measures, and the page that shows it."""

from typing import Any

import numpy as np
import pytest
import torch
import traitlets

from core.dense.cards import ModelCard
from core.dense.extract import DenseFeatures
from core.dense.geometry import plan
from core.dense.packs import Pack, pack_features
from core.models.weights import load_backbone
from tests.workbench.widgets.frames import FRAME
from workbench.images import list_samples, open_image
from workbench.looks import look_at
from workbench.widgets.xray import TokenXray, top_channels


@pytest.fixture(scope="module")
def features() -> DenseFeatures:
    """Eight rows of six patches, two of them far too long, with two registers."""
    draw = torch.Generator().manual_seed(0)
    patches = torch.randn(8, 6, 32, generator=draw)
    patches /= patches.norm(dim=-1, keepdim=True)
    patches *= 1 + 0.05 * torch.randn(8, 6, 1, generator=draw)
    patches[2, 3] *= 9
    patches[7, 0] *= 12
    return DenseFeatures(
        patches=patches, cls=torch.randn(32, generator=draw), registers=torch.randn(2, 32, generator=draw),
        geometry=plan(96, 128, 16, size=128), layer=0, norm=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def pack(features) -> Pack:
    return pack_features(features, ModelCard("small", "0" * 16), "scene")


@pytest.fixture
def show(browser: Any, tmp_path):
    pages, problems = [], []

    def go(view: TokenXray, **options: Any) -> Any:
        path = view.save(tmp_path / f"{len(pages)}.html")
        page = browser.new_page(**{"viewport": {"width": 1200, "height": 900}} | options)
        pages.append(page)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.goto(path.as_uri())
        page.wait_for_function("() => window.gramscope?.panes?.length")
        page.evaluate(FRAME)
        return page

    yield go
    for page in pages:
        page.close()
    assert problems == []


def maps(page: Any) -> dict[str, Any]:
    found = page.evaluate(
        "() => gramscope.shown.maps.map(({ title, values, outliers }) => [title, [...values], outliers ?? null])"
    )
    return {title: (np.array(values, dtype=float).reshape(8, 6), outliers) for title, values, outliers in found}


def test_lengths_their_outliers_and_cosines_to_every_token(features, pack, show):
    found = maps(show(TokenXray(pack)))
    assert list(found) == ["Length", "CLS", "Register 1", "Register 2"]
    lengths, outliers = found["Length"]
    assert lengths == pytest.approx(features.patches.norm(dim=-1).numpy(), rel=1e-3)
    assert outliers == [2 * 6 + 3, 7 * 6]
    for title, token in (
        ("CLS", features.cls),
        ("Register 1", features.registers[0]),
        ("Register 2", features.registers[1]),
    ):
        wanted = torch.cosine_similarity(features.patches, token, dim=-1).numpy()
        assert found[title][0] == pytest.approx(wanted, abs=6e-3), title  # eight bits


def test_hovering_reads_all_maps_at_once(features, pack, show):
    page = show(TokenXray(pack))
    box = page.locator("canvas").nth(1).bounding_box()
    page.mouse.move(box["x"] + box["width"] * 3.5 / 6, box["y"] + box["height"] * 2.5 / 8)
    page.evaluate(FRAME)
    words = page.locator(".gs-read").text_content()
    assert words.startswith("row 2, col 3 · Length ")
    assert f"Length {float(features.patches[2, 3].norm()):.3f}"[:10] in words and "Register 2" in words


def test_channels_with_most_energy_are_listed(features, pack, show):
    view = TokenXray(pack)
    energy = pack.features().patches.flatten(0, 1).double().square().sum(0)
    assert [channel for channel, _ in view.channels] == energy.argsort(descending=True)[:8].tolist()
    assert sum(share for _, share in view.channels) == pytest.approx(
        float(energy.sort().values[-8:].sum() / energy.sum())
    )
    page = show(view)
    assert page.locator("li").count() == 8
    assert page.locator("li").first.text_content().startswith(f"channel {view.channels[0][0]}: ")
    assert len(top_channels(torch.randn(4, 3))) == 3


def test_position_can_be_taken_out_of_a_look(show):
    backbone = load_backbone("dinov2_vits14_saliency")
    look = look_at(open_image(list_samples()[0].path), backbone, size=196)
    view = TokenXray(look, backbone=backbone)
    assert 0 < view.share < 0.9
    page = show(view)
    assert f"{100 * view.share:.1f} %" in page.locator(".gs-bar").text_content()
    before = page.evaluate("() => [...gramscope.shown.maps[0].values]")
    page.get_by_label("Without position").check()
    page.evaluate(FRAME)
    assert page.evaluate("() => gramscope.host.state.get('stripped')") is True
    after = page.evaluate("() => [...gramscope.shown.maps[0].values]")
    assert before != after
    assert page.evaluate("() => gramscope.shown.header.labels.without") == "position"


def test_without_a_backbone_there_is_nothing_to_take_out(pack, show):
    view = TokenXray(pack)
    with pytest.raises(traitlets.TraitError, match="give the backbone"):
        view.stripped = True
    assert not show(view).get_by_label("Without position").is_visible()


def test_the_still_is_the_photograph(pack):
    assert np.asarray(TokenXray(pack).still()).ndim == 3
