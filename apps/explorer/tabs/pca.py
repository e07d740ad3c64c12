"""The three directions in which a photograph's patches differ most, as red, green and blue."""

from dataclasses import dataclass, replace
from html import escape
from typing import Any

import gradio as gr

from apps.explorer.controls import Controls, Refresh, build_strip
from apps.explorer.pictures import picture, served
from apps.explorer.viewer import SIZES, Viewer, plain_canvas, plain_errors
from core.dense.color import ColorBasis, align, fit_basis, foreground
from workbench.looks import Look

title = "PCA"


@dataclass(frozen=True)
class Lock:
    """Frozen colours: the basis, and the look it was fitted on."""

    basis: ColorBasis
    look: Look


@dataclass(frozen=True)
class Chosen:
    """What one user looks at in this tab."""

    photo: str
    lock: Lock | None = None
    lock_photo: str = ""


def build(viewer: Viewer, controls: Controls) -> Refresh:
    first = viewer.samples[0]
    chosen = gr.State(Chosen(str(first.path)))
    with gr.Row():
        with gr.Column(min_width=320):
            gr.HTML("<h3>Photo</h3>")
            photo_image = picture("pca-photo", "The photograph", plain_canvas(viewer.photo(str(first.path))).photo)
        with gr.Column(min_width=320):
            gr.HTML("<h3>First three principal components</h3>")
            map_image = picture("pca-map", "The photograph's patches coloured by their principal components")
    with gr.Row(equal_height=False):
        locked = gr.Checkbox(
            False,
            label="Lock the colours",
            info="Other photos, layers and weights keep these colours.",
            elem_id="pca-lock",
            min_width=240,
        )
        only = gr.Checkbox(
            False,
            label="Foreground only",
            info="Fit on the subject and hide the rest.",
            elem_id="pca-foreground",
            min_width=240,
        )
        smooth = gr.Radio([("patches", False), ("bilinear", True)], value=False, label="Between patches", min_width=240)
    told = gr.HTML(elem_id="pca-told")

    inputs = [chosen, *controls.all, only, smooth]
    outputs = [photo_image, map_image, told]

    def draw(chosen: Chosen, model: str, layer: int, size: str, only: bool, smooth: bool) -> tuple[Any, ...]:
        look = viewer.look(chosen.photo, model, size=SIZES[size], layer=layer)
        subject = foreground(look.features.patches, valid=look.valid) if only else look.valid
        note = ""
        if chosen.lock is None:
            basis, note = _own_basis(look, only), "Colours fitted on this photo."
        else:
            basis, note = _locked_basis(chosen, viewer.look(chosen.lock_photo, model, size=SIZES[size], layer=layer))
        colors = look.colors(basis, hidden=~subject, smooth=smooth)
        return served(look.canvas.photo), served(colors, "png"), _told(basis, note)

    def lock(on: bool, chosen: Chosen, model: str, layer: int, size: str, only: bool, smooth: bool) -> Any:
        frozen = None
        if on:
            look = viewer.look(chosen.photo, model, size=SIZES[size], layer=layer)
            frozen = Lock(_own_basis(look, only), look)
        chosen = replace(chosen, lock=frozen, lock_photo=chosen.photo if on else "")
        return chosen, *draw(chosen, model, layer, size, only, smooth)

    def show(path: str, chosen: Chosen, *settings: Any) -> Any:
        viewer.photo(path)
        chosen = replace(chosen, photo=path)
        return chosen, *draw(chosen, *settings)

    quick: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "trigger_mode": "multiple"}
    locked.input(lock, [locked, *inputs], [chosen, *outputs], **quick)
    gr.on([only.input, smooth.input], draw, inputs, outputs, **quick)
    build_strip(viewer.samples, show, "Look at another photo", "pca")(inputs, [chosen, *outputs])
    return Refresh(inputs, [(draw, outputs)])


def _own_basis(look: Look, only: bool) -> ColorBasis:
    """The look's own basis, fitted on its foreground if asked, and on everything when there is none to speak of."""
    if not only:
        return look.basis
    subject = foreground(look.features.patches, valid=look.valid)
    if int(subject.sum()) < 8:
        return look.basis
    return fit_basis(look.features.patches, valid=look.valid, foreground=subject)


def _locked_basis(chosen: Chosen, look: Look) -> tuple[ColorBasis, str]:
    """The frozen basis, or for other features one that is turned to agree with it on the photo of the lock."""
    assert chosen.lock is not None
    then = chosen.lock.look
    name = escape(then.photo.name)
    kinds = [(seen.model, seen.features.layer, seen.features.geometry) for seen in (look, then)]
    if kinds[0] == kinds[1]:
        return chosen.lock.basis, f"Colours locked on “{name}”."
    if look.features.patches.shape[:2] != then.features.patches.shape[:2]:
        return look.basis, (
            "The locked colours belong to a grid of another size, so they could not be carried over: these are fitted "
            f"anew on “{name}”."
        )
    with plain_errors():
        turned, residual = align(
            look.basis, look.features.patches, chosen.lock.basis, then.features.patches, valid=look.valid
        )
    return turned, (
        f"Other features than those the colours were locked on: refitted on “{name}” and turned to agree "
        f"(orthogonal Procrustes, residual {residual:.0%})."
    )


def _told(basis: ColorBasis, note: str) -> str:
    names = ("red", "green", "blue")
    bars = "".join(
        f'<div class="share"><span>{name}</span><div><i style="width:{share:.1%}; background:{name}"></i></div>'
        f"<span>{share:.1%}</span><span>{low:+.1f} to {high:+.1f}</span></div>"
        for name, share, low, high in zip(
            names, basis.explained.tolist(), basis.low.tolist(), basis.high.tolist(), strict=True
        )
    )
    total = float(basis.explained.sum())
    return (
        f"<p>{note}</p><p>The three components explain <b>{total:.1%}</b> of the variance; beside each its share "
        f"and the scores at which its colour is dark and full (1st and 99th percentile of the fit).</p>{bars}"
    )
