"""Threads that each do their own part of the work on one core, and meet when all is done.

Torch's operators can share themselves out among the cores, but then they wait for each other after every one of them:
a product of some hundred rows takes less than a millisecond, and where another program takes a core for a moment,
everybody waits. Rows that do not know of each other can rather be shared out once, for many operators.
"""

import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

import torch

Share = TypeVar("Share")
Result = TypeVar("Result")


def num_threads() -> int:
    """How many threads are worth having now: those of torch.

    One where torch watches operators, to count them or to keep their results: it does so for the calling thread alone.
    """
    return 1 if torch._C._len_torch_dispatch_stack() > 0 else torch.get_num_threads()


def evenly(count: int, parts: int) -> list[slice]:
    """So many slices of a sequence, as equal as whole numbers can be; some are empty if there is too little."""
    bounds = [count * index // parts for index in range(parts + 1)]
    return [slice(first, last) for first, last in pairwise(bounds)]


def in_threads(work: Callable[[Share], Result], shares: Sequence[Share]) -> list[Result]:
    """`work` of every share, each in a thread of its own and without gradients; a single share is done right here."""
    if len(shares) == 1:
        return [work(shares[0])]
    inference = torch.is_inference_mode_enabled()

    def without_gradients(share: Share) -> Result:
        with torch.inference_mode(inference), torch.no_grad():  # modes are a thread's own
            return work(share)

    return list(team(len(shares)).map(without_gradients, shares))


def in_chunks(work: Callable[[slice], None], count: int, size: int, device: torch.device) -> None:
    """`work` of slices that together are range(count); on a CPU of about `size` each, shared out among its threads.

    Elsewhere there is one slice: only a CPU has a cache that a chunk may stay in.
    """
    if device.type != "cpu":
        work(slice(0, count))
        return

    def chunks(share: slice) -> None:
        length = share.stop - share.start
        for part in evenly(length, max(1, round(length / size))):
            work(slice(share.start + part.start, share.start + part.stop))

    in_threads(chunks, evenly(count, max(1, min(num_threads(), count // size))))


@functools.cache
def team(size: int) -> ThreadPoolExecutor:
    """So many threads whose operators stay on one core each."""
    before = torch.get_num_threads()
    threads = ThreadPoolExecutor(size, "team", keep_to_one_core)
    everybody = threading.Barrier(size)
    list(threads.map(lambda _: everybody.wait(), range(size)))  # starts them all now
    torch.set_num_threads(before)  # the number is each thread's own, but the last one set is what later ones start with
    return threads


def keep_to_one_core() -> None:
    torch.get_num_threads()  # a thread takes over the number of the others when it is first asked for, so ask now
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=team.cache_clear)  # threads do not survive a fork
