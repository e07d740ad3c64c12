"""A large photograph: a coarse map at once that sharpens tile by tile, then clicks as quick as on a small one."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from apps.explorer.controls import LIMITS, Controls, Refresh, build_drawing, build_strip
from apps.explorer.pictures import picture, served
from apps.explorer.viewer import Viewer, plain_canvas, plain_errors
from apps.views import DRAWN_BY, build_view
from core.dense.cards import ModelCard, card_of
from core.dense.extract import Glimpse, extract_tiles
from core.dense.geometry import Box, Point, carried, pixel_to_patch
from core.dense.inputs import MAX_SIDE, picture_geometry
from workbench.draw import QUERY, Canvas, legend
from workbench.images import Photo
from workbench.looks import Look
from workbench.packs import Pack, pack_features

title = "4K"

TILES = {"512 px": 512, "768 px": 768, "1024 px": 1024}
WINDOW = 640  # pixels of the photograph in the magnified part


@dataclass(eq=False)
class Desk:
    """What one user has on the desk in this tab: the photo, the point asked about, and the looks so far.

    Unlike the other tabs' state it is changed in place: a click moves the point while tiles are still coming in.
    """

    photo: str
    point: Point
    look: Look | None = None  # the sharpest there is so far
    coarse: Look | None = None  # the whole photo at the size of one tile
    sharp: Bool[Tensor, "H W"] | None = None  # cells of `look` that tiles have covered
    coarse_pack: Pack | None = None  # for the view on the page
    pack: Pack | None = None
    turn: int = 0  # moves on when a run begins, is stopped or loses its photo: a run whose turn is over ends

    def similarity(self) -> Float[Tensor, "H W"]:
        """The map of the patch under the point, on the grid of `look`.

        A patch seen in a tile and one seen in the whole photo are not comparable: the coarse look answers until
        the point's own tile is there, and from then on for the cells that are still to come.
        """
        assert self.look is not None and self.coarse is not None and self.sharp is not None
        cell, coarse_cell = self.look.cell_at(self.point), self.coarse.cell_at(self.point)
        assert cell is not None and coarse_cell is not None
        if self.sharp.all():
            return self.look.similarity([cell])
        geometries = self.coarse.features.geometry, self.look.features.geometry
        coarse = torch.from_numpy(carried(self.coarse.similarity([coarse_cell]).numpy(), *geometries))
        return torch.where(self.sharp, self.look.similarity([cell]), coarse) if self.sharp[cell] else coarse


def build(viewer: Viewer, controls: Controls) -> Refresh:
    first = viewer.large_samples[0]
    desk = gr.State(Desk(str(first.path), _start(first.width, first.height)), time_to_live=3600)
    with gr.Row():
        with gr.Column(scale=3, min_width=320, visible=False) as place:
            view = build_view("large-view", follows=False)
        with gr.Column(scale=3, min_width=320) as drawn:
            gr.HTML("<h3>Press “Look closely”, then click anywhere</h3>")
            map_image = picture("large-map", "The large photograph under its similarity map")
            bar = gr.HTML(legend("viridis", (0, 1), "cosine"))
        with gr.Column(scale=2, min_width=320):
            with gr.Row():
                start = gr.Button("Look closely", variant="primary", elem_id="large-start", min_width=130)
                stop = gr.Button("Stop", elem_id="large-stop", min_width=80)
                tile = gr.Dropdown(list(TILES), value="768 px", label="Tile", min_width=110)
            state = gr.HTML(elem_id="large-state")
            with gr.Column() as magnified:
                gr.HTML("<h3>Around the click, magnified</h3>")
                part_image = picture("large-part", "The surroundings of the query patch at full resolution")
    with gr.Column(visible=False) as more:
        drawing = build_drawing()
    drawn_by = gr.Radio(DRAWN_BY, value="page", label="Who draws the map", elem_id="large-drawn-by")
    style = drawing.all
    pictures = [map_image, part_image, bar]
    sides = [place, drawn, magnified, more]

    def sides_of(desk: Desk, drawn_by: str) -> list[Any]:
        """Which columns are seen: the view once it has something to show, the server's pictures otherwise."""
        on_page = drawn_by == "page" and desk.look is not None
        return [gr.update(visible=shown) for shown in (on_page, not on_page, not on_page, drawn_by == "server")]

    def value_of(desk: Desk, **state: Any) -> Any:
        """What the view on the page is told: the coarse map and, over it, what is sharp so far."""
        if desk.coarse_pack is None:
            return gr.skip()
        packs = [pack for pack in (desk.coarse_pack, desk.pack) if pack]
        panes = [{"pack": 1, "show": "similarity", "under": 0}] if desk.pack else []
        return viewer.packs.value(packs, panes=panes, **state)

    def draw(desk: Desk, opacity: float, colormap: str, limits: str, smooth: bool) -> tuple[Any, ...]:
        if desk.look is None:
            photo = viewer.photo(desk.photo)
            whole = plain_canvas(photo)
            part = replace(whole, window=_window(photo.size, desk.point))
            return served(whole.photo), served(part.photo), gr.skip()
        look = desk.look
        cell = look.cell_at(desk.point)
        assert cell is not None
        cosines = desk.similarity()
        options: dict[str, Any] = {
            "limits": LIMITS[limits],
            "colormap": colormap,
            "opacity": opacity,
            "smooth": smooth,
        }
        part = replace(look.canvas, window=_window(look.photo.size, desk.point))
        return (
            served(look.canvas.outline(look.canvas.heat(cosines, **options), [cell], QUERY, ["query"])),
            served(part.outline(part.heat(cosines, **options), [cell], QUERY)),
            legend(colormap, LIMITS[limits], "cosine"),
        )

    def sharpen(
        desk: Desk, shown: dict[str, Any], drawn_by: str, model: str, layer: int, tile: str, *style: Any
    ) -> Iterator[tuple[Any, ...]]:
        if desk.look is not None and drawn_by == "page":
            desk.point = _asked(shown, desk)
        backbone = viewer.backbone(model)
        photo = viewer.photo(desk.photo)
        desk.turn += 1
        turn = desk.turn
        began = time.monotonic()
        index = min(layer, backbone.depth) - 1
        with plain_errors():
            geometry = picture_geometry(backbone, photo, size=min(MAX_SIDE, max(photo.size)), layer=index)
            near = pixel_to_patch(geometry, *desk.point)
            glimpses = extract_tiles(backbone, photo, geometry, layer=index, tile=TILES[tile], first=near)
        kept = [gr.skip()] * (len(pictures) + 1 + len(sides))
        yield desk, *kept, _progress(0, 1, "A first look at the whole photo …")
        canvas = Canvas(photo.pixels, geometry)
        card, packed, cost = card_of(backbone), began, 0.0
        desk.coarse_pack = desk.pack = None  # those of another layer, perhaps
        for glimpse in glimpses:
            look = Look(photo, glimpse.features(), model)
            look.__dict__["canvas"] = canvas  # the same for all: drawn once
            if desk.turn == turn:
                desk.look, desk.sharp = look, glimpse.sharp
                desk.coarse = desk.coarse if glimpse.done else Look(photo, glimpse.coarse, model)
                value, pictured = gr.skip(), [gr.skip()] * len(pictures)
                if drawn_by == "server":
                    pictured = list(draw(desk, *style))
                elif not glimpse.done:
                    desk.coarse_pack = pack_features(glimpse.coarse, card, photo)
                    value = value_of(desk, queries=[_query(photo, desk.point)])
                # Packing takes a second or two: never more than an eighth of the time that the tiles take.
                elif glimpse.done == glimpse.total or time.monotonic() - packed > max(8 * cost, 4):
                    start = time.monotonic()
                    desk.pack = _sharp_pack(look, glimpse.sharp, card)
                    value, packed = value_of(desk), time.monotonic()
                    cost = packed - start
            if desk.turn != turn:
                yield desk, *kept, gr.skip()  # the last words count once more at the end
                return
            seen = sides_of(desk, drawn_by) if not glimpse.done else [gr.skip()] * len(sides)
            yield desk, *pictured, value, *seen, _state(glimpse, look, time.monotonic() - began)

    def halt(desk: Desk, drawn_by: str) -> Any:
        desk.turn += 1
        if desk.look is None or desk.sharp is None:
            return gr.skip(), _progress(0, 1, "Not looked at yet.")
        share = float(desk.sharp.float().mean())
        if share == 1:
            return gr.skip(), gr.skip()
        value = packed_anew(desk) if drawn_by == "page" else gr.skip()  # with the tiles since the last packing
        return value, _progress(share, 1, f"Stopped: {share:.0%} of the photo is sharp.")

    def packed_anew(desk: Desk, **state: Any) -> Any:
        """What the view is told of all that is there now."""
        assert desk.look is not None and desk.coarse is not None and desk.sharp is not None
        card = card_of(viewer.backbone(desk.look.model))
        desk.coarse_pack = desk.coarse_pack or pack_features(desk.coarse.features, card, desk.look.photo)
        if desk.sharp.any():
            desk.pack = _sharp_pack(desk.look, desk.sharp, card)
        return value_of(desk, **state)

    def click(event: gr.SelectData, desk: Desk, *style: Any) -> Any:
        photo = viewer.photo(desk.photo)
        canvas = desk.look.canvas if desk.look else plain_canvas(photo)
        point = canvas.pixel_at(*event.index)
        if point is None or pixel_to_patch(canvas.geometry, *point) is None:
            return [gr.skip()] * len(pictures)
        desk.point = point
        if desk.look is None:
            gr.Info("The query will be here. “Look closely” begins around it.")
        return draw(desk, *style)

    def show(path: str, desk: Desk, drawn_by: str, *style: Any) -> Any:
        photo = viewer.photo(path)
        desk.turn += 1
        desk.photo, desk.point, desk.look = path, _start(*photo.size), None
        desk.coarse_pack = desk.pack = None
        told = _progress(0, 1, "Not looked at yet.")
        return desk, *draw(desk, *style), gr.skip(), *sides_of(desk, drawn_by), told

    def switch(shown: dict[str, Any], desk: Desk, drawn_by: str, *style: Any) -> Any:
        """The other way of drawing takes over the point, and the packs that are not made yet are made."""
        value, photo = gr.skip(), viewer.photo(desk.photo)
        if desk.look is not None and drawn_by == "server":
            desk.point = _asked(shown, desk)
        if desk.look is not None and drawn_by == "page":
            value = packed_anew(desk, queries=[_query(photo, desk.point)])
        seen = desk.look is None or drawn_by == "server"
        return desk, *(draw(desk, *style) if seen else [gr.skip()] * len(pictures)), value, *sides_of(desk, drawn_by)

    quick: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "trigger_mode": "multiple"}
    outputs = [desk, *pictures, view, *sides, state]  # the desk itself is the same one: telling keeps it from expiring
    # No `cancels`: Gradio ends a cancelled run by showing its last pictures again, over what came after them.
    start.click(sharpen, [desk, view, drawn_by, controls.model, controls.layer, tile, *style], outputs, **quick)
    stop.click(halt, [desk, drawn_by], [view, state], **quick)
    map_image.select(click, [desk, *style], pictures, concurrency_limit=1, **quick)  # in the order of the clicks
    gr.on([part.input for part in style], draw, [desk, *style], pictures, **(quick | {"trigger_mode": "always_last"}))
    wire = build_strip(viewer.large_samples, show, "Look at another large photo", "large")
    wire([desk, drawn_by, *style], outputs)
    drawn_by.input(switch, [view, desk, drawn_by, *style], outputs[:-1], **quick)
    return Refresh([desk, *style], [(draw, pictures)])


