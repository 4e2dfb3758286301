"""The permutation."""

import numpy as np
import pytest

from jaxllm.data.order import Permutation


@pytest.mark.parametrize("size", [*range(1, 70), 127, 128, 129, 1000, 4096, 4097, 65_537])
def test_it_is_a_bijection(size):
    result = Permutation(size, 3, 1)(np.arange(size))
    assert result.dtype == np.int64
    np.testing.assert_array_equal(np.sort(result), np.arange(size))


def test_large_sizes_stay_inside_and_do_not_collide():
    size = 10**15 + 7
    index = np.unique(np.random.default_rng(0).integers(0, size, 100_000))
    result = Permutation(size, 0)(index)
    assert result.min() >= 0
    assert result.max() < size
    assert len(np.unique(result)) == len(index)


def test_points_agree_with_the_whole_and_keep_their_shape():
    order = Permutation(1000, 7, 2)
    whole = order(np.arange(1000))
    assert [int(order(np.array(point))) for point in (0, 1, 500, 999)] == whole[[0, 1, 500, 999]].tolist()
    np.testing.assert_array_equal(order(np.arange(6).reshape(2, 3)), whole[:6].reshape(2, 3))


def test_keys_give_unrelated_orders():
    index = np.arange(2000)
    orders = [Permutation(2000, *key)(index) for key in [(0, 0), (0, 1), (1, 0), (1, 1), (2**40, 0)]]
    orders.append(index)
    for first in range(len(orders)):
        for second in range(first):
            assert (orders[first] == orders[second]).sum() < 10  # one is expected


def test_the_order_is_mixed():
    """Ranks of neighbours do not correlate, and every tenth lands in every tenth about as often."""
    size = 20_000
    result = Permutation(size, 5, 0)(np.arange(size))
    assert abs(np.corrcoef(result[:-1], result[1:])[0, 1]) < 0.03
    assert abs(np.corrcoef(result, np.arange(size))[0, 1]) < 0.03
    table = np.histogram2d(np.arange(size), result, bins=10)[0]
    chi_squared = ((table - size / 100) ** 2 / (size / 100)).sum()
    assert chi_squared < 130  # 81 degrees of freedom: 126 is the 99.9th percentile


def test_the_order_never_changes():
    """Resuming a run needs the same order for ever: a failure here means that every stored run is broken."""
    assert Permutation(10, 0, 0)(np.arange(10)).tolist() == [8, 0, 1, 6, 4, 5, 9, 3, 2, 7]
    large = Permutation(10**9, 42, 3)(np.arange(4)).tolist()
    assert large == [95544369, 915232146, 793587022, 239305178]
