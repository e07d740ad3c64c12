"""Work shared out among threads: all of it is done, by one core each, in the modes of the caller."""

import multiprocessing

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from core.threads import evenly, in_chunks, in_threads, num_threads, team


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("count", "parts"), [(10, 3), (3, 5), (0, 2), (7, 1)])
def test_parts_are_equal_and_leave_nothing_out(count, parts):
    slices = evenly(count, parts)
    assert [index for part in slices for index in range(count)[part]] == list(range(count))
    lengths = [part.stop - part.start for part in slices]
    assert len(slices) == parts and max(lengths) - min(lengths) <= 1


def test_results_come_in_the_order_of_the_shares():
    assert in_threads(lambda share: share**2, range(5)) == [0, 1, 4, 9, 16]


def test_threads_use_one_core_and_leave_the_callers_number_alone(two_threads):
    assert set(in_threads(lambda _: torch.get_num_threads(), range(3))) == {1}
    assert set(team(3).map(lambda _: torch.get_num_threads(), range(9))) == {1}
    assert torch.get_num_threads() == 2


def test_threads_are_in_the_mode_of_the_caller():
    def modes(_):
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    assert in_threads(modes, range(2)) == [(False, False)] * 2
    with torch.inference_mode():
        assert in_threads(modes, range(2)) == [(False, True)] * 2


def test_an_error_in_a_thread_reaches_the_caller():
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda share: 1 // share, [1, 0])


@pytest.mark.parametrize(("count", "size"), [(100, 7), (5, 8), (0, 4)])
def test_chunks_cover_everything_once(two_threads, count, size):
    seen = torch.zeros(count)
    lengths = []

    def work(part):
        seen[part] += 1
        lengths.append(part.stop - part.start)

    in_chunks(work, count, size, torch.device("cpu"))
    assert bool((seen == 1).all()) and max(lengths) <= 1.5 * size
    lengths.clear()
    in_chunks(work, count, size, torch.device("meta"))
    assert lengths == [count]


def test_one_thread_is_enough_where_operators_are_watched(two_threads):
    assert num_threads() == 2
    with FlopCounterMode(display=False):
        assert num_threads() == 1


def in_a_child(queue) -> None:
    queue.put(in_threads(lambda share: share + 1, range(2)))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_process_gets_threads_of_its_own():
    in_threads(lambda share: share, range(2))
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=in_a_child, args=(queue,))
    child.start()
    child.join(60)
    alive = child.is_alive()
    child.kill()
    assert not alive and not queue.empty() and queue.get() == [1, 2]
