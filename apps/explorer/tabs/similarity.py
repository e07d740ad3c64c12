"""Click a patch: what else in this photograph, and in a second one, does the model find alike?"""

from dataclasses import dataclass, replace
from typing import Any

import gradio as gr
import numpy as np

from apps.explorer.controls import LIMITS, Controls, Refresh, build_drawing, build_strip
from apps.explorer.pictures import picture, served
from apps.explorer.viewer import SIZES, Viewer, plain_canvas, refusal
from apps.views import DRAWN_BY, build_view
from core.dense.geometry import Point, patch_centre
from core.dense.reference import null_curves, standing
from core.dense.similarity import Cell, Match
from workbench.draw import legend
from workbench.looks import Look
from workbench.plots import cosine_by_distance, cosine_histogram

title = "Similarity"

START = (165.0, 105.0)  # the face of the cat in the first photograph
KEPT = 4  # panes that stay beside those of the two photos
MODES = [("ask anew", "new"), ("add to the query", "add"), ("subtract from it", "subtract")]


@dataclass(frozen=True)
class Chosen:
    """What one user looks at. Points are pixels of the photograph: they stay when size or weights change."""

    photo: str
    other: str
    queries: tuple[Point, ...]
    negatives: tuple[Point, ...] = ()
    kept: tuple[tuple[str, str, int, str], ...] = ()  # photo, weights, layer and size of panes that stay


