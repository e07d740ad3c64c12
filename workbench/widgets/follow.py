"""Following something through a clip as a notebook widget: marked, followed, corrected, taken home."""

import os
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import traitlets
from jaxtyping import Integer
from PIL import Image

from core.dense.follow import Followed, Rules, Vote
from core.dense.geometry import Cell
from workbench.clips import (
    Clip,
    answer,
    clip_blobs,
    clip_state,
    grown_mark,
    painted,
    read,
    result_blobs,
    result_state,
    rules_state,
    save_masks,
    save_video,
    written,
)
from workbench.widgets.host import PackWidget


class Cancelled(Exception):
    """Somebody pressed Cancel."""


class FollowView(PackWidget):
    """A clip to mark objects in and to follow them through, with every vote on record.

        view = FollowView(open_clip("dog.mp4", backbone))
        view.mark(0, mask)                 # or painted in the view; numbers of objects on the patch grid
        view.follow()                      # or by the button
        view.found.masks                   # (frames, rows, columns)
        view.votes(7, (12, 30))            # who voted for a patch, and how much
        view.save("dog.html")              # plays, hovers and shows votes without a kernel

    `marks` are {number of a frame: a digit a patch}; `rules` are those of `core.dense.follow.Rules`.
    """

    _entry = "follow.js"
    clip: Any = traitlets.Dict().tag(sync=True)
    result: Any = traitlets.Dict().tag(sync=True)
    marks: Any = traitlets.Dict().tag(sync=True)
    rules: Any = traitlets.Dict().tag(sync=True)
    frame = traitlets.Int(0, min=0).tag(sync=True)
    object = traitlets.Int(1, min=1, max=7).tag(sync=True)
    tool = traitlets.Enum(["brush", "box", "grow", "erase"], "brush").tag(sync=True)
    opacity = traitlets.Float(0.6, min=0, max=1).tag(sync=True)
    colors = traitlets.Bool(True).tag(sync=True)
    progress: Any = traitlets.Dict().tag(sync=True)
    told = traitlets.Unicode("").tag(sync=True)
    grown: Any = traitlets.Dict().tag(sync=True)
    made: Any = traitlets.Dict().tag(sync=True)
    asked: Any = traitlets.Dict().tag(sync=True)

    def __init__(self, clip: Clip, *, marks: Mapping[int, Integer[np.ndarray, "H W"]] | None = None, **state: Any):
        self.source = clip
        self.found: Followed | None = None
        self._stop = threading.Event()
        self._work: threading.Thread | None = None
        state.setdefault("rules", rules_state(Rules()))
        super().__init__(packs=[], blobs=clip_blobs(clip), clip=clip_state(clip), **state)
        for frame, mask in (marks or {}).items():
            self.mark(frame, mask)
        self.observe(self._act, "asked")

    def __repr__(self) -> str:
        return f"<FollowView of {self.source.name}: run the cell to bring it to life>"

    def mark(self, frame: int, mask: Integer[np.ndarray, "H W"] | Integer[torch.Tensor, "H W"]) -> None:
        """Marks a frame: numbers of objects on the grid of patches, 0 for none. ValueError for another grid."""
        digits = written(torch.as_tensor(mask))
        read(digits, self.source.geometry.rows, self.source.geometry.cols)
        self.marks = {**self.marks, str(frame): digits}

    def follow(self) -> Followed:
        """Carries the marks on from the first change; ValueError when nothing is marked."""
        self._stop.clear()
        try:
            self.found = answer(self.source, self.found, self.marks, self.rules, self._tell)
        finally:
            self.progress = {}
        self.blobs |= result_blobs(self.found)
        self.result = result_state(self.found, self.result.get("version", 0) + 1)
        return self.found

    def votes(self, frame: int, cell: Cell) -> list[Vote]:
        """Who voted for a patch, strongest first; ValueError before anything was followed."""
        if self.found is None:
            raise ValueError("nothing has been followed yet: view.follow()")
        return self.found.votes(frame, cell)

    def save_masks(self, path: str | os.PathLike[str]) -> Path:
        """A zip of PNGs with the numbers of objects, one a frame."""
        return save_masks(self.source, self._answered, Path(path))

    def save_video(self, path: str | os.PathLike[str]) -> Path:
        """An MP4 of the clip with the objects in their colours."""
        return save_video(self.source, self._answered, Path(path))

    def still(self) -> Image.Image:
        """The frame as the view shows it."""
        if self.found is None:
            return Image.fromarray(self.source.picture(self.frame))
        for number, picture in enumerate(painted(self.source, self.found)):
            if number == self.frame:
                return Image.fromarray(picture)
        raise AssertionError("frame is validated")

    @property
    def _answered(self) -> Followed:
        if self.found is None:
            raise ValueError("nothing has been followed yet: view.follow()")
        return self.found

    @traitlets.validate("frame")
    def _there(self, proposal: Any) -> int:
        if proposal.value >= len(self.source):
            raise traitlets.TraitError(f"the clip has frames 0 to {len(self.source) - 1}, not {proposal.value}")
        return proposal.value

    def _tell(self, done: int, total: int, what: str) -> None:
        if self._stop.is_set():
            raise Cancelled
        self.progress = {"done": done, "total": total, "what": f"following, {what}"}

    def _act(self, change: Any) -> None:
        """A button was pressed; what takes a while is done in a thread, so that Cancel is heard."""
        asked = change.new
        if asked.get("action") == "cancel":
            self._stop.set()
        elif self._work is None or not self._work.is_alive():
            self._work = threading.Thread(target=self._acted, args=(asked,), daemon=True)
            self._work.start()

    def _acted(self, asked: dict[str, Any]) -> None:
        try:
            match asked.get("action"):
                case "follow":
                    self.follow()
                case "grow":
                    mark = grown_mark(self.source, asked["frame"], tuple(asked["cell"]), float(asked["threshold"]))
                    self.grown = {"id": asked["id"], "frame": asked["frame"], "mark": mark}
                case "masks" | "video" as what:
                    name, content = taken_home(self.source, self._answered, what)
                    self.blobs["made"] = content
                    self.made = {"id": asked["id"], "name": name, "file": "made"}
            self.told = ""
        except Cancelled:
            self.told = "Cancelled; what was followed before is still there."
        except (ValueError, OSError) as error:
            self.told = str(error)


def taken_home(clip: Clip, found: Followed, what: str) -> tuple[str, bytes]:
    """Name and content of a file: "masks", PNGs in a zip, or "video", an MP4."""
    save, suffix = {"masks": (save_masks, "_masks.zip"), "video": (save_video, "_followed.mp4")}[what]
    with tempfile.TemporaryDirectory() as folder:
        path = save(clip, found, Path(folder) / "made")
        return f"{Path(clip.name).stem}{suffix}", path.read_bytes()
