from fractions import Fraction

import numpy as np
import pytest

from core.data.order import BLOCK, PASS, Order, Quota, choose, generator, index_at, key_of, shuffled


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 1000, 4097])
@pytest.mark.parametrize("key", [0, 12345])
def test_every_pass_shows_every_image_once(size, key):
    indices = index_at(np.arange(3 * size), size, key)
    for start in range(0, 3 * size, size):
        np.testing.assert_array_equal(np.sort(indices[start : start + size]), np.arange(size))


def test_order_is_a_function_of_the_position():
    whole = index_at(np.arange(5000), 777, 3)
    np.testing.assert_array_equal(whole[1234:1300], index_at(np.arange(1234, 1300), 777, 3))
    assert not np.array_equal(whole, index_at(np.arange(5000), 777, 4))
    assert not np.array_equal(whole[:777], whole[777 : 2 * 777])


def test_runs_under_way_keep_their_order():
    """A change here would show a resumed run images again that it has just seen."""
    assert index_at(np.arange(12), 10, key_of(7, PASS, 0)).tolist() == [9, 6, 0, 8, 4, 5, 1, 7, 3, 2, 5, 9]
    assert Quota([Fraction(1), Fraction(2)], 7).at(510, 6)[0].tolist() == [0, 1, 1, 1, 1, 1]
    assert generator(7, 1, 2).integers(1000, size=4).tolist() == [688, 923, 971, 720]


def test_a_billion_images_need_no_list():
    size = 1_689_000_000
    indices = index_at(np.array([0, size - 1, size, 10 * size + 5]), size, 0)
    assert ((indices >= 0) & (indices < size)).all()
    assert len(set(index_at(np.arange(100_000), size, 0))) == 100_000


def test_all_orders_of_a_few_images_are_about_as_frequent():
    draws = 24_000
    keys = np.repeat(np.random.default_rng(0).integers(0, 2**63, draws), 4)
    orders = shuffled(np.tile(np.arange(4), draws), 4, keys).reshape(draws, 4)
    counts = np.unique(orders @ 4 ** np.arange(4), return_counts=True)[1]
    assert len(counts) == 24
    assert (abs(counts - 1000) < 150).all()


def test_neighbours_in_the_source_are_no_neighbours_in_the_order():
    order = index_at(np.arange(10_000), 10_000, 0)
    correlation = np.corrcoef(order[:-1], order[1:])[0, 1]
    assert abs(correlation) < 4 / np.sqrt(10_000)


def plain_quota(quota: Quota, count: int) -> tuple[list[int], list[int]]:
    """The ordinals of a sequence, counted one by one."""
    choices = quota.at(0, count)[0].tolist()
    seen = dict.fromkeys(choices, 0)
    ordinals = []
    for choice in choices:
        ordinals.append(seen[choice])
        seen[choice] += 1
    return choices, ordinals


@pytest.mark.parametrize("shares", [[1], [3, 1], [Fraction(1, 10), Fraction(9, 10)], [5, 0, 1, 3000], [1, 1, 1]])
def test_quota_counts_what_came_before(shares):
    quota = Quota([Fraction(share) for share in shares], key=5)
    count = 4 * BLOCK + 7
    choices, ordinals = plain_quota(quota, count)
    assert quota.at(0, count)[1].tolist() == ordinals
    part = quota.at(BLOCK + 100, BLOCK)
    assert part[0].tolist() == choices[BLOCK + 100 : 2 * BLOCK + 100]
    assert part[1].tolist() == ordinals[BLOCK + 100 : 2 * BLOCK + 100]


def test_quota_keeps_its_shares():
    shares = [Fraction(1, 7), Fraction(2, 7), Fraction(4, 7)]
    choices, _ = Quota(shares, key=1).at(0, 100 * BLOCK)
    counts = np.bincount(choices)
    np.testing.assert_allclose(counts, [float(share) * 100 * BLOCK for share in shares], atol=2)


def test_quota_refuses_shares_that_are_none():
    with pytest.raises(ValueError, match="not all 0"):
        Quota([Fraction(0)], 0)
    with pytest.raises(ValueError, match="at least 0"):
        Quota([Fraction(2), Fraction(-1)], 0)


