"""What views of packs share in a notebook: modules and bytes travel by message, only the state of a view is kept."""

import base64
import hashlib
import html
import io
import json
import math
import os
import re
import secrets
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import anywidget
import traitlets
from IPython.display import display
from PIL import Image

from workbench.packs import Pack

FOLDER = Path(__file__).parent
LOADER = (FOLDER / "loader.js").read_text()
STILL_PIXELS = 400_000  # of the picture that stays without a kernel: 730 x 548
STILL_BYTES = 20_000  # a notebook's file holds each of them, and a third more as base64


@cache
def modules(entry: str) -> tuple[tuple[str, str], ...]:
    """(name, source) of a view's module and of all it imports, each after those that it needs itself."""
    source = (FOLDER / entry).read_text()
    found: dict[str, str] = {}
    for other in re.findall(r'from\s*"\./([\w.]+)"', source):
        found |= dict(modules(other))
    return *found.items(), (entry, source)


class PackWidget(anywidget.AnyWidget):
    """A view over some packs. Subclasses name their module in `_entry` and add the traits of their state.

    Neither modules nor features are traits: those are written into the notebook's file, once a widget. The page asks
    for them by custom message, and gets at most 4 MB at a time.
    """

    _esm = LOADER
    _entry = ""
    _modules = traitlets.Unicode().tag(sync=True)  # names the modules: a page asks for equal ones once
    _still = traitlets.Unicode().tag(sync=True)  # names the picture that the live view takes the place of
    pack_ids = traitlets.List(traitlets.Unicode()).tag(sync=True)

    def __init__(self, *, packs: Sequence[Pack], blobs: dict[str, bytes] | None = None, **state: Any) -> None:
        self.packs = list(packs)
        self.blobs = dict(blobs or {})
        sources = json.dumps(modules(self._entry)).encode()
        super().__init__(
            _modules=hashlib.sha256(sources).hexdigest()[:16],
            _still=f"View {secrets.token_hex(4)}",
            pack_ids=[pack.id for pack in self.packs],
            **state,
        )
        self.on_msg(self._answer)

    def __repr__(self) -> str:
        """What stands in the view's place where nothing can draw it."""
        names = list(dict.fromkeys(str(pack.picture["name"]) for pack in self.packs))
        return f"<{type(self).__name__} of {', '.join(names)}: run the cell to bring it to life>"

    def _answer(self, _: Any, question: dict[str, Any], __: Any) -> None:
        """Modules, a range of a pack, or a blob: whatever the page asks for, or a sentence."""
        to = {name: question.get(name) for name in ("id", "view")}
        if question.get("kind") == "modules":
            sources = [{"name": name, "source": source} for name, source in modules(self._entry)]
            self.send(to | {"modules": sources})
            return
        try:
            self.send(to, [self._bytes(question)])
        except (ValueError, OSError) as error:
            self.send(to | {"error": str(error)})

    def _bytes(self, question: dict[str, Any]) -> bytes:
        match question:
            case {"kind": "blob", "name": str(name)} if name in self.blobs:
                return self.blobs[name]
            case {"kind": "read", "pack": str(wanted), "start": int(start), "end": int(end)}:
                for pack in self.packs:
                    if pack.id == wanted:
                        return pack.read(start, end)
                raise ValueError(f"this view has no pack {wanted}; give it to the widget's packs")
        raise ValueError(f"this view has no answer to {question}")

    @classmethod
    def state_names(cls) -> list[str]:
        """The synced traits that a view adds: what it shows, and all that an address may set."""
        inherited = PackWidget.class_trait_names(sync=True)
        return [name for name in cls.class_trait_names(sync=True) if name not in inherited and name[0] != "_"]

    @property
    def state(self) -> dict[str, Any]:
        """What the view shows, as JSON."""
        return {"pack_ids": list(self.pack_ids)} | {name: getattr(self, name) for name in self.state_names()}

    def still(self) -> Image.Image | None:
        """The view as a picture, for wherever nothing runs; None when there is nothing to draw."""
        return None

    def save(self, path: str | os.PathLike[str], title: str = "Gramscope") -> Path:
        """Writes the view as one HTML file that opens from disk, without a server and without a network."""
        path = Path(path)
        path.write_text(standalone(self._entry, self.state, self.packs, self.blobs, title), encoding="utf-8")
        return path

    def _ipython_display_(self) -> None:
        """The view, and before it the picture that stays when the notebook is opened without a kernel."""
        still = self.still()
        bundle = self._repr_mimebundle_()
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle or {}, {})
        if still is not None:
            named = f'class="gramscope-still" title="{self._still}" alt="A view of patch features"'
            figure = f'<img {named} src="{_url(still)}">'
            if _one_output_only():
                data = {**data, "text/html": figure}
            else:
                display({"text/html": figure}, raw=True)
        display(data, metadata=metadata, raw=True)


def standalone(
    entry: str, state: dict[str, Any], packs: Sequence[Pack], blobs: dict[str, bytes] | None = None, title: str = ""
) -> str:
    """A page that holds a view with everything it needs."""
    parts = {
        "modules": [{"name": name, "source": source} for name, source in modules(entry)],
        "state": state,
        "packs": {pack.id: base64.b64encode(pack.read(0, pack.size)).decode() for pack in packs},
        "blobs": {name: base64.b64encode(content).decode() for name, content in (blobs or {}).items()},
    }
    text = json.dumps(parts, separators=(",", ":")).replace("<", "\\u003c")  # no "</script>" inside a script
    page = (FOLDER / "standalone.html").read_text()
    filled = {"title": html.escape(title), "loader": LOADER.partition("const PART")[0], "parts": text}
    return re.sub(r"\{\{(\w+)\}\}", lambda match: filled[match[1]], page)


def _url(picture: Image.Image) -> str:
    """The picture as an address, at most STILL_BYTES large, so that a notebook of many views stays small."""
    fitting = min(1.0, math.sqrt(STILL_PIXELS / (picture.width * picture.height)))
    for shrunk, quality in ((1, 80), (1, 65), (1, 50), (0.7, 50), (0.5, 50), (0.3, 50)):
        size = [max(1, round(side * fitting * shrunk)) for side in picture.size]
        file = io.BytesIO()
        picture.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(file, "WEBP", quality=quality)
        if file.tell() <= STILL_BYTES:
            break
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def _one_output_only() -> bool:
    """Whether a live view cannot hide an output beside its own, as where each output has a frame of its own."""
    return "google.colab" in sys.modules or "VSCODE_PID" in os.environ or "marimo" in sys.modules
