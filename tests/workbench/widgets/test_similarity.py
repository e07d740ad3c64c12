"""The similarity widget in Python: one state to read, set, observe and link, and little of it in a notebook's file."""

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import traitlets
from nbclient import NotebookClient
from PIL import Image

from core.dense.geometry import patch_centre, pixel_to_patch
from core.models import Backbone
from core.models.weights import load_backbone
from workbench.images import list_samples
from workbench.looks import Look, look_at
from workbench.packs import Pack, make_pack, save_pack
from workbench.views import ViewError, decode_view, encode_view, record_of
from workbench.widgets import Similarity, host
from workbench.widgets.host import STILL_BYTES, modules

WEIGHTS = "dinov2_vits14_saliency"
WIDGETS = Path(host.__file__).parent


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(WEIGHTS)


@pytest.fixture(scope="module")
def looks(backbone) -> list[Look]:
    """One photograph at two sizes, and another one; the first has a row of padding."""
    cat, other = list_samples()[1].path, list_samples()[5].path
    return [look_at(cat, backbone, size=224), look_at(cat, backbone, size=154), look_at(other, backbone, size=154)]


@pytest.fixture(scope="module")
def packs(looks) -> list[Pack]:
    return [make_pack(look, basis=look.basis) for look in looks]


# Point and queries


def test_a_point_is_a_query_at_the_middle_of_its_patch(packs):
    view = Similarity(packs[0])
    assert view.point is None and view.queries == []
    view.point = (3, 5)
    x, y = patch_centre(packs[0].geometry, 3, 5)
    assert view.queries == [{"image": packs[0].picture["digest"], "x": x, "y": y, "sign": 1}]
    view.point = [np.int64(4), np.int64(6)]
    assert view.point == (4, 6) and len(view.queries) == 1
    view.point = None
    assert view.queries == []


def test_every_point_of_the_grid_comes_back(packs):
    view = Similarity(packs[0])
    for row, col in np.argwhere(packs[0].valid).tolist():
        view.point = (row, col)
        query = view.queries[0]
        view.queries = []
        assert view.point is None
        view.set_state({"queries": [query]})  # as a page does
        assert view.point == (row, col)


def test_a_click_on_the_page_is_told_once(packs):
    view = Similarity(packs[0], point=(1, 1))
    told = []
    view.observe(lambda change: told.append((change.old, change.new)), "point")
    page = {"image": packs[0].picture["digest"], "x": 100.3, "y": 200.7, "sign": 1}
    view.set_state({"queries": [page]})
    cell = pixel_to_patch(packs[0].geometry, 100.3, 200.7)
    assert told == [((1, 1), cell)] and view.queries == [page], "the point is not moved to the middle"
    view.set_state({"queries": [page, page | {"x": 5.0}]})
    assert len(told) == 1, "the first query is the point"
    view.set_state({"queries": []})
    assert told[1:] == [(cell, None)]


def test_a_query_in_another_photograph_is_no_point_of_the_first(packs):
    view = Similarity(packs[0], packs[2])
    view.queries = [{"image": packs[2].picture["digest"], "x": 50, "y": 60, "sign": 1}]
    assert view.point is None and len(view.queries) == 1
    assert np.isfinite(view.values(0)).any(), "the same weights answer across photographs"


def test_a_point_belongs_to_the_grid_of_the_first_pane(packs):
    view = Similarity(packs[0], packs[1], point=(8, 8))
    view.panes = [{"pack": 1, "show": "similarity"}]
    query = view.queries[0]
    assert view.point == pixel_to_patch(packs[1].geometry, query["x"], query["y"]) != (8, 8)


