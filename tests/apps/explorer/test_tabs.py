"""The explorer without a browser: what it is built of, what it offers, and what it refuses."""

import asyncio
import threading
from collections import Counter
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from gradio import processing_utils
from PIL import Image

from apps.explorer import pictures
from apps.explorer.app import build
from apps.explorer.controls import licence_line
from apps.explorer.tabs import TABS
from apps.explorer.viewer import Viewer, plain_canvas, refusal
from core.models.published import PUBLISHED
from core.models.weights import load_backbone, save_backbone
from workbench.draw import LONG_SIDE

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def viewer() -> Viewer:
    return Viewer()


@pytest.fixture(scope="module")
def page(viewer: Viewer) -> gr.Blocks:
    return build(viewer)


def parts(page: gr.Blocks, kind: str) -> list[dict]:
    return [part["props"] for part in page.config["components"] if part["type"] == kind]


def test_building_the_page_loads_no_model(page, viewer):
    assert viewer._models == {}
    assert len(viewer.looks._looks) == 0


def test_every_tab_has_a_title_and_stands_on_the_page_in_its_order(page):
    assert all(isinstance(module.title, str) and callable(module.build) for module in TABS.values())
    labels = [props["label"] for props in parts(page, "tabitem")]
    assert [label for label in labels if label in {module.title for module in TABS.values()}] == [
        module.title for module in TABS.values()
    ]


def test_every_published_weight_is_on_offer_the_default_first(page, viewer):
    offered = [name for _, name in viewer.models]
    assert offered[0] == viewer.default and set(offered) == set(PUBLISHED)
    dropdown = next(props for props in parts(page, "dropdown") if props["label"] == "Weights")
    assert [value for _, value in dropdown["choices"]] == offered


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_licence_shows_with_its_page_for_every_weight_on_offer(name, viewer):
    licence = PUBLISHED[name].licence
    line = licence_line(name)
    assert name in line and licence.name in line and f'href="{licence.url}"' in line
    label = {value: label for label, value in viewer.models}[name]
    assert licence.name in label or PUBLISHED[name].path is not None


def test_a_file_of_ones_own_brings_the_licence_it_holds(tmp_path):
    file = tmp_path / "mine.safetensors"
    save_backbone(load_backbone("dinov2_vits14_saliency"), file, layout="official")
    viewer = Viewer(str(file))
    assert viewer.models[0] == ("mine.safetensors (your file)", str(file))
    assert "unknown" in licence_line(str(file))
    line = licence_line(str(file), viewer.backbone(str(file)).source)
    assert PUBLISHED["dinov2_vits14_saliency"].licence.name in line


def test_a_hostile_name_cannot_write_html():
    assert "<img" not in licence_line("/tmp/<img src=x onerror=alert(1)>")
    assert "<b>" not in str(refusal("<b>cat</b>.jpg: the file is empty.").message)


@pytest.mark.parametrize("name", ["/etc/passwd", "../weights.pth", "dinov2_vits14_saliency/", "facebook/dinov2-small"])
def test_only_weights_on_offer_are_loaded(viewer, name):
    with pytest.raises(gr.Error, match="no weights called") as caught:
        viewer.backbone(name)
    assert not caught.value.print_exception
    assert viewer._models == {}


@pytest.mark.parametrize("url", ["http://192.0.2.1/cat.jpg", "https://example.org/cat.jpg"])
def test_addresses_are_refused_before_anything_is_fetched(url, tmp_path):
    with pytest.raises(gr.Error, match="not fetched from the internet"):
        asyncio.run(processing_utils.async_ssrf_protected_download(url, str(tmp_path)))
    with pytest.raises(gr.Error, match="not fetched from the internet"):
        gr.UploadButton().move_resource_to_block_cache(url)
    assert list(tmp_path.iterdir()) == []


def test_the_three_endpoints_are_all_that_others_can_call(page):
    public = {d["api_name"] for d in page.config["dependencies"] if d["api_visibility"] == "public"}
    assert public == {"similarity", "pca", "models"}


def test_no_event_calls_two_functions_that_call_the_event_again(page):
    """What "always_last" does to several functions of one event: they never end."""
    late = Counter(
        tuple(target)
        for dependency in page.config["dependencies"]
        if dependency["trigger_mode"] == "always_last"
        for target in dependency["targets"]
    )
    assert late and max(late.values()) == 1


def test_pictures_have_text_alternatives_and_are_as_large_as_clicks_are_counted(page):
    images = parts(page, "image")
    assert len(images) >= 6 and all(props["alt_text"] for props in images)
    first = next(props for props in images if props["elem_id"] == "similarity-map")
    assert max(Image.open(first["value"]["path"]).size) == LONG_SIDE


def test_a_tiny_photo_is_shown_large(viewer):
    """A page counts clicks wrongly in a picture that it shows larger than the file is."""
    sample = min(viewer.samples, key=lambda sample: sample.width)
    canvas = plain_canvas(viewer.photo(str(sample.path)))
    assert max(canvas.size) == LONG_SIDE
    assert canvas.pixel_at(canvas.size[0], canvas.size[1]) == (sample.width, sample.height)


def test_notices_are_sentences_and_leave_the_log_quiet(viewer, tmp_path):
    file = tmp_path / "notes.jpg"
    file.write_text("no picture")
    with pytest.raises(gr.Error, match="not a picture in a known format") as caught:
        viewer.photo(str(file))
    assert not caught.value.print_exception
    with pytest.raises(gr.Error, match="Layers count from 1"):
        viewer.look(str(file), viewer.default, size=256, layer=0)


def test_equal_pictures_share_a_file_that_is_never_written_twice(monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    paths: list[str] = []
    threads = [threading.Thread(target=lambda: paths.append(pictures.served(pixels, "png"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(paths)) == 1
    np.testing.assert_array_equal(np.asarray(Image.open(paths[0])), pixels)
    before = Path(paths[0]).stat()
    assert pictures.served(pixels, "png") == paths[0]
    after = Path(paths[0]).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["image.png"]


def test_no_stubs_are_left_beside_the_source(page):
    """Gradio writes a .pyi beside every module that subclasses one of its components; ours do not."""
    assert list((ROOT / "apps").rglob("*.pyi")) == []
