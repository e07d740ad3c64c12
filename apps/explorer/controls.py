"""The settings above the tabs, the strip of photographs below them, and how they are drawn: shared by tabs."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from apps.explorer.viewer import DEFAULT_SIZE, SIZES, Viewer
from core.models.published import PUBLISHED, UNKNOWN, Licence
from core.models.weights import Source
from workbench.draw import COLORMAPS
from workbench.images import Sample

LIMITS = {"0 to 1": (0.0, 1.0), "-1 to 1": (-1.0, 1.0), "-2 to 2": (-2.0, 2.0)}


Wire = Callable[[list[Any], list[Any]], list[Any]]  # inputs, outputs -> the events


@dataclass(frozen=True)
class Refresh:
    """How a tab draws itself anew: steps run one after the other, each from the same inputs to its own outputs."""

    inputs: list[Any]
    steps: list[tuple[Callable[..., Any], list[Any]]]


@dataclass(frozen=True)
class Controls:
    """Which weights, which layer, at which size: the inputs of nearly every callback."""

    model: gr.State  # the weights in place, which are the chosen ones once these are loaded
    layer: gr.Dropdown
    size: gr.Dropdown
    ready: list[Any]  # the events that succeed when weights are in place: the first ones, then chosen ones

    @property
    def all(self) -> list[Any]:
        return [self.model, self.layer, self.size]


def build_controls(viewer: Viewer, page: gr.Blocks) -> Controls:
    """The row above the tabs, with the licence of the chosen weights always in sight."""
    with gr.Row(elem_id="controls", equal_height=True):
        model = gr.Dropdown(viewer.models, value=viewer.default, label="Weights", scale=5, min_width=300)
        layer = gr.Dropdown([12], value=12, label="Layer", scale=1, min_width=90)  # `load` knows how many
        size = gr.Dropdown(list(SIZES), value=DEFAULT_SIZE, label="Input, long side", scale=2, min_width=120)
    licence = gr.HTML(licence_line(viewer.default), elem_id="licence")
    loaded = gr.State(viewer.default)

    def load(name: str) -> tuple[Any, str, str]:
        backbone = viewer.backbone(name)
        layers = gr.Dropdown(list(range(1, backbone.depth + 1)), value=backbone.depth)
        return layers, licence_line(name, backbone.source), name

    silent: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    opened = page.load(load, model, [layer, licence, loaded], **silent)
    picked = model.input(licence_line, model, licence, **silent)  # before anything is downloaded
    chosen = picked.then(load, model, [layer, licence, loaded], api_visibility="private")
    chosen.failure(lambda name: (name, licence_line(name)), loaded, [model, licence], **silent)
    return Controls(loaded, layer, size, [opened, chosen])


def licence_line(name: str, source: Source | None = None) -> str:
    """The licence of some weights, with a link to its text, as HTML; what a file says is known once it is loaded."""
    if name in PUBLISHED:
        licence = PUBLISHED[name].licence
    elif source is not None:
        licence = Licence(source.licence, source.licence_url, source.licence_notice)
    else:
        licence = UNKNOWN
    text = escape(licence.name)
    if licence.url:
        text = f'<a href="{escape(licence.url)}" target="_blank" rel="noopener">{text}</a>'
    return f"Licence of <b>{escape(Path(name).name)}</b>: {text} – {escape(licence.notice)}"


@dataclass(frozen=True)
class Drawing:
    """How a map is coloured."""

    opacity: gr.Slider
    colormap: gr.Dropdown
    limits: gr.Dropdown
    smooth: gr.Radio

    @property
    def all(self) -> list[Any]:
        return [self.opacity, self.colormap, self.limits, self.smooth]


def build_drawing() -> Drawing:
    """The drawing settings of a tab, folded away."""
    with gr.Accordion("Drawing", open=False), gr.Row():
        opacity = gr.Slider(
            0, 1, value=0.7, step=0.05, label="Opacity of the map", min_width=140, buttons=[], elem_classes="opacity"
        )
        colormap = gr.Dropdown(list(COLORMAPS), value="viridis", label="Colour map", min_width=120)
        limits = gr.Dropdown(list(LIMITS), value="0 to 1", label="Colour limits", min_width=120)
        smooth = gr.Radio([("patches", False), ("bilinear", True)], value=False, label="Between patches", min_width=140)
    return Drawing(opacity, colormap, limits, smooth)


def build_strip(samples: list[Sample], choose: Callable[..., Any], label: str, key: str) -> Wire:
    """The strip of example photographs with an upload button; returns the function that wires it.

    `choose(path, *inputs)` is called with the path of what was picked, the inputs being those given to `wire`.
    """
    with gr.Row(equal_height=False):
        gr.HTML(f"<h3>{label}</h3>")
        upload = gr.UploadButton(
            "Upload a photo", file_types=["image"], size="sm", elem_id=f"{key}-upload", scale=0, min_width=150
        )
    gallery = gr.Gallery(
        [(thumbnail(sample.path), sample.title) for sample in samples],
        label=label,
        show_label=False,
        container=False,
        columns=max(len(samples), 10),
        fit_columns=False,
        height=96,
        allow_preview=False,
        object_fit="cover",
        buttons=[],
        interactive=False,
        elem_id=f"{key}-strip",
        elem_classes="strip",
    )

    def pick(event: gr.SelectData, progress: gr.Progress = gr.Progress(), *inputs: Any) -> Any:  # noqa: B008
        return choose(str(samples[event.index].path), *inputs)

    def take(path: str, progress: gr.Progress = gr.Progress(), *inputs: Any) -> Any:  # noqa: B008
        return choose(path, *inputs)

    def wire(inputs: list[Any], outputs: list[Any]) -> list[Any]:
        told: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal", "trigger_mode": "multiple"}
        return [
            gallery.select(pick, inputs, outputs, **told),
            upload.upload(take, [upload, *inputs], outputs, **told),
        ]

    return wire


@lru_cache
def thumbnail(path: Path) -> Image.Image:
    """A small square-ish copy for the strip; the decoder skips what a small copy does not need."""
    with Image.open(path) as image:
        image.draft("RGB", (256, 256))
        small = image.convert("RGB")
    small.thumbnail((220, 220))
    return small