def _query(photo: Photo, point: Point) -> dict[str, Any]:
    return {"image": photo.digest, "x": point[0], "y": point[1], "sign": 1}


def _asked(shown: dict[str, Any], desk: Desk) -> Point:
    """The point that is pinned in the view on the page, or the one that the desk knows."""
    digest = desk.look.photo.digest if desk.look else ""
    pinned = [query for query in shown["state"].get("queries", []) if query["image"] == digest and query["sign"] > 0]
    return (pinned[0]["x"], pinned[0]["y"]) if pinned else desk.point


def _sharp_pack(look: Look, sharp: Bool[Tensor, "H W"], card: ModelCard) -> Pack:
    """The pack of the cells that tiles have covered; the others are zeros, which the view takes for not there yet."""
    growing = not bool(sharp.all())
    features = replace(look.features, patches=look.features.patches * sharp[..., None])
    return pack_features(features, card, look.photo, growing=growing, basis=None if growing else look.basis)


def _start(width: int, height: int) -> Point:
    """The first query: where a third of the way in meets a third of the way down, as subjects often do."""
    return width / 3, height / 3


def _window(size: tuple[int, int], point: Point) -> Box:
    """The part of the photograph around a point, moved inside where it would reach beyond the rim."""
    spans = []
    for length, place in zip(size, point, strict=True):
        side = min(WINDOW, length)
        start = min(max(round(place - side / 2), 0), length - side)
        spans.append((start, start + side))
    (left, right), (top, bottom) = spans
    return left, top, right, bottom


def _progress(done: float, total: int, words: str) -> str:
    share = done / total
    return (
        f'<div class="progress" role="progressbar" aria-valuemin="0" aria-valuemax="{total}" aria-valuenow="{done}">'
        f'<i style="width:{share:.1%}"></i></div><p>{words}</p>'
    )


def _state(glimpse: Glimpse, look: Look, seconds: float) -> str:
    geometry, seam = look.features.geometry, look.features.seam
    grid = f"{geometry.rows} × {geometry.cols} patches of {geometry.patch_size} px"
    if glimpse.done < glimpse.total:
        words = (
            f"{glimpse.done} of {glimpse.total} tiles are sharp after {seconds:.0f} s; click already, or stop. {grid}."
        )
    else:
        words = f"<b>All {glimpse.total} tiles in {seconds:.0f} s.</b> {grid}."
    if seam is not None and seam.tiles > 1:
        words += (
            f" Where tiles overlap they disagree by {seam.mean:.3f} on average and {seam.worst:.2f} at worst "
            "(1 − cosine): edges fainter than that may be the tiling's."
        )
    return _progress(glimpse.done, glimpse.total, words)
