"""A clip in which something is marked and followed; the page plays and shows votes, the server looks and follows."""

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from html import escape
from typing import Any, NamedTuple

import gradio as gr

from apps.explorer.controls import Controls, Refresh
from apps.explorer.viewer import SIZES, Viewer, plain_errors, refusal
from apps.views import build_view
from core.dense.extract import Progress
from core.dense.follow import Followed, Rules
from workbench.clips import (
    Clip,
    answer,
    clip_blobs,
    clip_state,
    grown_mark,
    list_clips,
    open_clip,
    result_blobs,
    result_state,
    rules_state,
)
from workbench.widgets.follow import Cancelled, taken_home

title = "Follow"

EVERY = 0.3  # seconds between two words on how far it is
FRESH: dict[str, Any] = {"marks": {}, "result": {}, "grown": {}, "made": {}, "progress": {}, "told": "", "frame": 0}


class Seen(NamedTuple):
    """Which clip it is, and who looks at it how."""

    path: str
    model: str
    layer: int
    size: str


class Desk:
    """One user's clip and what was followed in it; changed in place, so that Cancel reaches what is under way."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.clip: Clip | None = None
        self.seen: Seen | None = None  # what the clip is of
        self.found: Followed | None = None
        self.version = 0
        self.busy = threading.Lock()
        self.stop = threading.Event()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Desk":
        return Desk(self.path)  # as each visitor begins: a lock cannot be copied


def build(viewer: Viewer, controls: Controls) -> Refresh:
    clips = list_clips()
    desk = gr.State(Desk(str(clips[0].path)), time_to_live=3600)
    view = build_view("follow-view", entry="follow.js", follows=False, rules=rules_state(Rules()))
    with gr.Row(equal_height=False):
        gr.HTML(f"<p>{escape(clips[0].credit)}</p>", elem_id="follow-credit")
        upload = gr.UploadButton(
            "Upload a video", file_types=["video"], size="sm", elem_id="follow-upload", scale=0, min_width=150
        )
    inputs = [desk, *controls.all]

    def open_it(seen: Seen, look: bool, progress: Progress | None = None) -> Clip:
        backbone = viewer.backbone(seen.model)
        index = min(seen.layer, backbone.depth) - 1
        return open_clip(seen.path, backbone, size=SIZES[seen.size], layer=index, look=look, progress=progress)

    def present(desk: Desk, model: str, layer: int, size: str) -> Any:
        """The clip as it is, before any model looks; what is on the desk already stays as the visitor left it."""
        wanted = Seen(desk.path, model, layer, size)
        if desk.seen == wanted:
            return gr.skip()
        with plain_errors():
            clip = open_it(wanted, look=False)
        desk.stop.set()  # of what is under way for the former clip
        desk.clip, desk.seen, desk.found = clip, wanted, None
        return value(clip, **FRESH)

    def take(path: str, desk: Desk, model: str, layer: int, size: str) -> Any:
        former, desk.path = desk.path, path
        try:
            return present(desk, model, layer, size)
        except gr.Error:
            desk.path = former  # nothing is lost
            raise

    def value(clip: Clip, **state: Any) -> Any:
        return {
            "packs": [],
            "blobs": viewer.packs.blobs(clip_blobs(clip)),
            "state": {"clip": clip_state(clip), **state},
        }

    def told(blobs: dict[str, bytes] | None = None, **state: Any) -> Any:
        return {"packs": [], "blobs": viewer.packs.blobs(blobs or {}), "state": state}

    def act(desk: Desk, event: gr.EventData) -> Iterator[Any]:
        """What the page asks for; words on how far it is come first."""
        asked, clip = dict(event.asked), desk.clip
        if asked.get("action") == "cancel":
            desk.stop.set()
        if asked.get("action") == "cancel" or clip is None:
            return
        if not desk.busy.acquire(blocking=False):
            return
        try:
            desk.stop.clear()
            yield from acted(desk, clip, asked, dict(event.marks), dict(event.rules))
        except Cancelled:
            yield told(progress={}, told="Cancelled; what was followed before is still there.")
        except (ValueError, KeyError, TypeError) as error:
            yield told(progress={})
            raise refusal(str(error)) from None
        finally:
            desk.busy.release()

    def acted(desk: Desk, clip: Clip, asked: dict[str, Any], marks: Any, rules: Any) -> Iterator[Any]:
        action = asked["action"]
        if action in ("follow", "grow") and clip.features is None:
            if action == "follow" and not marks:
                raise ValueError("nothing is marked: mark an object in one of the frames first")
            seen = desk.seen
            assert seen is not None
            clip = yield from watched(desk, "the model looks at", lambda tell: open_it(seen, True, tell), len(clip))
            desk.clip = clip
            yield value(clip, progress={}, told="")
        if action == "follow":
            desk.found = yield from watched(
                desk, "following,", lambda tell: answer(clip, desk.found, marks, rules, tell), len(clip)
            )
            desk.version += 1
            yield told(result_blobs(desk.found), result=result_state(desk.found, desk.version), progress={}, told="")
        elif action == "grow":
            mark = grown_mark(clip, int(asked["frame"]), tuple(asked["cell"]), float(asked["threshold"]))
            yield told(grown={"id": asked["id"], "frame": asked["frame"], "mark": mark}, told="")
        elif action in ("masks", "video") and desk.found is not None:
            name, content = taken_home(clip, desk.found, action)
            yield told({"made": content}, made={"id": asked["id"], "name": name, "file": "made"})

    def watched(desk: Desk, what: str, work: Callable[[Progress], Any], frames: int) -> Generator[Any, None, Any]:
        """The work's result; on the way what the page is told of it."""
        said: queue.Queue[tuple[str, Any]] = queue.Queue()

        def tell(done: int, total: int, unit: str) -> None:
            if desk.stop.is_set():
                raise Cancelled
            said.put(("progress", {"done": done, "total": min(total, frames), "what": f"{what} {unit}"}))

        def run() -> None:
            try:
                said.put(("result", work(tell)))
            except BaseException as error:
                said.put(("error", error))

        threading.Thread(target=run, daemon=True).start()
        yield told(progress={"done": 0, "total": frames, "what": f"{what} frames"}, told="")
        while True:
            kind, content = said.get()
            while kind == "progress" and not said.empty():  # only the last word counts
                kind, content = said.get()
            if kind == "error":
                raise content
            if kind == "result":
                return content
            yield told(progress=content)
            desk.stop.wait(EVERY)

    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "trigger_mode": "multiple"}
    view.submit(act, desk, view, concurrency_limit=8, **quiet)  # Cancel has to come through
    upload.upload(take, [upload, *inputs], view, **quiet | {"show_progress": "minimal"})
    return Refresh(inputs, [(present, [view])])