def order(sizes=(1000, 300, 50), weights=(1.0, 2.0, 0.0), homogeneous=(0.0, 0.0, 0.1), batch_size=32, seed=0) -> Order:
    return Order(list(sizes), list(weights), list(homogeneous), batch_size=batch_size, seed=seed)


def test_each_source_gives_its_images_one_after_the_other():
    """However steps mix sources, a source's positions are 0, 1, 2, ... in the order of the steps."""
    mixed = order(weights=(1.0, 2.0, 0.5), homogeneous=(0.05, 0.0, 0.1))
    given: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for step in range(700):
        place = mixed.at(step)
        for source, position in zip(place.sources.tolist(), place.positions.tolist(), strict=True):
            given[source].append(position)
    for positions in given.values():
        assert positions == list(range(len(positions)))


def test_mixtures_follow_weight_times_size():
    mixed = order(weights=(1.0, 2.0, 0.0), homogeneous=(0.0, 0.0, 0.0))
    sources = np.concatenate([mixed.at(step).sources for step in range(200)])
    np.testing.assert_allclose(
        np.bincount(sources, minlength=3) / len(sources), [1000 / 1600, 600 / 1600, 0], atol=1e-3
    )


def test_a_tenth_of_the_steps_is_one_source_alone():
    mixed = order()
    alone = [bool((mixed.at(step).sources == 2).all()) for step in range(4 * BLOCK)]
    assert sum(alone) == int(0.1 * 4 * BLOCK)
    assert not any((mixed.at(step).sources == 2).any() for step in range(4 * BLOCK) if not alone[step])
    gaps = np.diff(np.flatnonzero(alone))
    assert gaps.min() <= 2 and gaps.max() >= 15  # drawn, not every tenth


def test_one_source_is_shown_in_passes():
    single = order(sizes=(96,), weights=(1.0,), homogeneous=(0.0,))
    indices = np.concatenate([single.images(single.at(step), slice(0, 32)) for step in range(6)])
    for start in (0, 96):
        np.testing.assert_array_equal(np.sort(indices[start : start + 96]), np.arange(96))


def test_slices_of_processes_make_the_whole_batch():
    mixed = order()
    place = mixed.at(17)
    whole = mixed.images(place, slice(0, 32))
    for world in (2, 4):
        each = 32 // world
        parts = [mixed.images(place, slice(rank * each, (rank + 1) * each)) for rank in range(world)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_replacements_come_from_later_passes():
    single = order(sizes=(1000,), weights=(1.0,), homogeneous=(0.0,))
    place = single.at(3)
    first, second, third = (single.images(place, slice(0, 32), attempt) for attempt in range(3))
    assert (first != second).sum() > 28 and (second != third).sum() > 28
    np.testing.assert_array_equal(second, index_at(place.positions + 1000, 1000, key_of(0, PASS, 0)))


def test_impossible_mixtures_are_refused():
    with pytest.raises(ValueError, match="every source has weight 0"):
        order(weights=(0.0, 0.0, 0.0))
    order(weights=(0.0, 0.0, 0.0), homogeneous=(0.5, 0.25, 0.25))
    with pytest.raises(ValueError, match="at least one image"):
        order(sizes=(5, 0, 5))


def test_sizes_are_drawn_by_their_probability():
    chosen = [choose([0.3, 0.6, 0.1], step, seed=0) for step in range(1000)]
    np.testing.assert_allclose(np.bincount(chosen) / 1000, [0.3, 0.6, 0.1], atol=0.05)
    assert chosen[100:200] == [choose([0.3, 0.6, 0.1], step, seed=0) for step in range(100, 200)]
    assert chosen != [choose([0.3, 0.6, 0.1], step, seed=1) for step in range(1000)]
    assert choose([1.0], 5, seed=0) == 0


def test_generators_are_functions_of_all_their_numbers():
    assert generator(1, 2, 3).random() == generator(1, 2, 3).random()
    assert len({generator(*key).random() for key in [(1, 2, 3), (1, 2, 4), (1, 3, 3), (2, 2, 3), (-1, 2, 3)]}) == 5
    assert key_of(1, 2) != key_of(2, 1)
