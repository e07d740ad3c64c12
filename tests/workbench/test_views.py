"""What a view shows is computed as a person sees it, and its address brings back the view or says what is missing."""

import base64
import json
import math
import re
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from core.dense.cards import ModelCard
from core.dense.color import to_rgb
from core.dense.extract import DenseFeatures
from core.dense.geometry import patch_centre, pixel_to_patch, plan
from core.dense.similarity import cosine_map_to
from core.models import Backbone
from core.models.weights import load_backbone
from workbench import load, look_at
from workbench.draw import QUERY, Canvas
from workbench.images import Photo, list_samples, open_image
from workbench.looks import Look
from workbench.packs import Pack, make_pack, save_pack
from workbench.views import (
    CHECKS,
    MAX_ADDRESS,
    ViewError,
    decode_view,
    draw_pane,
    encode_view,
    packs_of,
    pane_values,
    record_of,
)

WEIGHTS = "dinov2_vits14_saliency"
CARD = ModelCard("a model", "0123456789abcdef")


def picture(width: int, height: int, seed: int = 0) -> Photo:
    rough = np.random.default_rng(seed).integers(0, 255, (6, 8, 3)).astype(np.uint8)
    return open_image(np.asarray(Image.fromarray(rough).resize((width, height))), name=f"{seed}.png")


def made(
    rows: int = 5,
    cols: int = 7,
    *,
    dim: int = 48,
    seed: int = 0,
    photo: Photo | None = None,
    patches: torch.Tensor | None = None,
    card: ModelCard = CARD,
) -> Look:
    """A look with random features; the last row and column lie half in the padding when the photo is its own."""
    numbers = torch.Generator().manual_seed(seed)
    photo = photo or picture(cols * 16 - 10, rows * 16 - 3, seed)
    geometry = plan(*photo.size, 16, size=max(rows, cols) * 16)
    features = DenseFeatures(
        patches=torch.randn(geometry.rows, geometry.cols, dim, generator=numbers) if patches is None else patches,
        cls=torch.randn(dim, generator=numbers),
        registers=torch.randn(0, dim, generator=numbers),
        geometry=geometry,
        layer=7,
        norm=True,
    )
    return Look(photo, features, card.name, card)


def asked(pack: Pack, row: int, col: int, sign: int = 1) -> dict[str, Any]:
    x, y = patch_centre(pack.geometry, row, col)
    return {"image": pack.picture["digest"], "x": x, "y": y, "sign": sign}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(WEIGHTS)


@pytest.fixture(scope="module")
def looks(backbone) -> list[Look]:
    """One photograph at two sizes, and another one."""
    cat, other = list_samples()[1].path, list_samples()[5].path
    return [look_at(cat, backbone, size=224), look_at(cat, backbone, size=154), look_at(other, backbone, size=154)]


@pytest.fixture(scope="module")
def packs(looks) -> list[Pack]:
    return [make_pack(look, basis=look.basis) for look in looks]


# Values


def test_a_pane_shows_the_cosines_of_the_features(looks, packs):
    queries = [asked(packs[0], 4, 6), asked(packs[0], 1, 9), asked(packs[0], 7, 2, -1)]
    for look, pack in ((looks[0], packs[0]), (looks[2], packs[2])):  # its own photograph, and one that it has not seen
        unit = looks[0].unit
        exact = cosine_map_to(
            look.features.patches, unit[[4, 1], [6, 9]], negatives=unit[[7], [2]], valid=look.features.valid
        ).numpy()
        shown = pane_values(packs, {"pack": packs.index(pack), "show": "similarity"}, queries)
        assert shown.shape == (pack.rows, pack.cols)
        np.testing.assert_array_equal(np.isnan(shown), np.isnan(exact))
        assert np.nanmax(np.abs(shown - exact)) <= 0.004


