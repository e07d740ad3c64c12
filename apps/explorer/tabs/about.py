"""What is running here: the model, its licence, versions, and whom to thank for the photographs."""

import platform
from html import escape
from importlib.metadata import version

import gradio as gr

from apps.explorer.controls import Controls, Refresh, licence_line
from apps.explorer.viewer import Viewer
from core.models import count_parameters

title = "About"

PACKAGES = ("gramscope", "torch", "gradio", "numpy", "pillow", "plotly", "safetensors", "huggingface-hub")


def build(viewer: Viewer, controls: Controls) -> Refresh:
    model = gr.HTML(elem_id="about-model")
    gr.HTML(_versions() + _credits(viewer), elem_id="about-rest")
    return Refresh([controls.model], [(lambda name: _model(viewer, name), [model])])


def _model(viewer: Viewer, name: str) -> str:
    backbone = viewer.backbone(name)
    source = backbone.source
    cell = backbone.patch_size or backbone.output_stride
    rows = {
        "Weights": escape(source.name),
        "Architecture": f"{source.backbone or type(backbone).__name__}: {backbone.embed_dim} channels, "
        f"{backbone.depth} layers, {backbone.num_heads} heads, {cell} px patches, {backbone.num_registers} registers",
        "Parameters": f"{count_parameters(backbone):,}",
        "Origin": escape(source.origin),
        "SHA-256 of the file": f"<code>{source.sha256}</code>",
        "Layout of the file": source.layout,
        "Licence": licence_line(name, source),
    }
    return "<h2>The model</h2>" + _rows(rows)


def _versions() -> str:
    versions = {name: version(name) for name in PACKAGES} | {"Python": platform.python_version()}
    code = {"Gramscope's own code": "Apache-2.0. Weights and photographs have licences of their own."}
    return "<h2>Versions</h2>" + _rows(code | versions)


def _credits(viewer: Viewer) -> str:
    lines = "".join(
        f"<li>{escape(sample.title)}: {escape(sample.author)}, "
        f'<a href="{escape(sample.licence_url)}" target="_blank" rel="noopener">{escape(sample.licence)}</a>, '
        f"{escape(sample.source)}; {escape(sample.changes)}</li>"
        for sample in (*viewer.samples, *viewer.large_samples)
    )
    return f"<h2>Photographs</h2><ul>{lines}</ul>"


def _rows(rows: dict[str, str]) -> str:
    return "<table>" + "".join(f"<tr><th>{key}</th><td>{value}</td></tr>" for key, value in rows.items()) + "</table>"
