"""A JupyterLab of the tests' own, in a real browser."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
KERNEL = "jupyterapp.shell.currentWidget.sessionContext.session?.kernel"
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyter-widgets/jupyterlab-manager/plugin": {"saveState": True},
}


@dataclass
class Lab:
    """A running JupyterLab with nothing of the person's own in it."""

    address: str
    folder: Path
    browser: Any

    def write(self, name: str, sources: list[str]) -> Path:
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        path = self.folder / "work" / name
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
        return path

    def set(self, name: str, **values: Any) -> None:
        path = self.folder / "config/lab/user-settings" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))

    def open(self, name: str, *, kernel: bool = True) -> "Notebook":
        page = self.browser.new_page(viewport={"width": 1280, "height": 1000})
        notebook = Notebook(page)
        page.goto(f"{self.address}/lab/tree/{name}?token=secret&reset")
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
        if kernel:
            page.wait_for_function(f"{KERNEL}?.status === 'idle'", timeout=60_000)
        return notebook


class Notebook:
    """A notebook that is open on a page."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.sent: list[Any] = []  # what the page tells kernels
        self.errors: list[str] = []
        self.elsewhere: list[str] = []
        page.on("websocket", lambda socket: socket.on("framesent", self._sent) if "/kernels/" in socket.url else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: None if "127.0.0.1" in request.url else self.elsewhere.append(request.url))

    def _sent(self, frame: Any) -> None:
        self.sent.append(frame)

    def kernel(self) -> Any:
        """What the page says of its kernel, None without one."""
        return self.page.evaluate(f"{KERNEL} ?? null")

    def command(self, name: str) -> None:
        self.page.evaluate("(name) => jupyterapp.commands.execute(name)", name)

    def run(self, index: int, *, wait: bool = True) -> str:
        """Runs a cell and returns what it says."""
        self.page.evaluate("(index) => { jupyterapp.shell.currentWidget.content.activeCellIndex = index; }", index)
        self.page.evaluate(f"""() => {{ const done = jupyterapp.commands.execute("notebook:run-cell");
                                        return {json.dumps(wait)} ? done : null; }}""")
        outputs = self.page.evaluate(
            "(index) => jupyterapp.shell.currentWidget.content.model.cells.get(index).toJSON().outputs", index
        )
        for output in outputs:
            assert output["output_type"] != "error" and "UsageError" not in output.get("text", ""), output
        return "".join(output.get("data", {}).get("text/plain", "") for output in outputs)

    def reads(self, words: str) -> None:
        """Waits until the view's read-out holds these words."""
        script = "(words) => document.querySelector('.gs-read')?.textContent.includes(words)"
        self.page.wait_for_function(script, arg=words, timeout=60_000)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, browser: Any) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("lab")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {name: str(folder / place) for name, place in [
        ("HOME", "home"), ("XDG_CONFIG_HOME", "home/.config"), ("IPYTHONDIR", "ipython"),
        ("JUPYTER_CONFIG_DIR", "config"), ("JUPYTER_DATA_DIR", "data"), ("JUPYTER_RUNTIME_DIR", "runtime"),
    ]}  # fmt: skip
    lab = Lab(f"http://127.0.0.1:{port}", folder, browser)
    (folder / "work").mkdir()
    for name, values in SETTINGS.items():
        lab.set(name, **values)
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser"),
        *("--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token=secret"),
        *(f"--ServerApp.root_dir={folder / 'work'}", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"),
    ]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            command, env=os.environ | own | {"PYTHONPATH": str(ROOT)}, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"{lab.address}/api", timeout=5)
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.2)
        yield lab
    finally:
        server.terminate()  # which ends its kernels, too
        server.wait(30)
