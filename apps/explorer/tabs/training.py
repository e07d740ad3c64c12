"""Checkpoints of training runs: dense features that decay, two ways on from there, and one from scratch."""

from functools import cache
from typing import Any

import gradio as gr

from apps.explorer.controls import Controls, Refresh
from apps.explorer.viewer import Viewer
from apps.monitor.watch import Watch
from apps.views import PackFiles, build_view
from workbench.runs import SHIPPED, STORY

title = "Training"

STORIES = {
    "decays, then is anchored": list(STORY),
    "decays, then goes on without an anchor": ["dense", "decay", "heal_without"],
    "trains from scratch": ["nano_pretrain"],
}
WORDS = (
    "<p>A small model takes the patches of a better one, then trains on with DINO alone: k-NN says that it sorts "
    "pictures no worse, and all the while its patches lose what set them apart. Gram anchoring to the early checkpoint "
    "brings some of that back. Pin a patch, then move through the checkpoints. "
    "<code>gramscope monitor RUNS</code> shows runs of yours like this, live while they train.</p>"
)


def build(viewer: Viewer, controls: Controls) -> Refresh:
    gr.HTML(WORDS)
    story = gr.Radio(list(STORIES), value=next(iter(STORIES)), label="A model that", elem_id="training-story")
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
