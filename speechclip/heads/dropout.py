"""Dropout whose mask depends on each row's seed only.

So a row gets the same mask on any worker, in any batch, and after a run was interrupted and continued.
"""

from torch import Tensor, arange, int64

from speechclip.errors import InvalidInput

# Odd factors, so that different sites and places give different 32-bit numbers before the mixing.
_SITE = 0x9E3779B1
_AXES = (0x27D4EB2F, 0x165667B1, 0xC2B2AE3D)
_LOW_32 = 0xFFFFFFFF


def drop(values: Tensor, *, probability: float, seeds: Tensor | None, site: int) -> Tensor:
    """`values` with some numbers set to 0, each with this probability. The others are divided by (1 - probability).

    The first axis of `values` is the row. `seeds` has one 32-bit number for each row, as int64. Without seeds the
    values are returned as they are. `site` is a different number for each dropout of a head. Which numbers are dropped
    does not depend on the other rows or on the padding.
    """
    if seeds is None or probability == 0:
        return values
    if not 0 < probability < 1:
        raise InvalidInput(f"dropout is {probability}", "choose a number from 0 to below 1")
    assert values.dim() <= len(_AXES) + 1
    bits = (seeds + site * _SITE) & _LOW_32
    bits = _mix(bits).view(-1, *[1] * (values.dim() - 1))
    for axis, factor in zip(range(1, values.dim()), _AXES, strict=False):
        places = arange(1, values.shape[axis] + 1, dtype=int64, device=values.device) * factor
        bits = bits + places.view(*[-1 if other == axis else 1 for other in range(values.dim())])
    is_kept = _mix(bits & _LOW_32) >= round(probability * 2**32)
    return values * is_kept / (1 - probability)


def _mix(bits: Tensor) -> Tensor:
    """Mixes the bits of 32-bit numbers, so that near numbers get unlike ones.

    This is the hash function `16 21f0aaad 15 735a2d97 15` of the project hash-prospector: shift, multiply, shift,
    multiply, shift. Both factors are below 2**31, so the products fit in int64.
    """
    bits = ((bits ^ (bits >> 16)) * 0x21F0AAAD) & _LOW_32
    bits = ((bits ^ (bits >> 15)) * 0x735A2D97) & _LOW_32
    return bits ^ (bits >> 15)
