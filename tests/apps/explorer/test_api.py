"""The named endpoints give the numbers of the functions behind them, and sentences for mistakes."""

import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from core.dense.similarity import cosine_map
from core.models.weights import load_backbone
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


def test_pca_and_models_answer(client):
    picture, answer = client.predict(handle_file(str(PHOTO)), WEIGHTS, 12, "256 px", api_name="/pca")
    assert open_image(picture).size == (1024, 681) and 0.3 < sum(answer["explained"]) <= 1
    assert client.predict(api_name="/models")["dinov3_vits16"] == {"licence": "DINOv3 License"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"row": 999}, "outside the 12x18 grid"),
        ({"weights": "/etc/passwd"}, "no weights called"),
        ({"layer": 0}, "Layers count from 1"),
        ({"photo": {"path": "http://127.0.0.1:9/cat.jpg", "meta": {"_type": "gradio.FileData"}}}, "not fetched"),
    ],
)
def test_mistakes_get_a_sentence(client, changes, words):
    inputs = {"photo": handle_file(str(PHOTO)), "row": 0, "column": 0, "weights": WEIGHTS, "layer": 12}
    inputs = inputs | {"size": "256 px", "k": 3} | changes
    with pytest.raises(AppError, match=words):
        client.predict(*inputs.values(), api_name="/similarity")