def test_a_point_is_asked_at_its_pixel_in_every_size(looks, packs):
    query = asked(packs[0], 4, 6)
    cell = pixel_to_patch(packs[1].geometry, query["x"], query["y"])
    exact = looks[1].similarity([cell]).numpy()
    assert np.nanmax(np.abs(pane_values(packs, {"pack": 1}, [query]) - exact)) <= 0.004


@pytest.mark.parametrize("queries", [[], [{"image": "another picture", "x": 3, "y": 4, "sign": 1}]])
def test_without_an_answer_there_are_no_values(packs, queries):
    assert np.isnan(pane_values(packs, {"pack": 0}, queries)).all()


def test_negatives_alone_ask_nothing(packs):
    assert np.isnan(pane_values(packs, {"pack": 0}, [asked(packs[0], 4, 6, -1)])).all()


def test_other_weights_cannot_answer_for_a_photograph_they_have_not_seen():
    photos = picture(102, 77, seed=1), picture(102, 77, seed=2)
    here = make_pack(made(photo=photos[0]))
    same = make_pack(made(photo=photos[1]))
    strange = make_pack(made(photo=photos[1], card=ModelCard("another", "f" * 16)))
    query = [asked(here, 2, 3)]
    assert np.isfinite(pane_values([here, same], {"pack": 1}, query)).any()
    assert np.isnan(pane_values([here, strange], {"pack": 1}, query)).all()


def test_the_difference_of_identical_packs_is_exactly_zero(packs):
    pair = [packs[0], packs[0]]
    queries = [asked(packs[0], 4, 6), asked(packs[0], 1, 1, -1)]
    for show in ("difference", "rank"):
        difference = pane_values(pair, {"pack": 0, "show": show, "other": 1}, queries)
        np.testing.assert_array_equal(difference[packs[0].valid], 0)
        np.testing.assert_array_equal(np.isnan(difference), ~packs[0].valid)


def test_a_difference_takes_each_value_from_the_same_place_of_the_photograph(packs):
    queries = [asked(packs[0], 4, 6)]
    own, theirs = (pane_values(packs, {"pack": index}, queries) for index in (0, 1))
    difference = pane_values(packs, {"pack": 0, "show": "difference", "other": 1}, queries)
    for row, col in np.argwhere(packs[0].valid).tolist():
        there = pixel_to_patch(packs[1].geometry, *patch_centre(packs[0].geometry, row, col))
        assert difference[row, col] == own[row, col] - theirs[there]


def on_a_circle(angles: np.ndarray) -> torch.Tensor:
    """Patches at these angles to the first one, in a plane that lies askew in feature space."""
    plane, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((48, 2)))
    patches = np.stack([np.cos(angles), np.sin(angles)], axis=-1) @ plane.T
    return torch.from_numpy(patches.astype(np.float32)).reshape(5, 7, 48)


def test_ranks_do_not_see_a_monotone_rescaling():
    cosines = np.random.default_rng(0).permutation(np.linspace(0.94, -0.96, 34))
    angles = np.arccos(np.concatenate([[1.0], cosines]))
    photo = picture(112, 80)
    pair = [make_pack(made(photo=photo, patches=on_a_circle(part))) for part in (angles, angles / 2)]
    queries = [asked(pair[0], 0, 0)]
    assert np.abs(pane_values(pair, {"pack": 0, "show": "difference", "other": 1}, queries)).max() > 0.5
    np.testing.assert_array_equal(pane_values(pair, {"pack": 0, "show": "rank", "other": 1}, queries), 0)


def share(values: np.ndarray, cell: tuple[int, int]) -> float:
    """The share of the values below this one, equal ones counted half."""
    kept = values[~np.isnan(values)]
    return ((kept < values[cell]).sum() + (kept == values[cell]).sum() / 2) / kept.size