def test_two_views_are_linked_by_point_or_by_queries(packs):
    a, b, c = Similarity(packs[0]), Similarity(packs[0]), Similarity(packs[1])
    traitlets.link((a, "point"), (b, "point"))
    traitlets.dlink((a, "queries"), (c, "queries"))
    a.point = (3, 5)
    assert b.point == (3, 5)
    x, y = patch_centre(packs[0].geometry, 3, 5)
    assert c.point == pixel_to_patch(packs[1].geometry, x, y), "another size, the same place of the photograph"
    b.set_state({"queries": [{"image": packs[0].picture["digest"], "x": 1, "y": 1, "sign": 1}]})
    assert a.point == (0, 0) and c.queries == a.queries


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("point", (99, 0), r"a point is \(row, column\) of the first pane: row 99 is outside the grid; choose 0 to 11"),
        ("point", (0, -1), "column -1 is outside the grid"),
        ("point", (1, 2, 3), r"a point is \(row, column\)"),
        ("point", 7, "expected a tuple or None, not the int 7"),
        ("panes", [{"pack": 3}], "'pack' of a pane is the number of a pack, 0 to 2, not 3"),
        ("queries", [{"x": 1}], "a query is"),
        ("camera", {"zoom": 2}, "a camera is"),
        ("limits", [1, 0], "a low and a higher value"),
        ("limits", [1], "length"),
        ("selection", [[0, 99, 0]], "row 99 is outside the grid"),
        ("opacity", 1.5, "should not be greater than 1"),
        ("colormap", "jet", "expected any of .*'viridis'"),
        ("threshold", "high", "expected a float"),
    ],
)
def test_what_cannot_be_shown_is_refused_with_a_sentence_and_changes_nothing(packs, name, value, sentence):
    view = Similarity(*packs, point=(2, 2))
    before = view.state
    with pytest.raises(traitlets.TraitError, match=sentence):
        setattr(view, name, value)
    assert view.state == before and view.point == (2, 2)
    with pytest.raises(traitlets.TraitError, match=sentence):
        Similarity(*packs, **{name: value})


def test_a_view_of_nothing_is_refused():
    with pytest.raises(ValueError, match="needs something to show: Similarity"):
        Similarity()


def test_sources_are_looks_packs_and_paths(looks, packs, tmp_path):
    path = save_pack(packs[1], tmp_path / "small.dfp")
    view = Similarity(looks[0], packs[2], path, str(path))
    assert [pack.picture["digest"] for pack in view.packs] == [looks[index].photo.digest for index in (0, 2, 0, 0)]
    assert view.pack_ids == [pack.id for pack in view.packs]
    assert view.packs[0].basis is not None, "a look brings its colours"


def test_looks_shown_together_bring_cosines_of_pairs_of_them(looks):
    alone, pair = Similarity(looks[0]), Similarity(looks[0], looks[1], looks[2])
    assert alone.packs[0].null_other is None
    assert all(pack.null_other is not None for pack in pair.packs)


# Values


def test_values_are_the_cosines_of_the_features(looks):
    view = Similarity(looks[0], looks[2], point=(4, 6))
    for pane, exact in enumerate([looks[0].similarity([(4, 6)]), looks[0].similarity_in(looks[2], [(4, 6)])]):
        assert np.nanmax(np.abs(view.values(pane) - exact.numpy())) <= 0.004
        np.testing.assert_array_equal(np.isnan(view.values(pane)), np.isnan(exact.numpy()))


def test_values_follow_what_the_pane_shows(packs):
    view = Similarity(packs[0], packs[1], point=(4, 6))
    own = view.values(0)
    view.panes = [{"pack": 0, "show": "difference", "other": 1}, {"pack": 0, "show": "difference", "other": 0}]
    assert np.nanmax(np.abs(view.values(0))) > 0.05
    np.testing.assert_array_equal(view.values(1)[packs[0].valid], 0)
    view.panes = []
    np.testing.assert_array_equal(view.values(0), own)


# Addresses


