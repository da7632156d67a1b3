"""Stochastic rounding to bfloat16, float16 and float8: up or down at random, so that the mean is the exact value.

A value that lies a share s of the way between its two neighbours is rounded up with the probability s, to within
2^-16, or 2^-13 in float16. So a change of a weight that is far below the distance of its neighbours takes place at
times, where rounding to the nearest always drops it.

The random numbers are a function of the seed, the step, the number of the parameter in its optimizer and the place of
the element in memory. Each implementation computes the same ones, by the integer hash below (of the family of Chris
Wellons' hash-prospector), so none are stored and no generator is used.
"""

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0x21F0AAAD, 0xD35A2D97)

# A momentum in float8 has the bits of torch.float8_e5m2, as bytes: gloo, pickle and torch.equal know no float8.
FLOAT8 = torch.uint8
# The types that values are rounded to; wider ones hold what is computed as it is.
ROUNDED = (torch.bfloat16, torch.float16, FLOAT8)

# Two words of 32 bits: of a step, or of a parameter at that step.
Key = tuple[int, int]


def key_of_step(seed: int, step: int) -> Key:
    """The key of a step: by splitmix64 from the seed of the run and the number of the step."""
    state = (int(seed) * 0xD1342543DE82EF95 + step * 0x9E3779B97F4A7C15) & (2**64 - 1)
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    state ^= state >> 31
    return state >> 32, state & _WORD


def key_of_parameter(key: Key, number: int) -> Key:
    """The key of the parameter `number` at the step that has `key`."""
    first = _mix(key[0] ^ _mix((number + 0x9E3779B9) & _WORD))
    return first, _mix((key[1] + first) & _WORD)


def _mix(word: int) -> int:
    word ^= word >> 16
    word = word * _MULTIPLIERS[0] & _WORD
    word ^= word >> 15
    word = word * _MULTIPLIERS[1] & _WORD
    return word ^ (word >> 15)


def random_numbers(key: Key, places: Tensor) -> Tensor:
    """A random number of 16 bits for each element of the parameter that has `key`: for its value and its momentum.

    `places` are those of the elements in memory, modulo 2^32, as int32. Two elements share a random word of 32 bits:
    the lower half is that of the one at an even place.
    """
    words = ((places >> 1) & 0x7FFFFFFF) ^ signed(key[0])
    words ^= (words >> 16) & 0xFFFF
    words *= signed(_MULTIPLIERS[0])
    words ^= (words >> 15) & 0x1FFFF
    words += signed(key[1])
    words *= signed(_MULTIPLIERS[1])
    words ^= (words >> 15) & 0x1FFFF
    return torch.where((places & 1) == 0, words, words >> 16) & 0xFFFF


def signed(word: int) -> int:
    """The word as an int32 has it."""
    return word - (word >> 31 << 32)


def rounded(values: Tensor, random: Tensor | int, dtype: torch.dtype, unit: float = 1.0) -> Tensor:
    """`values` in `dtype`, one of `ROUNDED`, each rounded by its random number of 16 bits.

    float8 counts in a `unit`, a power of two. What float32 can hold stays finite: it is cut off at 57,344 units.
    """
    values = values.to(torch.float32)
    bits = values.view(torch.int32)
    if dtype == torch.bfloat16:
        result = ((bits + random) >> 16).to(torch.int16).view(dtype)
        return torch.where(values.isnan(), torch.full_like(result, torch.nan), result)
    # The bits of float8 are those of float16 without the last 8.
    last, infinity = (0, 0x7C) if dtype == FLOAT8 else (8, 0x7C00)
    sizes = (values / unit).abs()
    # With the smallest normal number added, a subnormal one has its last place where that of others is.
    is_subnormal = sizes < 2.0**-14
    above = torch.where(is_subnormal, sizes + 2.0**-14, sizes).view(torch.int32)
    above -= torch.where(is_subnormal, 0x38800000, 0x38000000)
    result = ((above + (random << 5 >> last)) >> (21 - last)).clamp_(max=infinity - (last == 0))
    result = torch.where(values.isinf(), infinity, result)
    result = torch.where(values.isnan(), infinity | 2 << last, result) | (bits >> (24 - last)) & (0x80 << last)
    return result.to(FLOAT8) if dtype == FLOAT8 else result.to(torch.int16).view(dtype)


def from_float8(momentum: Tensor, unit: float, dtype: torch.dtype) -> Tensor:
    """The values, in `dtype`, of a momentum in float8."""
    return (momentum.to(torch.int16) << 8).view(torch.float16).to(dtype) * unit