def test_a_rank_is_the_share_of_patches_below_on_the_own_grid():
    photo = picture(112, 80)
    patches = torch.randn(5, 7, 48, generator=torch.Generator().manual_seed(0))
    patches[3:] = patches[0]  # equal ones
    pair = [make_pack(made(photo=photo, patches=patches)), make_pack(made(9, 13, photo=photo, seed=1))]
    queries = [asked(pair[0], 2, 3)]
    own, theirs = (pane_values(pair, {"pack": index}, queries) for index in (0, 1))
    ranks = pane_values(pair, {"pack": 0, "show": "rank", "other": 1}, queries)
    assert own.shape != theirs.shape
    for row, col in np.ndindex(5, 7):
        there = pixel_to_patch(pair[1].geometry, *patch_centre(pair[0].geometry, row, col))
        assert ranks[row, col] == pytest.approx(share(own, (row, col)) - share(theirs, there), abs=1e-6)


# Pictures


def test_a_photo_is_shown_as_it_is_and_so_is_a_map_that_nothing_asks_for(packs):
    photo = draw_pane(packs, {"pack": 0, "show": "photo"})
    np.testing.assert_array_equal(draw_pane(packs, {"pack": 0, "show": "similarity"}), photo)
    preview = np.asarray(Image.open(list_samples()[1].path).convert("RGB").resize(photo.shape[1::-1]))
    assert np.abs(photo.astype(int) - preview).mean() < 4


def test_a_map_lies_over_the_photo_with_its_query_outlined(looks, packs):
    query = asked(packs[0], 4, 6)
    style = {"limits": (-1.0, 1.0), "colormap": "magma", "opacity": 1.0}
    shown = draw_pane(packs, {"pack": 0}, [query], **style)
    canvas = Canvas(looks[0].photo.pixels, looks[0].features.geometry)
    expected = canvas.outline(canvas.heat(looks[0].similarity([(4, 6)]), **style), [(4, 6)], QUERY)
    assert shown.shape == expected.shape
    assert np.abs(shown.astype(int) - expected).mean() < 2  # the preview is a JPEG, the codes have 8 bits


def test_below_the_threshold_the_photo_is_dark(packs):
    queries = [asked(packs[0], 4, 6)]
    values = pane_values(packs, {"pack": 0}, queries)
    photo, plain, masked = (
        draw_pane(packs, {"pack": 0, "show": show}, queries, threshold=threshold).astype(int)
        for show, threshold in (("photo", None), ("similarity", None), ("similarity", 0.5))
    )
    width, height = list_samples()[1].width, list_samples()[1].height
    for row, col in np.argwhere(packs[0].valid & (np.abs(values - 0.5) > 0.01)).tolist():
        x, y = patch_centre(packs[0].geometry, row, col)
        place = round(y / height * photo.shape[0]), round(x / width * photo.shape[1])
        wanted = photo[place] * 105 / 255 if values[row, col] < 0.5 else plain[place]
        np.testing.assert_allclose(masked[place], wanted, atol=1)


def test_differences_have_limits_and_colours_of_their_own(packs):
    pair = [packs[0], packs[0]]
    queries = [asked(packs[0], 4, 6)]
    pane = {"pack": 0, "show": "difference", "other": 1}
    shown = draw_pane(pair, pane, queries, colormap="magma", limits=(0.0, 1.0), opacity=1.0)
    row, col = (int(side * share) for side, share in zip(shown.shape, (0.2, 0.8), strict=False))
    assert shown[row, col].min() > 240, "no difference is white, in the middle of blue, white and red"
    np.testing.assert_array_equal(shown, draw_pane(pair, pane, queries, opacity=1.0))


def test_principal_colours_are_those_of_the_packed_basis(looks, packs):
    shown = draw_pane(packs, {"pack": 0, "show": "pca"})
    rgb = to_rgb(looks[0].basis, looks[0].features.patches, valid=looks[0].valid)
    for row, col in ((2, 3), (5, 8), (9, 13)):
        x, y = patch_centre(packs[0].geometry, row, col)
        width, height = looks[0].photo.size
        place = round(y / height * shown.shape[0]), round(x / width * shown.shape[1])
        np.testing.assert_allclose(shown[place], rgb[row, col], atol=8)  # what 8 bits a channel do to a projection


