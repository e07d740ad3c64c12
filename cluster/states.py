"""How a job stands, in the same words for every engine."""

import re
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """The state of a job. `is_over` tells those that last."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"
    OUT_OF_MEMORY = "out of memory"
    NODE_FAILED = "node failed"
    OUT_OF_TIME = "out of time"
    UNKNOWN = "unknown"

    @property
    def is_over(self) -> bool:
        return self not in (State.WAITING, State.RUNNING, State.UNKNOWN)


@dataclass(frozen=True)
class Status:
    """A state, why it is so in the engine's words, and how often the engine has started the job again."""

    state: State
    reason: str = ""
    restarts: int = 0


MEMORY_WORDS = re.compile(r"out of memory|oom.?kill|can't allocate memory|cannot allocate memory|MemoryError", re.I)


def of_exit(code: int, log: str) -> Status:
    """The state of a job by its exit status and the end of its log."""
    if code == 0:
        return Status(State.DONE)
    if MEMORY_WORDS.search(log):
        return Status(State.OUT_OF_MEMORY, f"status {code}")
    if code in (137, -9):
        return Status(State.OUT_OF_MEMORY, "killed by the system, most likely for its memory")
    if code in (130, 143, -2, -15):
        return Status(State.CANCELLED, "told to stop")
    return Status(State.FAILED, f"status {code}")
