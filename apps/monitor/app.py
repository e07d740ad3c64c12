"""Lays out the monitor and serves it: `gramscope monitor RUNS`."""

import os
from html import escape
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported: nothing leaves the machine

import gradio as gr

from apps.explorer.app import CSS, theme
from apps.explorer.viewer import refusal
from apps.monitor import teacher
from apps.monitor.watch import Shown, Watch
from apps.views import PackFiles, build_view
from workbench.plots import run_curves
from workbench.scorecards import scorecard_html

EVERY = 5.0  # seconds between two looks at the folder
KEPT = 4096  # packs on the disk of the server: a hundred checkpoints of forty images


def build(watch: Watch) -> gr.Blocks:
    """The page; reads no run before somebody opens it."""
    files = PackFiles(kept=KEPT)
    with gr.Blocks(title="Gramscope monitor", analytics_enabled=False) as page:
        gr.HTML(
            "<h1>Gramscope monitor</h1><p>Watch dense features decay and heal over the checkpoints of a run; new ones "
            "appear while it trains.</p>",
            elem_id="masthead",
        )
        chosen = gr.Dropdown([], multiselect=True, label="Runs, one stage after the other", elem_id="runs")
        where = gr.HTML(elem_id="progress")
        seen = gr.State(())
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Checkpoints"):
                slider = build_view("slider", entry="time.js", follows=False)
            with gr.Tab("Gram lens"):
                lens = build_view("lens", entry="gram.js", follows=False)
            with gr.Tab("Scorecard"):
                card = gr.HTML(elem_id="scorecard")
            with gr.Tab("Gram teacher"):
                teacher.build(watch, chosen)
            with gr.Tab("Training"):
                loss = gr.Plot(show_label=False)
        views = [slider, lens, card, loss, seen, where]

        def tell(names: list[str], *, fresh: bool = True) -> list[Any]:
            """Everything that is shown of these runs. fresh: just chosen, so nobody has pinned a patch yet."""
            if not names:
                return [gr.skip()] * 4 + [(), "Choose a run."]
            try:
                shown, where_now = watch.show(names), watch.progress(names)
            except ValueError as error:
                return [gr.skip()] * 4 + [(), escape(str(error))]
            last = len(shown.series) - 1
            state = shown.state if fresh else {k: v for k, v in shown.state.items() if k != "queries"}
            return [
                files.value(shown.packs, time=last, **state),
                lens_of(files, shown),
                scorecard_html(shown.series),
                run_curves(watch.runs(names)),
                watch.signature(names),
                told(where_now),
            ]

        def first() -> list[Any]:
            names = watch.names
            start = watch.latest
            return [gr.Dropdown(choices=names, value=start), *tell(start)]

        def look(names: list[str], seen: tuple[Any, ...]) -> list[Any]:
            """What is new: nothing but the progress, most of the time."""
            try:
                signature = watch.signature(names)
            except ValueError as error:
                raise refusal(str(error)) from None
            if signature == tuple(map(tuple, seen)):
                return [gr.skip()] * 5 + [told(watch.progress(names))]
            return tell(names, fresh=False)

        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        page.load(first, None, [chosen, *views], **quiet)
        chosen.input(tell, chosen, views, **quiet)
        gr.Timer(EVERY).tick(look, [chosen, seen], views, **quiet)
    return page


def told(lines: str) -> str:
    """Lines of text for the page."""
    return "<br>".join(map(escape, lines.splitlines()))


def lens_of(files: PackFiles, shown: Shown) -> dict[str, Any]:
    """The Gram lens over all checkpoints of the first image."""
    packs = [row[0] for row in shown.table]
    titles = [moment.title for moment in shown.series.moments]
    return files.value(packs, titles=titles, pack=len(packs) - 1)


def serve(folder: Path, host: str, port: int, open_browser: bool) -> None:
    """Serves the monitor until it is interrupted."""
    page = build(Watch(folder))
    page.queue(default_concurrency_limit=2)
    page.launch(
        server_name=host,
        server_port=port,
        inbrowser=open_browser,
        theme=theme(),
        css_paths=CSS,
        ssr_mode=False,
        mcp_server=False,
        footer_links=["settings"],
    )
