"""Random numbers that are functions: of a seed, what they are for, and nothing else.

A key is a uint64 hashed from integers with the finaliser of SplitMix64 (Steele, Lea, Flood 2014); every decision takes
its bits from the key and a stream number. NumPy's generators have state, and making one for every example costs
microseconds; this costs nanoseconds, and any example can be made without those before it.
"""

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = 6  # of the Feistel network; four already pass as random, and a round costs little


def key(seed: int, *parts: int | np.ndarray) -> np.ndarray:
    """uint64 keys from a seed and integers or integer arrays, which broadcast."""
    state = _mix(np.asarray(seed % (1 << 64), np.uint64))
    for part in parts:
        with np.errstate(over="ignore"):
            state = _mix(state ^ _mix(np.asarray(part).astype(np.uint64) + _GOLDEN))
    return state


def bits(key: np.ndarray, stream: int, word: int | np.ndarray = 0) -> np.ndarray:
    """64 random bits for each key; other streams and words give independent ones."""
    number = np.asarray(word, np.uint64) * np.uint64(256) + np.uint64(stream) + np.uint64(1)
    with np.errstate(over="ignore"):
        return _mix(key + number * _GOLDEN)


def uniform(key: np.ndarray, stream: int) -> np.ndarray:
    """float64 in [0, 1)."""
    return (bits(key, stream) >> np.uint64(11)) * 2.0**-53


def below(key: np.ndarray, stream: int, limit: np.ndarray | int) -> np.ndarray:
    """int64 uniform over 0..limit-1; `limit` is at least 1. The bias of the remainder is below limit / 2^64."""
    return (bits(key, stream) % np.asarray(limit).astype(np.uint64)).astype(np.int64)


def heads(key: np.ndarray, stream: int, coins: np.ndarray) -> np.ndarray:
    """int64 binomial(coins, 1/2) for int64 [R] coins: the ones among that many random bits."""
    words = np.arange(-(-int(coins.max(initial=0)) // 64))
    used = np.clip(coins[:, None] - 64 * words, 0, 64).astype(np.uint64)
    # A shift by 64 is undefined, so the mask of the lowest `used` bits is made in two halves.
    low, high = used // np.uint64(2), used - used // np.uint64(2)
    one = np.uint64(1)
    mask = (((one << low) - one) << high) | ((one << high) - one)
    return np.bitwise_count(bits(key[:, None], stream, words) & mask).sum(axis=1, dtype=np.int64)


def permute(index: np.ndarray, count: int | np.ndarray, key: np.ndarray) -> np.ndarray:
    """A permutation of range(count), chosen by `key`, applied to int64 [R] indices; keys and counts broadcast against them.

    A Feistel network over a x b >= count with a and b near the square root, so that hardly any index falls outside and
    has to be walked on (cycle walking: Black and Rogaway 2002).
    """
    key, count = np.broadcast_to(key, index.shape), np.broadcast_to(count, index.shape)
    a = np.ceil(np.sqrt(count)).astype(np.int64)
    b = -(-count // a)
    result = _feistel(index, a, b, key)
    while (outside := result >= count).any():
        result[outside] = _feistel(result[outside], a[outside], b[outside], key[outside])
    return result


def _feistel(index: np.ndarray, a: np.ndarray, b: np.ndarray, key: np.ndarray) -> np.ndarray:
    left, right = index // b, index % b
    for number in range(0, _ROUNDS, 2):
        left = (left + (bits(key, number, right) % a.astype(np.uint64)).astype(np.int64)) % a
        right = (right + (bits(key, number + 1, left) % b.astype(np.uint64)).astype(np.int64)) % b
    return left * b + right


def _mix(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