def build(viewer: Viewer, controls: Controls) -> Refresh:
    first, second = viewer.samples[0], viewer.samples[1]
    first_view, second_view = (plain_canvas(viewer.photo(str(sample.path))).photo for sample in (first, second))
    start = Chosen(str(first.path), str(second.path), (START,))
    chosen = gr.State(start)
    with gr.Column() as place:
        view = build_view("similarity-view", queries=_queries(start, viewer.photo(start.photo).digest))
        with gr.Row():
            stay = gr.Button("Keep this map to compare", size="sm", scale=0, min_width=200, elem_id="similarity-keep")
            only = gr.Button("Only the two photos", size="sm", scale=0, min_width=160, elem_id="similarity-drop")
    with gr.Row(visible=False) as drawn:
        with gr.Column(scale=3, min_width=320):
            gr.HTML("<h3>Click a patch</h3>")
            map_image = picture("similarity-map", "The photograph under its similarity map", first_view)
            bar = gr.HTML(legend("viridis", (0, 1), "cosine"))
            readout = gr.HTML(elem_id="similarity-readout")
            with gr.Row(equal_height=False, elem_classes="ask"):
                mode = gr.Radio(MODES, value="new", label="A click will", container=False, scale=6, min_width=320)
                clear = gr.Button("Start over", size="sm", scale=1, min_width=100, elem_id="similarity-clear")
            with gr.Row(equal_height=False, elem_classes="ask"):
                row = gr.Number(label="Row", precision=0, scale=2, min_width=80)
                col = gr.Number(label="Column", precision=0, scale=2, min_width=80)
                go = gr.Button("Ask", size="sm", scale=1, min_width=100, elem_id="similarity-ask")
        with gr.Column(scale=2, min_width=320):
            gr.HTML("<h3>The same query in a second photo</h3>")
            other_image = picture("similarity-other", "Best matches in the second photograph", second_view)
            with gr.Tabs():
                with gr.Tab("Is this cosine high?"):
                    histogram = gr.Plot(show_label=False, container=False)
                with gr.Tab("How local?"):
                    distances = gr.Plot(show_label=False, container=False)
    with gr.Column(visible=False) as more:
        matches = gr.HTML(elem_id="similarity-matches")
        drawing = build_drawing()
    drawn_by = gr.Radio(DRAWN_BY, value="page", label="Who draws the map", elem_id="similarity-drawn-by")

    inputs = [chosen, drawn_by, *controls.all, *drawing.all]
    pictures = [map_image, other_image, bar, readout, matches, row, col]
    charts = [histogram, distances]

    def looks(chosen: Chosen, model: str, layer: int, size: str) -> tuple[Look, Look]:
        settings = {"size": SIZES[size], "layer": layer}
        return viewer.look(chosen.photo, model, **settings), viewer.look(chosen.other, model, **settings)

    def present(chosen: Chosen, drawn_by: str, model: str, layer: int, size: str, *_: Any, **state: Any) -> Any:
        if drawn_by != "page":
            return gr.skip()
        here, there = looks(chosen, model, layer, size)
        packs = [viewer.packs.of(here, [there]), viewer.packs.of(there, [here])]
        for photo, weights, number, side in chosen.kept:
            kept = viewer.look(photo, weights, layer=number, size=SIZES[side])
            if kept not in (here, there):
                packs.append(viewer.packs.of(kept))
        return viewer.packs.value(packs, **state)

    def keep(chosen: Chosen, drawn_by: str, model: str, layer: int, size: str, *style: Any) -> Any:
        kept = (chosen.photo, model, layer, size)
        chosen = replace(chosen, kept=(*(other for other in chosen.kept if other != kept), kept)[-KEPT:])
        gr.Info("This map stays. Choose another layer, size or weights, and both stand side by side.")
        return chosen, present(chosen, drawn_by, model, layer, size, panes=[])

    def drop(chosen: Chosen, *settings: Any) -> Any:
        chosen = replace(chosen, kept=())
        return chosen, present(chosen, *settings, panes=[])

    def draw_or_not(chosen: Chosen, drawn_by: str, *settings: Any) -> Any:
        return draw(chosen, *settings) if drawn_by == "server" else [gr.skip()] * len(pictures)

    def chart_or_not(chosen: Chosen, drawn_by: str, *settings: Any) -> Any:
        return chart(chosen, *settings) if drawn_by == "server" else [gr.skip()] * len(charts)

    def switch(view: dict[str, Any], chosen: Chosen, drawn_by: str, *settings: Any) -> Any:
        """The other way of drawing takes over what is asked; both know it as pixels."""
        digest = viewer.photo(chosen.photo).digest
        if drawn_by == "server":
            points = [(q["sign"], (q["x"], q["y"])) for q in view["state"].get("queries", []) if q["image"] == digest]
            asked = tuple(point for sign, point in points if sign > 0) or chosen.queries[:1]
            chosen = replace(chosen, queries=asked, negatives=tuple(point for sign, point in points if sign < 0))
        shown = [gr.update(visible=drawn_by == "page"), *[gr.update(visible=drawn_by == "server")] * 2]
        state: dict[str, Any] = {"queries": _queries(chosen, digest)}
        value: Any = present(chosen, drawn_by, *settings, **state)
        return *shown, chosen, value, *draw_or_not(chosen, drawn_by, *settings)

    def draw(
        chosen: Chosen, model: str, layer: int, size: str, opacity: float, colormap: str, limits: str, smooth: bool
    ) -> tuple[Any, ...]:
        here, there = looks(chosen, model, layer, size)
        queries, negatives = cells(here, chosen.queries), cells(here, chosen.negatives)
        options: dict[str, Any] = {"limits": LIMITS[limits], "colormap": colormap, "opacity": opacity, "smooth": smooth}
        cosines, across = here.similarity(queries, negatives), here.similarity_in(there, queries, negatives)
        best, best_across = here.matches(cosines, [*queries, *negatives]), there.matches(across)

        shown = here.picture(cosines, queries=queries, negatives=negatives, matches=best, **options)
        elsewhere = there.picture(across, matches=best_across, **options)
        words = "cosine" if not negatives else "cosine to the queries − to the subtracted"
        return (
            served(shown), served(elsewhere), legend(colormap, LIMITS[limits], words),
            _readout(here, chosen.queries[-1]), _table(here, best, best_across), *cells(here, chosen.queries[-1:])[0],
        )  # fmt: skip

    def chart(chosen: Chosen, model: str, layer: int, size: str, *_: Any) -> tuple[Any, ...]:
        here, there = looks(chosen, model, layer, size)
        queries, negatives = cells(here, chosen.queries), cells(here, chosen.negatives)
        cosines = here.similarity(queries, negatives)
        best = here.matches(cosines, queries, k=1)
        null = null_curves(here.unit, [there.unit], here.valid, others_valid=[there.valid])
        figure = cosine_histogram(cosines, null, mark=best[0].cosine if best else None, signed=bool(negatives))
        return figure, cosine_by_distance(null)

    def click(event: gr.SelectData, chosen: Chosen, mode: str, model: str, layer: int, size: str, *style: Any) -> Any:
        here, _ = looks(chosen, model, layer, size)
        point = here.canvas.pixel_at(*event.index)
        if point is None or here.cell_at(point) is None:
            return [gr.skip()] * (1 + len(pictures))
        chosen = _ask(chosen, point, mode)
        return chosen, *draw(chosen, model, layer, size, *style)

    def ask(chosen: Chosen, mode: str, row: int, col: int, model: str, layer: int, size: str, *style: Any) -> Any:
        here, _ = looks(chosen, model, layer, size)
        geometry = here.features.geometry
        if row is None or col is None or not (0 <= row < geometry.rows and 0 <= col < geometry.cols):
            raise refusal(
                f"There is no patch at row {row}, column {col}: rows go from 0 to {geometry.rows - 1}, columns "
                f"from 0 to {geometry.cols - 1} at this input size."
            )
        chosen = _ask(chosen, patch_centre(geometry, int(row), int(col)), mode)
        return chosen, *draw(chosen, model, layer, size, *style)

    def restart(chosen: Chosen, *settings: Any) -> Any:
        chosen = replace(chosen, queries=chosen.queries[-1:], negatives=())
        return chosen, *draw(chosen, *settings)

    def show(path: str, chosen: Chosen, *settings: Any) -> Any:
        photo = viewer.photo(path)
        chosen = Chosen(path, chosen.other, _middle(*photo.size), kept=chosen.kept)
        value = present(chosen, *settings, queries=_queries(chosen, photo.digest))
        return chosen, value, *draw_or_not(chosen, *settings)

    def compare(path: str, chosen: Chosen, *settings: Any) -> Any:
        viewer.photo(path)
        chosen = replace(chosen, other=path)
        return chosen, present(chosen, *settings), *draw_or_not(chosen, *settings)

    quick: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "trigger_mode": "multiple"}
    quick |= {"concurrency_limit": 1}  # one after the other, or the last click may be answered first
    outputs = [chosen, *pictures]
    settings = [*controls.all, *drawing.all]
    events = [
        # Every click: of those that come while one is answered, "always_last" sends the place of an earlier one.
        map_image.select(click, [chosen, mode, *settings], outputs, **quick),
        gr.on([go.click, row.submit, col.submit], ask, [chosen, mode, row, col, *settings], outputs, **quick),
        clear.click(restart, [chosen, *settings], outputs, **quick),
        drawn_by.input(switch, [view, *inputs], [place, drawn, more, chosen, view, *pictures], **quick),
        *build_strip(viewer.samples, show, "Look at another photo", "photo")(inputs, [chosen, view, *pictures]),
        *build_strip(viewer.samples, compare, "Compare with another photo", "other")(inputs, [chosen, view, *pictures]),
    ]
    stay.click(keep, inputs, [chosen, view], **quick)
    only.click(drop, inputs, [chosen, view], **quick)
    for event in events:
        event.success(chart_or_not, inputs, charts, **quick)
    last: dict[str, Any] = quick | {"trigger_mode": "always_last"}
    gr.on([part.input for part in drawing.all], draw, [chosen, *settings], pictures, **last)
    return Refresh(inputs, [(present, [view]), (draw_or_not, pictures), (chart_or_not, charts)])