def four_panes(packs: list[Pack]) -> Similarity:
    view = Similarity(
        packs[0],
        packs[1],
        packs[2],
        panes=[
            {"pack": 0, "show": "similarity"},
            {"pack": 0, "show": "difference", "other": 1},
            {"pack": 2, "show": "similarity"},
            {"pack": 1, "show": "swipe", "other": 0, "split": 0.4},
        ],
        threshold=0.35,
        colormap="magma",
        limits=[-1, 1],
        smooth=True,
        camera={"x": 0.31234567890123, "y": 0.61234567890123, "zoom": 3.7123456789},
        selection=[[0, 1, 2]],
    )
    pixels = np.random.default_rng(0).uniform(10, 100, (6, 2))
    view.queries = [
        {"image": packs[index % 2 * 2].picture["digest"], "x": x, "y": y, "sign": 1 - 2 * (index == 5)}
        for index, (x, y) in enumerate(pixels.tolist())
    ]
    return view


def test_an_address_brings_back_the_view_to_the_last_pixel(packs, tmp_path):
    view = four_panes(packs)
    address = view.to_url("http://127.0.0.1:7860/")
    assert address.startswith("http://127.0.0.1:7860/#view=") and len(address) < 2000
    for pack in packs:
        save_pack(pack, tmp_path / f"{pack.id}.dfp")
    back = Similarity.from_url(address, tmp_path)
    assert back.state == view.state and back.point == view.point
    np.testing.assert_array_equal(back.still(), view.still())


def test_an_address_holds_no_picture_and_no_name_of_a_file(packs):
    told = json.dumps(decode_view(four_panes(packs).to_url()))
    assert all(Path(pack.picture["name"]).stem not in told for pack in packs)
    assert max(map(len, re.findall(r'"([^"]*)"', told))) < 32, "names of traits and models, and digests"


def test_an_address_says_which_pack_is_missing(packs):
    address = Similarity(packs[0], packs[2]).to_url()
    with pytest.raises(ViewError, match=f"the pack {packs[2].id} is missing: make it from the photograph"):
        Similarity.from_url(address, packs[0])


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ({"panes": [{"pack": 4}]}, "0 to 0, not 4"),
        ({"queries": [{"image": "a"}]}, "a query is"),
        ({"queries": "all"}, "a view that cannot be"),
        ({"camera": {"x": 0.5, "y": 0.5, "zoom": float("nan")}}, "a camera is"),
        ({"opacity": -1}, "a view that cannot be"),
    ],
)
def test_an_address_of_a_view_that_cannot_be_is_refused(packs, state, sentence):
    told = record_of(packs[:1], state, dict.fromkeys(state))
    with pytest.raises(ViewError, match=sentence):
        Similarity.from_url(encode_view(told), packs[0])


def test_an_address_sets_nothing_but_what_the_view_shows(packs):
    state = {
        "_view_module": "https://example.org/evil.js",
        "_esm": "alert(1)",
        "_modules": "0",
        "_still": "0",
        "pack_ids": ["0"],
        "layout": {"width": "1px"},
        "packs": [],
        "unknown": 1,
        "smooth": True,
    }
    told = record_of(packs[:1], state, dict.fromkeys(state))
    view = Similarity.from_url(encode_view(told), packs[0])
    plain = Similarity(packs[0], smooth=True)
    assert view.state == plain.state
    own = {"layout", "_still"}  # new with every view
    assert {name: value for name, value in view.get_state().items() if name not in own} == {
        name: value for name, value in plain.get_state().items() if name not in own
    }


# Messages


class Page:
    """Stands where the page is and keeps what it is sent."""

    def __init__(self, view: host.PackWidget) -> None:
        self.answers: list[tuple[dict[str, Any], list[bytes]]] = []
        self.view = view
        view.send = lambda content, buffers=None: self.answers.append((content, buffers or []))

    def ask(self, **question: Any) -> tuple[dict[str, Any], list[bytes]]:
        self.view._handle_custom_msg({"id": 7, "view": "abc"} | question, [])
        content, buffers = self.answers.pop()
        assert not self.answers and (content.pop("id"), content.pop("view")) == (7, "abc")
        json.dumps(content)
        return content, buffers


def test_a_page_is_sent_the_modules_each_after_those_it_needs(packs):
    content, buffers = Page(Similarity(packs[0])).ask(kind="modules")
    assert not buffers
    names = [module["name"] for module in content["modules"]]
    assert names[-1] == "similarity.js" and len(set(names)) == len(names)
    for at, module in enumerate(content["modules"]):
        assert module["source"] == (WIDGETS / module["name"]).read_text()
        assert set(re.findall(r'from\s*"\./([\w.]+)"', module["source"])) <= set(names[:at])


