"""How many bytes a number of a key or value takes when it is stored with fewer bits. No tensors here.

``2``, ``4`` and ``8`` are integers of so many bits between the smallest and the largest value of a group of
up to 64 neighbouring numbers of one token and head, whose scale and offset are kept in half precision (the
per-token scheme of the model library's own quantised cache); ``fp8`` are 8-bit floats (e4m3) with one scale
a group. See `ddposink.streaming.quantize` for the arithmetic.
"""

from __future__ import annotations

CODES = ("2", "4", "8", "fp8")
GROUP = 64  # numbers that share a scale, at most
HALF = 2  # bytes


def group_of(size: int) -> int:
    """Numbers that share a scale in a vector of ``size``: the largest divisor that is at most `GROUP`."""
    return next(n for n in range(min(size, GROUP), 0, -1) if size % n == 0 and (n % 4 == 0 or n == size))


def stored_bytes(size: int, group: int, bits: str) -> int:
    """Bytes of a vector of ``size`` numbers: packed codes, and scale (and offset) of every group."""
    if bits == "fp8":
        return size + size // group * HALF
    return -(-size * int(bits) // 8) + size // group * 2 * HALF
