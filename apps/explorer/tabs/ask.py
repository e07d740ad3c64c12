"""Type a phrase: where is it, and which photograph shows it best? The page compares, the server reads phrases."""

import threading
from collections import OrderedDict
from functools import cached_property
from typing import Any

import gradio as gr

from apps.explorer.controls import Controls, Refresh
from apps.explorer.viewer import SIZES, Viewer, plain_errors, refusal
from apps.views import build_view
from workbench.ask import Asked, Asker, answers, ask_about, checked_phrases, load_asker, model_state

title = "Ask"

START = [
    {"text": "an animal", "role": "ask"},
    {"text": "a rocky hill", "role": "ask"},
    {"text": "the sky", "role": "contrast"},
]
SHOWN = ("cat_bengal", "two_dogs", "sunflower_2", "mountains_sheep", "coffee_cup", "wine_and_drum")  # to begin with
MOST = 12  # photographs
KEPT = 48  # photographs that were looked at


class Reader:
    """The text model, loaded when first asked for, and the photographs that it has looked at."""

    def __init__(self, viewer: Viewer) -> None:
        self.viewer = viewer
        self._seen: OrderedDict[tuple[str, int], Asked] = OrderedDict()
        self._guard = threading.Lock()

    @cached_property
    def asker(self) -> Asker:
        return load_asker()

    def of(self, paths: list[str], size: str) -> list[Asked]:
        """These photographs, each looked at once a size."""
        found = []
        with self._guard, plain_errors():
            for path in paths:
                photo = self.viewer.photo(path)
                key = (photo.digest, SIZES[size])
                if key not in self._seen:
                    self._seen[key] = ask_about(self.asker, [photo], size=SIZES[size])[0]
                self._seen.move_to_end(key)
                found.append(self._seen[key])
            while len(self._seen) > max(KEPT, len(paths)):
                self._seen.popitem(last=False)
        return found


def build(viewer: Viewer, controls: Controls) -> Refresh:
    reader = Reader(viewer)
    first = [str(sample.path) for name in SHOWN for sample in viewer.samples if sample.path.stem == name]
    paths = gr.State(first)
    view = build_view("ask-view", entry="ask.js", follows=False, phrases=START)
    with gr.Row(equal_height=False):
        gr.HTML(
            "<p>A text model has a backbone of its own: the weights and the layer above do not matter here, the size "
            "does.</p>",
            elem_id="ask-note",
        )
        upload = gr.UploadButton(
            "Add a photo", file_types=["image"], size="sm", elem_id="ask-upload", scale=0, min_width=150
        )
    inputs = [paths, view, controls.size]

    def present(paths: list[str], shown: dict[str, Any], size: str) -> Any:
        return told(paths, shown["state"].get("phrases", START), size)

    def told(paths: list[str], phrases: list[dict[str, str]], size: str, **state: Any) -> Any:
        """Photographs and phrases as they are now."""
        try:
            asked = reader.of(paths, size)
            known, blobs = answers(reader.asker, checked_phrases(phrases), asked)
        except (ValueError, ModuleNotFoundError, FileNotFoundError) as error:
            raise refusal(str(error)) from None
        value = viewer.packs.value(
            [photo.pack for photo in asked], model=model_state(reader.asker), answers=known, **state
        )
        return value | {"blobs": viewer.packs.blobs(blobs)}

    def take(path: str, paths: list[str], shown: dict[str, Any], size: str) -> Any:
        viewer.photo(path)
        rest = [other for other in paths if other != path]
        paths = [*rest[-(MOST - 1) :], path]
        phrases = shown["state"].get("phrases", START)
        return paths, told(paths, phrases, size, photo=len(paths) - 1)

    def act(paths: list[str], size: str, event: gr.EventData) -> Any:
        """A phrase was added or taken away on the page."""
        return told(paths, list(event.phrases), size)

    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "trigger_mode": "multiple"}
    quiet |= {"concurrency_limit": 1}
    view.submit(act, [paths, controls.size], view, **quiet)
    upload.upload(take, [upload, *inputs], [paths, view], **quiet | {"show_progress": "minimal"})
    return Refresh(inputs, [(present, [view])])