# States


def test_every_check_lets_pass_what_a_page_writes(packs):
    whole = {
        "panes": [
            {"pack": 0, "show": "similarity", "other": None},
            {"pack": 1, "show": "swipe", "other": 0, "split": 0.4},
            {"pack": 0, "show": "similarity", "under": 1, "camera": {"x": 0.5, "y": 0.5, "zoom": 2.5}},
        ],
        "queries": [asked(packs[0], 1, 2), asked(packs[2], 1, 2, -1), {"image": None, "x": 0, "y": 0, "sign": 1}],
        "camera": {"x": 0.25, "y": 1, "zoom": 40},
        "limits": [-2, 2],
        "selection": [[0, 1, 2], [2, 0, 0]],
    }
    assert whole.keys() == CHECKS.keys()
    for name, value in whole.items():
        CHECKS[name](packs, value)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("panes", [{"show": "similarity"}], "'pack' of a pane is the number of a pack, 0 to 2, not None"),
        ("panes", [{"pack": 3}], "0 to 2, not 3"),
        ("panes", [{"pack": True}], "not True"),
        ("panes", [{"pack": 0, "under": -1}], "'under' of a pane"),
        ("panes", [{"pack": 0, "camera": {"x": 0.5, "y": 0.5, "zoom": 0}}], "'zoom': 1 to 40"),
        ("panes", [{"pack": 0, "show": "heat"}], "cannot show 'heat'; known: similarity, pca, photo"),
        ("panes", [{"pack": 0, "show": "rank"}], "compares with a second pack: give its number as 'other'"),
        ("panes", [{"pack": 0, "show": "swipe", "other": 2}], "compares packs of one picture, and 0 and 2 show two"),
        ("queries", [{"x": 1, "y": 2, "sign": 1}], "view.point = "),
        ("queries", [{"image": "a", "x": math.nan, "y": 2, "sign": 1}], "'x': pixel"),
        ("queries", [{"image": "a", "x": "1", "y": 2, "sign": 1}], "'x': pixel"),
        ("queries", [{"image": "a", "x": 1, "y": 2, "sign": 0}], "'sign': 1 or -1"),
        ("camera", {"x": 0.5, "y": 0.5}, "'zoom': 1 to 40"),
        ("camera", {"x": 0.5, "y": 1.5, "zoom": 2}, "'y': 0 to 1"),
        ("limits", [1, 1], "a low and a higher value"),
        ("selection", [[0, 1]], r"\[pack 0 to 2, row, column\], not \[0, 1\]"),
        ("selection", [[3, 0, 0]], "pack 0 to 2"),
        ("selection", [[0, 99, 0]], "row 99 is outside the grid"),
    ],
)
def test_a_state_that_cannot_be_is_refused_with_a_sentence(packs, name, value, sentence):
    with pytest.raises(ValueError, match=sentence):
        CHECKS[name](packs, value)


# Addresses


def record(packs: list[Pack], **state: Any) -> dict[str, Any]:
    return record_of(packs, state, dict.fromkeys(state))


def test_an_address_brings_back_the_record(packs):
    state = record(packs, queries=[asked(packs[0], 1, 2)], threshold=0.1 + 0.2, colormap="magma")
    address = encode_view(state)
    assert re.fullmatch("[A-Za-z0-9_-]+", address)
    assert decode_view(address) == decode_view(f"http://127.0.0.1:7860/?a=b#view={address}") == state


def test_a_record_holds_only_what_is_not_as_usual(packs):
    told = record_of(packs, {"opacity": 0.7, "smooth": True, "pack_ids": ["a"]}, {"opacity": 0.7, "smooth": False})
    assert told["state"] == {"smooth": True}
    assert [pack["id"] for pack in told["packs"]] == [pack.id for pack in packs]


def packed(text: str | bytes) -> str:
    packer = zlib.compressobj(9, wbits=-15)
    content = packer.compress(text if isinstance(text, bytes) else text.encode()) + packer.flush()
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


