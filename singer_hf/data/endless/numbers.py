"""Random numbers that depend only on a seed, an index and a place: equal in any batch, order and process.

Every number is a hash of its counters, see J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import math

import torch
from torch import Tensor

_32_BITS = 0xFFFFFFFF


def hash_bits(values: Tensor) -> Tensor:
    """Hashes integers (...) from 0 to 2**32 - 1 to integers of the same range, int64, one to one.

    The 32-bit function "lowbias32" of C. Wellons, https://nullprogram.com/blog/2018/07/31/, improved constants.
    """
    for shift, factor in ((16, 0x21F0AAAD), (15, 0xD35A2D97)):
        values = ((values ^ (values >> shift)) * factor) & _32_BITS
    return values ^ (values >> 15)


def series_keys(seed: int, indices: Tensor) -> Tensor:
    """Returns one key (B,) for every index of a series; different indices of a series have different keys.

    Args:
        seed: Seed of the series, from 0 to 2**32 - 1.
        indices: Indices (B,) from 0 to 2**32 - 1, int64.
    """
    return hash_bits(indices ^ hash_bits(indices.new_tensor(seed)))


def uniform_numbers(keys: Tensor, places: Tensor) -> Tensor:
    """Returns uniform numbers (B, ...) in [0, 1), float32, for every key and place.

    Args:
        keys: From :func:`series_keys`, (B,).
        places: Which numbers, integers (...) from 0 to 2**32 - 1: the same place gives the same number.
    """
    return (hash_pairs(keys, places) >> 8).float() / 2**24


def hash_pairs(keys: Tensor, places: Tensor) -> Tensor:
    """Returns 32 random bits for every key (B,) and place (...), as integers (B, ...), int64."""
    return hash_bits(keys.reshape(-1, *[1] * places.ndim) ^ hash_bits(places ^ 0x5BF03635))


class NumberStream:
    """Uniform numbers of a batch of keys, one after the other.

    Args:
        keys: From :func:`series_keys`, (B,).
    """

    def __init__(self, keys: Tensor) -> None:
        self.keys, self.used = keys, 0

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Returns the next numbers, (B,) or (B, K, ...), in [low, high), float32.

        Args:
            low: Lower end.
            high: Upper end.
            *shape: Shape of the numbers of one key; without it the numbers are (B,).
        """
        places = torch.arange(self.used, self.used + math.prod(shape), device=self.keys.device).reshape(shape)
        self.used += math.prod(shape)
        return low + (high - low) * uniform_numbers(self.keys, places)

    def below(self, limit: int) -> Tensor:
        """Returns the next integers (B,) from 0 to ``limit`` - 1, int64."""
        return (self.uniform(0, limit)).long().clamp(max=limit - 1)