def test_a_page_is_sent_the_ranges_it_asks_for(packs):
    page = Page(Similarity(packs[0], packs[1]))
    for pack in packs[:2]:
        content = pack.read(0, pack.size)
        for start, end in ((0, 16), (100, 100), (5, 70_000), (pack.size - 3, pack.size)):
            assert page.ask(kind="read", pack=pack.id, start=start, end=end) == ({}, [content[start:end]])


class Blobs(host.PackWidget):
    _entry = "geometry.js"


def test_a_page_is_sent_a_blob_by_its_name(packs):
    page = Page(Blobs(packs=packs[:1], blobs={"positions": b"12345"}))
    assert page.ask(kind="blob", name="positions") == ({}, [b"12345"])
    content, buffers = page.ask(kind="blob", name="cells")
    assert "no answer to" in content["error"] and not buffers


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        ({"kind": "read", "pack": "0123456789abcdef", "start": 0, "end": 16}, "no pack 0123456789abcdef; give it to"),
        ({"kind": "read", "start": -1, "end": 16}, "bytes -1 to 16 are not all in a pack of"),
        ({"kind": "read", "start": 0, "end": 1 << 40}, "are not all in a pack of"),
        ({"kind": "read", "start": 5, "end": 4}, "are not all in a pack of"),
        ({"kind": "read", "start": "0", "end": 16}, "no answer to"),
        ({"kind": "read"}, "no answer to"),
        ({"kind": "file", "name": "/etc/passwd"}, "no answer to"),
        ({}, "no answer to"),
    ],
)
def test_any_other_question_is_answered_with_a_sentence(packs, question, sentence):
    content, buffers = Page(Similarity(packs[0])).ask(**({"pack": packs[0].id} | question))
    assert sentence in content["error"] and not buffers


# What stays in a notebook, and in a file