WANTED = {"id": "0", "picture": "1", "model": "m", "weights": None, "layer": 1, "norm": True, "size": 224}


@pytest.mark.parametrize(
    "address",
    [
        "",
        "#view=",
        "nothing of the kind",
        "\N{SNOWMAN}",
        "#view=%7B%7D",
        "#view=" + "A" * 4000,
        packed("{"),
        packed(b"\xff\xfe"),
        packed("[1, 2]"),
        packed("{}"),
        packed(json.dumps({"packs": [WANTED]})),
        packed(json.dumps({"packs": [WANTED], "state": []})),
        packed(json.dumps({"packs": [], "state": {}})),
        packed(json.dumps({"packs": WANTED, "state": {}})),
        packed(json.dumps({"packs": [{}], "state": {}})),
        packed(json.dumps({"packs": [WANTED | {"id": []}], "state": {}})),
        packed("[" * (MAX_ADDRESS - 8)),
        packed('{"packs":' * 50_000),
        packed(json.dumps({"packs": [WANTED], "state": {"colormap": "a" * MAX_ADDRESS}})),
    ],
)
def test_whatever_is_no_address_of_a_view_is_refused(address):
    with pytest.raises(ViewError, match="this address holds no view, or only a part of one: copy it again"):
        decode_view(address)


def test_every_part_of_an_address_is_refused_or_the_whole(packs):
    address = encode_view(record(packs[:1], queries=[asked(packs[0], 1, 2)]))
    for end in range(len(address) - 1):
        with pytest.raises(ViewError):
            decode_view(address[:end])


def test_a_bomb_is_not_inflated():
    bomb = packed(b'{"packs": "' + b" " * (64 << 20))
    tracemalloc.start()
    with pytest.raises(ViewError):
        decode_view(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * MAX_ADDRESS


def test_packs_are_found_in_packs_files_and_folders_in_the_order_of_the_record(packs, tmp_path):
    told = record(packs)
    (tmp_path / "folder").mkdir()
    files = [tmp_path / "b.dfp", tmp_path / "folder" / "c.dfp"]
    for pack, file in zip(packs[1:], files, strict=True):
        save_pack(pack, file)
    found = packs_of(told, [tmp_path / "folder", packs[0], str(files[0])])
    assert [pack.id for pack in found] == [pack.id for pack in packs]


def test_a_missing_pack_is_named_with_how_to_build_it_and_what_is_built_so_will_do(packs):
    told = record(packs[:2])
    with pytest.raises(ViewError, match=f"the pack {packs[1].id} is missing") as caught:
        packs_of(told, [packs[0], packs[2]])
    assert packs[0].id not in str(caught.value)
    digest, call = re.search(r"with the digest (\w+) by (make_pack\(.*\))$", str(caught.value)).groups()
    photo = next(photo for sample in list_samples() if (photo := open_image(sample.path)).digest == digest)
    names = {"make_pack": make_pack, "look_at": look_at, "load": load, "photo": photo}
    built = eval(call, names)  # what a reader would paste into a cell
    assert built.id != packs[1].id, "it has no basis"
    assert packs_of(told, [packs[0], built]) == [packs[0], built]


def test_a_pack_of_other_features_does_not_stand_in(backbone, looks, packs):
    told = record(packs[1:2])
    photo = looks[1].photo
    others = [
        packs[0],  # larger
        packs[2],  # another picture
        make_pack(look_at(photo, backbone, size=154, layer=3)),
        make_pack(look_at(photo, backbone, size=154, norm=False)),
        make_pack(looks[1], dims=32),
        make_pack(Look(photo, looks[1].features, WEIGHTS, ModelCard(WEIGHTS, "f" * 16))),
        make_pack(Look(photo, looks[1].features, WEIGHTS, ModelCard(WEIGHTS))),
    ]
    with pytest.raises(ViewError, match="missing"):
        packs_of(told, others)
