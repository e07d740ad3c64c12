"""Named endpoints of the explorer, for `gradio_client`: the same answers without the page."""

from typing import Any

import gradio as gr

from apps.explorer.pictures import picture, served
from apps.explorer.viewer import DEFAULT_SIZE, SIZES, Viewer, plain_errors, refusal
from core.dense.similarity import top_k
from core.models.weights import PUBLISHED
from workbench.looks import Look


def build_api(viewer: Viewer) -> None:
    """Adds `/similarity`, `/pca` and `/models`, typed by components that the page does not show."""

    def look_at(photo: str | None, weights: str, layer: int | None, size: str) -> Look:
        if photo is None or layer is None:
            raise refusal("Give the path of a photo and the number of a layer.")
        return viewer.look(photo, weights, size=SIZES[size], layer=layer)

    def similarity(photo: str, row: int, column: int, weights: str, layer: int, size: str, k: int) -> tuple[Any, Any]:
        look = look_at(photo, weights, layer, size)
        if row is None or column is None or k is None:
            raise refusal("Give row, column and k as whole numbers.")
        with plain_errors():
            cosines = look.similarity([(row, column)])
            best = top_k(cosines, k, exclude=(row, column))
        answer = {
            "rows": look.features.geometry.rows,
            "columns": look.features.geometry.cols,
            "geometry": look.features.geometry.to_dict(),
            "cosine": [[None if value != value else round(value, 6) for value in line] for line in cosines.tolist()],
            "matches": [{"row": match.row, "column": match.col, "cosine": match.cosine} for match in best],
        }
        return served(look.canvas.heat(cosines), "png"), answer

    def pca(photo: str, weights: str, layer: int, size: str) -> tuple[Any, Any]:
        look = look_at(photo, weights, layer, size)
        return served(look.colors(), "png"), {"explained": look.basis.explained.tolist(), "basis": look.basis.source}

    def models() -> dict[str, Any]:
        names = [name for _, name in viewer.models]
        return {name: {"licence": PUBLISHED[name].licence.name} if name in PUBLISHED else {} for name in names}

    with gr.Row(visible=False):
        photo = gr.File(label="photo", type="filepath")
        row, column = gr.Number(0, label="row", precision=0), gr.Number(0, label="column", precision=0)
        weights = gr.Textbox(viewer.default, label="weights")
        layer = gr.Number(99, label="layer, from 1; beyond the last: the last", precision=0)
        size = gr.Dropdown(list(SIZES), value=DEFAULT_SIZE, label="size")
        k = gr.Number(5, label="k", precision=0)
        shown, answer = picture("api-picture", "picture"), gr.JSON(label="answer")
        gr.Button().click(
            similarity, [photo, row, column, weights, layer, size, k], [shown, answer], api_name="similarity",
            api_description="The cosine of every patch to the one at (row, column), as a picture and as numbers.",
        )  # fmt: skip
        gr.Button().click(
            pca, [photo, weights, layer, size], [shown, answer], api_name="pca",
            api_description="The first three principal components of the patches as colours.",
        )  # fmt: skip
        gr.Button().click(models, None, answer, api_name="models", api_description="The weights on offer.")
