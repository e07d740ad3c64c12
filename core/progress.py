"""What a person sees of a run: a bar on a terminal, plain lines elsewhere, and log.txt always."""

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

SHOWN = ("total", "dino_global", "dino_local", "ibot", "koleo", "gram")  # in this order, then whatever else there is


class Progress:
    """The progress of a run of `steps` steps from `first_step` on, on standard error and in log.txt.

    A bar when that is a terminal; it then shows images a second, the time left and the loss terms. Of several students
    each has its `label` and its `row`, counted from 0.
    """

    def __init__(self, folder: Path, *, steps: int, first_step: int, label: str = "", row: int = 0) -> None:
        self.stream = sys.stderr
        self.steps = steps
        self.label = f"{label}: " if label else ""
        self.log = (folder / "log.txt").open("a", encoding="utf-8")
        self.bar = None
        if _has_room(self.stream):
            self.bar = tqdm(
                total=steps,
                initial=first_step,
                unit="step",
                desc=label or None,
                position=row,
                file=self.stream,
                dynamic_ncols=True,
                smoothing=0.05,  # the first step compiles, and others wait for data: a longer mean than tqdm's own
            )

    def advance(self) -> None:
        """One more step is done."""
        if self.bar is not None:
            self.bar.update()

    def report(
        self, step: int, terms: Mapping[str, float | None], images_per_second: float, seconds_left: float
    ) -> None:
        """The numbers of a logged step."""
        numbers = terms_line(terms)
        speed = f"{images_per_second:.1f} images/s" if images_per_second < 100 else f"{images_per_second:.0f} images/s"
        if self.bar is not None:
            self.bar.set_postfix_str(f"{speed}, {numbers}", refresh=False)
        line = f"step {step} of {self.steps}: {numbers}, {speed}, {duration(seconds_left)} left"
        self._log(line, show=self.bar is None)

    def say(self, text: str) -> None:
        """A line of text, above the bar."""
        self._log(text, show=True)

    def close(self) -> None:
        """Leaves the bar as it is and closes log.txt."""
        if self.bar is not None:
            self.bar.close()
        self.log.close()

    def _log(self, text: str, *, show: bool) -> None:
        self.log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        self.log.flush()
        if show and self.bar is not None:
            self.bar.write(self.label + text, file=self.stream)
        elif show:
            print(self.label + text, file=self.stream, flush=True)


def _has_room(stream: Any) -> bool:
    """Whether a bar shows there: on a terminal, unless it says it has no rows (some containers'), which hides a bar."""
    if not stream.isatty():
        return False
    try:
        return os.get_terminal_size(stream.fileno()).lines > 0
    except OSError:  # a terminal that does not know its size
        return True


def terms_line(terms: Mapping[str, float | None]) -> str:
    """The loss terms as text: total 9.123, dino_global 8.31, ..."""
    names = [name for name in SHOWN if name in terms] + [name for name in terms if name not in SHOWN]
    return ", ".join(f"{name} {'not finite' if terms[name] is None else f'{terms[name]:.4g}'}" for name in names)


def duration(seconds: float) -> str:
    """A time span for people: 45 s, 12 min, 3 h 20 min, 5 d 2 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"
