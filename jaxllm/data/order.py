"""A permutation of the numbers below n that is computed at a point, without a table.

A Feistel network (Luby and Rackoff 1988) with a keyed hash as its round function permutes the numbers of b bits, where
2^b is the smallest power of two of at least n. Where a result is n or more, the network is applied again until it is
below (cycle walking, Black and Rogaway 2002): a permutation of all b-bit numbers, followed along its cycles to the next
number below n, permutes these. With 2^b < 2 n that takes less than two rounds of the network on average. The halves
need not be of one size: those of an odd b alternate (Schroeppel 1998), so that no bit is wasted.

The order has no cryptographic claim; it has to mix well and be the same on every machine.
"""

import numpy as np

_NUM_ROUNDS = 8
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)
_FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


class Permutation:
    """A permutation of 0 to size - 1, chosen by a key.

    Args:
        size: 1 or more, below 2^62.
        key: numbers from 0 on, such as a seed and an epoch.
    """

    def __init__(self, size: int, *key: int):
        assert 1 <= size < 1 << 62
        self.size = size
        bits = max((size - 1).bit_length(), 2)  # each half needs one
        state = 0
        for number in key:
            state = _mix_integer(state ^ _mix_integer(number))
        low_bits, high_bits = (bits + 1) // 2, bits // 2
        self._rounds = []
        for index in range(_NUM_ROUNDS):
            constants = (_mix_integer(state + index), (1 << low_bits) - 1, low_bits, high_bits, 64 - high_bits)
            self._rounds.append(tuple(map(np.uint64, constants)))
            low_bits, high_bits = high_bits, low_bits

    def __call__(self, index: np.ndarray) -> np.ndarray:
        """Where numbers below size go: integers of any shape to int64 of the same shape."""
        result = np.atleast_1d(index).astype(np.uint64)
        outside = np.ones(result.shape, bool)
        while outside.any():
            result[outside] = self._network(result[outside])
            outside = result >= self.size
        return result.astype(np.int64).reshape(np.shape(index))

    def _network(self, number: np.ndarray) -> np.ndarray:
        """The network, applied to uint64[n] below 2^bits."""
        for key, mask, low_bits, high_bits, dropped_bits in self._rounds:
            low, high = number & mask, number >> low_bits
            high ^= _mix(low ^ key) >> dropped_bits
            number = (low << high_bits) | high
        return number


def _mix(number: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele et al. 2014), on uint64 arrays, which wrap around."""
    number = (number ^ (number >> _SHIFTS[0])) * _FACTORS[0]
    number = (number ^ (number >> _SHIFTS[1])) * _FACTORS[1]
    return number ^ (number >> _SHIFTS[2])


def _mix_integer(number: int) -> int:
    """One step of SplitMix64 from a number of any size."""
    return int(_mix(np.array([(number + _GOLDEN) & _MASK], np.uint64))[0])
