"""A run that trains somewhere, as a live card in a notebook."""

import threading
from pathlib import Path
from typing import Any

import traitlets

from cluster import submissions
from core.run_folder import new_folder
from workbench.follow import report, sentence
from workbench.launch import fork, go_on, launch
from workbench.widgets.host import PackWidget

EVERY = 2.0  # seconds between two looks at the run's folder


class RunCard(PackWidget):
    """How a run stands, its curves and its probe maps as they appear; cancel, requeue, fork from a step.

        card = RunCard("runs/nano")      # of any run, submitted from here or elsewhere
        card.report                      # what it shows, see workbench/follow.py
        card.stop()                      # no longer live; so when the run is over, by itself

    All it knows lies in the run's folder: another kernel, or another machine, shows the same.
    """

    _entry = "card.js"
    report = traitlets.Dict(None, allow_none=True).tag(sync=True)
    told = traitlets.Unicode("").tag(sync=True)  # what came of the last thing that was asked
    asked = traitlets.Dict().tag(sync=True)

    def __init__(self, folder: str | Path, *, live: bool = True) -> None:
        self.folder = Path(folder)
        self._over = threading.Event()
        super().__init__(packs=[], report=report(self.folder))
        self.observe(self._act, "asked")
        if live:
            threading.Thread(target=self._follow, name=f"card of {self.folder.name}", daemon=True).start()

    def __repr__(self) -> str:
        return f"<RunCard: {sentence(self.report)}>"

    def look(self) -> None:
        """Looks at the run's folder now."""
        self.report = report(self.folder)

    def stop(self) -> None:
        """Looks no more."""
        self._over.set()

    def close(self) -> None:
        self.stop()
        super().close()

    def _follow(self) -> None:
        """Until the run is over, and once more, for what it wrote last."""
        while not self._over.wait(EVERY):
            try:
                self.look()
            except (OSError, ValueError, RuntimeError) as error:
                self.told = str(error)
                continue
            if self.report["state"] not in ("waiting", "running", "unknown"):
                break

    def _act(self, change: Any) -> None:
        """A button was pressed."""
        action, step = change.new.get("action"), change.new.get("step")
        try:
            self.told = self._acted(action, step)
            self.look()
        except (OSError, ValueError, RuntimeError) as error:
            self.told = str(error)

    def _acted(self, action: str, step: int | None) -> str:
        made = submissions(self.folder)
        if action in ("cancel", "requeue") and not made:
            raise ValueError("this run was never submitted from here or elsewhere")
        if action == "cancel":
            made[-1].cancel()
            return "told to save and leave"
        if action == "requeue":
            if made[-1].status().state.is_over:
                number = go_on(self.folder).number
                return f"submitted once more, as number {number}"
            made[-1].requeue()
            return "back in the queue"
        if action == "fork" and step is not None:
            config = fork(self.folder, step)
            folder = new_folder(config.name, self.folder.parent)
            if made:
                launch(config, made[-1].target, folder=folder, **made[-1].job.resources)
                return f"forked: {folder.name} is submitted"
            folder.rmdir()
            return "this run was never submitted, so it is not known where to"
        raise ValueError(f"nothing is known of {action!r}")
