"""Checkpoints of a training run: dense features that decay, and the two ways they went on from there."""

from functools import cache
from typing import Any

import gradio as gr

from apps.explorer.controls import Controls, Refresh
from apps.explorer.viewer import Viewer
from apps.monitor.watch import Watch
from apps.views import PackFiles, build_view
from workbench.runs import SHIPPED

title = "Training"

STORIES = {
    "then anchored to an early teacher": ["nano_pretrain", "heal"],
    "then the same steps without an anchor": ["nano_pretrain", "heal_without"],
}
WORDS = (
    "<p>A small model trains from scratch: k-NN says that it sorts pictures better and better, and all the while its "
    "patches lose what set them apart (LDS, CDS). Pin one, then move through the checkpoints. "
    "<code>gramscope monitor RUNS</code> shows runs of yours like this, live while they train.</p>"
)


def build(viewer: Viewer, controls: Controls) -> Refresh:
    gr.HTML(WORDS)
    story = gr.Radio(list(STORIES), value=next(iter(STORIES)), label="4500 steps,", elem_id="training-story")
    view = build_view("training-view", entry="time.js", follows=False)
    files = PackFiles(kept=512)

    def show(name: str) -> Any:
        shown = watch().show(STORIES[name])
        return files.value(shown.packs, time=1, **shown.state)

    story.input(show, story, view, api_visibility="private", show_progress="hidden")
    return Refresh([story], [(show, [view])])


@cache
def watch() -> Watch:
    """The runs that come with the project; they are measured once."""
    return Watch(SHIPPED)