def _queries(chosen: Chosen, digest: str) -> list[dict[str, Any]]:
    """What is asked, as the view on the page knows it."""
    points = [(1, point) for point in chosen.queries] + [(-1, point) for point in chosen.negatives]
    return [{"image": digest, "x": x, "y": y, "sign": sign} for sign, (x, y) in points]


def cells(look: Look, points: tuple[Point, ...]) -> list[Cell]:
    """The cells under these pixels, each once, in their order."""
    found = [look.cell_at(point) for point in points]
    return list(dict.fromkeys(cell for cell in found if cell is not None))


def _middle(width: int, height: int) -> tuple[Point]:
    return ((width * 0.5, height * 0.5),)


def _ask(chosen: Chosen, point: Point, mode: str) -> Chosen:
    if mode == "add":
        return replace(chosen, queries=(*chosen.queries, point))
    if mode == "subtract":
        return replace(chosen, negatives=(*chosen.negatives, point))
    return replace(chosen, queries=(point,), negatives=())


def _readout(look: Look, point: Point) -> str:
    geometry = look.features.geometry
    (row, col), (x, y) = cells(look, (point,))[0], point
    return (
        f"<b>Row {row}, column {col}</b> · pixel {x:.0f}, {y:.0f} · {geometry.rows} × {geometry.cols} patches of "
        f"{geometry.patch_size} px · layer {look.features.layer + 1}, after the final norm"
    )


def _table(look: Look, here: list[Match], there: list[Match]) -> str:
    """The best matches in words and numbers: the same as the boxes, for whoever cannot see them."""

    def line(index: int, match: Match) -> str:
        rank = standing(float(np.clip(match.cosine, -1, 1)), look.null.same_image)
        return (
            f"<tr><td>{index + 1}</td><td>{match.row}, {match.col}</td><td>{match.cosine:.3f}</td>"
            f"<td>{rank.z:+.1f}</td><td>{rank.percentile:.1f} %</td></tr>"
        )

    head = "<tr><th>#</th><th>row, column</th><th>cosine</th><th>z</th><th>above random pairs</th></tr>"
    parts = [("Most alike in this photo", here), ("In the second photo", there)]
    tables = "".join(
        f"<table><caption>{name}</caption>{head}{''.join(line(*pair) for pair in enumerate(matches))}</table>"
        for name, matches in parts
    )
    return f'<div class="matches">{tables}</div>'
