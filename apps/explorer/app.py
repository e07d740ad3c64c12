"""Lays out the explorer and serves it: `gramscope app`."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported: nothing leaves the machine

import gradio as gr
from gradio import processing_utils, routes
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from apps.explorer.api import build_api
from apps.explorer.controls import Controls, Refresh, build_controls
from apps.explorer.tabs import TABS
from apps.explorer.viewer import Viewer, refusal

CSS = Path(__file__).with_name("style.css")
FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]  # of the visitor's machine: none is fetched
MONO = ["ui-monospace", "Menlo", "Consolas", "monospace"]
MAX_UPLOAD = "128mb"


async def _refuse_address(url: str, cache_dir: str) -> str:
    raise refusal(f"{url}: pictures are not fetched from the internet; download it first.")


async def _refuse_stream(url: str, request: Request) -> Response:
    return PlainTextResponse(f"{url}: nothing is fetched from the internet for a visitor.", 403)


# Gradio downloads whatever address stands in a request where a file should, and passes on what lies there.
processing_utils.async_ssrf_protected_download = _refuse_address
routes.secure_url_stream_response = _refuse_stream


def build(viewer: Viewer) -> gr.Blocks:
    """The page; loads no model and no photograph beyond the small ones it shows first."""
    with gr.Blocks(title="Gramscope", analytics_enabled=False) as page:
        gr.HTML(
            "<h1>Gramscope</h1><p>Look inside a self-supervised vision model: click a patch of a photograph and see "
            "what the model finds alike.</p>",
            elem_id="masthead",
        )
        controls = build_controls(viewer, page)
        active = gr.State(next(iter(TABS)))
        with gr.Tabs(elem_id="tabs"):
            for key, module in TABS.items():
                with gr.Tab(module.title, id=key) as tab:
                    refresh = module.build(viewer, controls)
                _wire(tab, key, active, controls, refresh)
        build_api(viewer)
    return page


def _wire(tab: gr.Tab, key: str, active: gr.State, controls: Controls, refresh: Refresh) -> None:
    """Draws the tab when it is opened and, while it is open, when a control changes."""

    def if_open(step: Callable[..., Any], count: int) -> Callable[..., Any]:
        # The progress parameter is how Gradio learns that this event may take a while; `Viewer.look` reports.
        def run(active: str, progress: gr.Progress = gr.Progress(), *inputs: Any) -> Any:  # noqa: B008
            return step(*inputs) if active == key else ([gr.skip()] * count if count > 1 else gr.skip())

        return run

    # "multiple" everywhere: "once" forgets what comes while an answer is under way, and "always_last", when several
    # functions hang on one event, sends that event to all of them again, whereupon they call one another for ever.
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal", "trigger_mode": "multiple"}
    quiet |= {"concurrency_limit": 1}  # and one after the other, or what was chosen last may be drawn first
    inputs = [active, *refresh.inputs]
    opened = tab.select(lambda: key, None, active, api_visibility="private", show_progress="hidden")
    chains = [opened, *controls.ready]
    triggers = [controls.layer.input, controls.size.input]  # not `select`, which the keyboard does not send
    for index, (step, outputs) in enumerate(refresh.steps):
        function = if_open(step, len(outputs))
        chains = [chain.success(function, inputs, outputs, **quiet) for chain in chains]
        if index == 0:
            chains.append(gr.on(triggers, function, inputs, outputs, **quiet))


def theme() -> gr.themes.Base:
    """Quiet greys and one blue, with the visitor's own fonts."""
    return gr.themes.Default(primary_hue="blue", neutral_hue="slate", radius_size="md", font=FONT, font_mono=MONO)


def serve(host: str, port: int, weights: str | None, open_browser: bool) -> None:
    """Serves the explorer until it is interrupted."""
    page = build(Viewer(weights))
    page.queue(default_concurrency_limit=2)  # as many extractions as a laptop has use for
    page.launch(
        server_name=host,
        server_port=port,
        inbrowser=open_browser,
        theme=theme(),
        css_paths=CSS,
        max_file_size=MAX_UPLOAD,
        ssr_mode=False,
        mcp_server=False,
        footer_links=["api", "settings"],
    )
