"""The named endpoints give the numbers of the functions behind them, and sentences for mistakes."""

import socket

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from apps.explorer.app import build
from apps.explorer.viewer import Viewer
from core.dense.color import fit_basis, to_rgb
from core.dense.geometry import patch_centre
from core.dense.similarity import cosine_map
from core.models.weights import PUBLISHED, load_backbone
from workbench import extract, open_image
from workbench.images import list_samples

PHOTO = next(sample.path for sample in list_samples() if sample.path.name == "cat_chelsea.jpg")
WEIGHTS = "dinov2_vits14_saliency"


@pytest.fixture(scope="module")
def client(app: str) -> Client:
    return Client(app, verbose=False)


def test_similarity_gives_the_cosines_of_the_functions(client):
    picture, answer = client.predict(handle_file(str(PHOTO)), 5, 7, WEIGHTS, 12, "256 px", 3, api_name="/similarity")
    features = extract(load_backbone(WEIGHTS), open_image(PHOTO), size=256)
    expected = cosine_map(features.patches, [(5, 7)], valid=features.valid).numpy()
    given = np.array([[np.nan if value is None else value for value in line] for line in answer["cosine"]])
    # The app runs on its own kernels and packs its layers: 1e-4 is far below what a picture shows.
    np.testing.assert_allclose(given, expected, atol=1e-4)
    assert [match["cosine"] for match in answer["matches"]] == sorted(
        (match["cosine"] for match in answer["matches"]), reverse=True
    )
    assert open_image(picture).size == (1024, 681)


def test_pca_gives_the_colours_of_the_functions(client):
    picture, answer = client.predict(handle_file(str(PHOTO)), WEIGHTS, 12, "256 px", api_name="/pca")
    features = extract(load_backbone(WEIGHTS), open_image(PHOTO), size=256)
    basis = fit_basis(features.patches, valid=features.valid)
    np.testing.assert_allclose(answer["explained"], basis.explained.numpy(), atol=1e-4)
    expected = to_rgb(basis, features.patches).numpy().astype(int)
    pixels = open_image(picture).pixels
    for row, col in ((0, 0), (5, 7), (10, 16)):
        x, y = patch_centre(features.geometry, row, col)
        width, height = open_image(PHOTO).size
        shown = pixels[int(y / height * pixels.shape[0]), int(x / width * pixels.shape[1])].astype(int)
        assert np.abs(shown - expected[row, col]).max() <= 1


def test_models_names_every_weight_on_offer_with_its_licence(client):
    models = client.predict(api_name="/models")
    assert {name: entry["licence"] for name, entry in models.items()} == {
        name: entry.licence.name for name, entry in PUBLISHED.items()
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"row": 999}, "outside the 12x18 grid"),
        ({"weights": "/etc/passwd"}, "no weights called"),
        ({"layer": 0}, "Layers count from 1"),
        ({"k": -1}, "cannot be negative"),
        ({"row": None}, "as whole numbers"),
        ({"photo": None}, "path of a photo"),
        ({"photo": handle_file(__file__)}, "not a picture in a known format"),
        ({"photo": {"path": "http://127.0.0.1:9/cat.jpg", "meta": {"_type": "gradio.FileData"}}}, "not fetched"),
    ],
)
def test_mistakes_get_a_sentence(client, changes, words):
    inputs = {"photo": handle_file(str(PHOTO)), "row": 0, "column": 0, "weights": WEIGHTS, "layer": 12}
    inputs = inputs | {"size": "256 px", "k": 3} | changes
    with pytest.raises(AppError, match=words):
        client.predict(*inputs.values(), api_name="/similarity")


def test_files_of_the_server_are_not_read_for_a_caller():
    """A caller who only names a path, instead of sending a file, gets nothing, be it a picture or not.

    In a server of its own, for Gradio writes the attempt into the log.
    """
    page = build(Viewer())
    _, address, _ = page.launch(server_port=free_port(), prevent_thread_lock=True, quiet=True, inbrowser=False)
    try:
        for path in (str(PHOTO), "/etc/passwd"):
            photo = {"path": path, "meta": {"_type": "gradio.FileData"}}
            inputs = {"data": [photo, 0, 0, WEIGHTS, 12, "256 px", 3]}
            event = httpx.post(f"{address}gradio_api/call/similarity", json=inputs).json()["event_id"]
            answer = httpx.get(f"{address}gradio_api/call/similarity/{event}", timeout=30).text
            assert answer.startswith("event: error") and "cosine" not in answer
            assert httpx.get(f"{address}gradio_api/file={path}").status_code == 403
        passed_on = httpx.get(f"{address}gradio_api/file=https://example.org/cat.jpg")
        assert passed_on.status_code == 403 and "nothing is fetched" in passed_on.text
    finally:
        page.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
