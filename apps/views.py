"""Views on a page of Gradio: the modules that notebooks use, fed with files of this server."""

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from workbench import widgets
from workbench.looks import Look
from workbench.packs import Pack, make_pack, save_pack

MODULES = Path(widgets.__file__).parent
HOST = Path(__file__).with_name("view_host.js")
DRAWN_BY = [("this page", "page"), ("the server", "server")]
KEPT = 64  # pack files; those made longest ago go first


def build_view(elem_id: str, *, entry: str = "similarity.js", follows: bool = True, **state: Any) -> gr.HTML:
    """A view on the page; give it what `PackFiles.value` returns. One of them follows the address of the page.

    entry: the view's module in workbench/widgets.
    """
    told = {"MODULES": MODULES.as_posix(), "ENTRY": entry, "FOLLOWS": follows}
    constants = "".join(f"const {name} = {json.dumps(value)};\n" for name, value in told.items())
    gr.set_static_paths(sorted(MODULES.glob("*.js")))  # the page imports them as they are
    return gr.HTML(
        {"packs": [], "state": state}, html_template='<div class="gs-place"></div>', apply_default_css=False,
        js_on_load=constants + HOST.read_text(), elem_id=elem_id,
    )  # fmt: skip


class PackFiles:
    """Packs as files that the page may read, in ranges and without asking Python; the `kept` used last stay."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._files: OrderedDict[str, Path] = OrderedDict()
        self._contents: OrderedDict[Path, None] = OrderedDict()
        self._made: OrderedDict[tuple[int, ...], tuple[list[Look], Pack]] = OrderedDict()
        self._guard = threading.Lock()

    def of(self, look: Look, others: Sequence[Look] = ()) -> Pack:
        """The pack of a look, made once."""
        key = (id(look), *map(id, others))
        with self._guard:
            if key not in self._made:
                # The looks are kept with their pack, so that no other look gets their id.
                self._made[key] = ([look, *others], make_pack(look, others=others, basis=look.basis))
                while len(self._made) > 8:
                    self._made.popitem(last=False)
            return self._made[key][1]

    def value(self, packs: Sequence[Pack], **state: Any) -> dict[str, Any]:
        """What the view on the page is told: where its packs are, and the state to change."""
        with self._guard:
            return {"packs": [{"id": pack.id, "path": str(self._file(pack))} for pack in packs], "state": state}

    def blobs(self, contents: Mapping[str, bytes]) -> dict[str, str]:
        """Other bytes that a view reads by name, as files that the page may fetch; equal ones share a file."""
        return {name: str(self._content(content)) for name, content in contents.items()}

    def _content(self, content: bytes) -> Path:
        folder = Path(get_upload_folder()) / "packs"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{hashlib.sha256(content).hexdigest()[:32]}.bin"
        with self._guard:
            if not path.exists():
                path.write_bytes(content)
            self._contents[path] = None
            self._contents.move_to_end(path)
            while len(self._contents) > self._kept:
                self._contents.popitem(last=False)[0].unlink(missing_ok=True)
        return path

    def _file(self, pack: Pack) -> Path:
        if pack.id not in self._files or not self._files[pack.id].exists():
            folder = Path(get_upload_folder()) / "packs"
            folder.mkdir(parents=True, exist_ok=True)
            self._files[pack.id] = save_pack(pack, folder / f"{pack.id}.dfp")
        self._files.move_to_end(pack.id)
        while len(self._files) > self._kept:
            _, old = self._files.popitem(last=False)
            old.unlink(missing_ok=True)
        return self._files[pack.id]