def shown(view: Similarity, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    outputs: list[dict[str, Any]] = []
    monkeypatch.setattr(host, "display", lambda data, **_: outputs.append(data))
    view._ipython_display_()
    return outputs


def test_a_picture_comes_before_the_live_view_and_is_named_by_it(packs, monkeypatch):
    view = Similarity(packs[0], packs[2], point=(4, 6))
    picture, live = shown(view, monkeypatch)
    assert live["application/vnd.jupyter.widget-view+json"]["model_id"] == view.model_id
    assert live["text/plain"] == "<Similarity of cat_bengal.jpg, cat_chelsea.jpg: run the cell to bring it to life>"
    assert f'title="{view.get_state()["_still"]}"' in picture["text/html"] and 'alt="' in picture["text/html"]
    file = base64.b64decode(re.search(r'src="data:image/\w+;base64,([^"]+)"', picture["text/html"])[1])
    still = Image.open(io.BytesIO(file)).convert("RGB")
    assert still.width > 700
    wanted = view.still().resize(still.size)
    assert np.abs(np.asarray(still).astype(int) - np.asarray(wanted)).mean() < 8


def test_where_outputs_cannot_see_one_another_there_is_one(packs, monkeypatch):
    monkeypatch.setenv("VSCODE_PID", "1")
    (output,) = shown(Similarity(packs[0], point=(4, 6)), monkeypatch)
    assert {"text/html", "application/vnd.jupyter.widget-view+json"} <= output.keys()


def test_the_picture_of_a_view_is_bounded_whatever_it_shows():
    noise = np.random.default_rng(0).integers(0, 255, (3000, 4000, 3)).astype(np.uint8)
    for picture in (noise, noise[:64, :64], noise[:40], noise[:, :40]):
        address = host._url(Image.fromarray(picture))
        file = base64.b64decode(address.partition("base64,")[2])
        assert len(file) <= STILL_BYTES
        width, height = Image.open(io.BytesIO(file)).size
        assert width / height == pytest.approx(picture.shape[1] / picture.shape[0], rel=0.1)


def test_the_picture_shows_three_panes_side_by_side_at_one_height(packs):
    alone = [Similarity(pack, point=(4, 6)).still() for pack in packs[:2]]
    view = Similarity(packs[0], packs[0], packs[1], packs[2], point=(4, 6))
    several = view.still()
    assert several.height == min(part.height for part in alone)
    first = np.asarray(alone[0].resize((alone[0].width * several.height // alone[0].height, several.height)))
    for left in (0, first.shape[1] + 8):
        np.testing.assert_array_equal(np.asarray(several)[:, left : left + first.shape[1]], first)
    assert several.width == 3 * first.shape[1] + 16, "the fourth pane has no place"


def test_the_picture_follows_the_state(packs):
    view = Similarity(packs[0], point=(4, 6))
    changes = {"colormap": "magma", "opacity": 0.2, "smooth": True, "limits": [-1, 1], "threshold": 0.5, "queries": []}
    before = np.asarray(view.still())
    for name, value in changes.items():
        setattr(view, name, value)
        after = np.asarray(view.still())
        assert (after != before).any(), name
        before = after


def test_a_saved_view_is_a_page_of_its_own_that_asks_no_network(packs, tmp_path, browser):
    view = Similarity(packs[0], packs[2], point=(4, 6), colormap="magma")
    view.queries = [
        *view.queries,
        {"image": "</script><script>document.title = 'no'</script>", "x": 1, "y": 1, "sign": 1},
    ]
    path = view.save(tmp_path / "view.html", title="Cats & <dogs>")
    text = path.read_text()
    assert "Cats &amp; &lt;dogs&gt;" in text
    assert not re.search(
        r"(src|href|action)=|url\(|@import",
        re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.S),
    )
    page = browser.new_page()
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(path.as_uri())
    page.wait_for_function(
        "globalThis.gramscope && gramscope.packs.length === 2 && gramscope.packs.every((pack) => pack?.complete)"
    )
    page.wait_for_function("document.querySelector('.gs-read').textContent.includes('row 4, col 6')")
    assert {url.partition(":")[0] for url in asked} <= {"file", "blob", "data"} and not errors
    assert page.title() == "Cats & <dogs>"
    page.close()


PREPARED = """
from core.models.weights import load_backbone
from workbench.images import list_samples
from workbench.looks import look_at
from workbench.widgets import Similarity

backbone = load_backbone({weights!r})
looks = [look_at(sample.path, backbone, size=224) for sample in list_samples()[:15]]
"""


@pytest.mark.long
def test_twenty_views_leave_less_than_a_megabyte_in_a_saved_notebook(tmp_path):
    sources = [PREPARED.format(weights=WEIGHTS)]
    sources += [f"Similarity(looks[{i % 15}], looks[{(i + 1) % 15}], point=(9, 9))" for i in range(20)]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    NotebookClient(notebook, timeout=240, kernel_name="python3", store_widget_state=True).execute()
    path = tmp_path / "twenty.ipynb"
    nbformat.write(notebook, path)
    assert path.stat().st_size < 1_000_000
    assert_light(notebook, views=20)


def assert_light(notebook: nbformat.NotebookNode, views: int) -> None:
    """Besides the pictures nothing in the notebook is large; no module and no features are in it."""
    outputs = [output["data"] for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    assert sum("application/vnd.jupyter.widget-view+json" in data for data in outputs) == views
    assert sum("gramscope-still" in data.get("text/html", "") for data in outputs) == views
    models = notebook.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    assert sum("queries" in model["state"] for model in models.values()) == views
    assert not any(model.get("buffers") for model in models.values())
    for text in strings(notebook):
        assert len(text) < 4 * STILL_BYTES / 3 + 500 if "gramscope-still" in text else len(text) < 5000
    whole = json.dumps(notebook)
    for _, source in modules("similarity.js"):
        assert json.dumps(source[:200])[1:-1] not in whole


def strings(value: Any) -> Iterator[str]:
    """Every string in a notebook."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from strings(part)
