"""Dropout whose mask depends on the row's own seed, so that it is the same on any worker and after any resume."""

from torch import Tensor, arange, int64

from speechclip.errors import InvalidInput

# Odd factors that spread rows, places and sites over 32 bits before mixing.
_SITE = 0x9E3779B1
_AXES = (0x27D4EB2F, 0x165667B1, 0xC2B2AE3D)
_LOW_32 = 0xFFFFFFFF


def drop(values: Tensor, *, probability: float, seeds: Tensor | None, site: int) -> Tensor:
    """`values` (rows first) with each number dropped by `probability`, the rest scaled up; untouched without seeds.

    `seeds` are one 32-bit number a row, as int64; `site` keeps apart the several dropouts of one head. A place's fate
    does not depend on the other rows or on how far the row is padded.
    """
    if seeds is None or probability == 0:
        return values
    if not 0 < probability < 1:
        raise InvalidInput(f"dropout is {probability}, expected 0 up to (not including) 1")
    assert values.dim() <= len(_AXES) + 1
    bits = (seeds + site * _SITE) & _LOW_32
    bits = _mix(bits).view(-1, *[1] * (values.dim() - 1))
    for axis, factor in zip(range(1, values.dim()), _AXES, strict=False):
        places = arange(1, values.shape[axis] + 1, dtype=int64, device=values.device) * factor
        bits = bits + places.view(*[-1 if other == axis else 1 for other in range(values.dim())])
    is_kept = _mix(bits & _LOW_32) >= round(probability * 2**32)
    return values * is_kept / (1 - probability)


def _mix(bits: Tensor) -> Tensor:
    """The 32-bit finaliser `16 21f0aaad 15 d35a2d97 15` of hash-prospector; both products fit in int64."""
    bits = ((bits ^ (bits >> 16)) * 0x21F0AAAD) & _LOW_32
    bits = ((bits ^ (bits >> 15)) * 0x735A2D97) & _LOW_32
    return bits ^ (bits >> 15)
