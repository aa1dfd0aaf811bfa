"""Which rotation a layer applies to its queries and keys, found by looking at what it does.

The same token is shown to the model at several positions. A layer with a rotary embedding then hands
its attention the same vectors, turned: pairs of dimensions by an angle proportional to the position. Which
dimensions are pairs, and their frequencies, is what is looked for: the model's own frequency buffers
are tried in every layout there is (half-split or interleaved, at the front or at the end of a head), and
where none fits, frequencies are measured from the angles themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ddposink.streaming.positions import Rope

# Largest share of a vector's length that a rotation may leave unexplained, by the dtype it was computed in.
TOLERANCE = {torch.float32: 2e-3, torch.float16: 1e-2, torch.bfloat16: 4e-2, torch.float64: 2e-3}
STILL = 0.05  # of the tolerance: what moves less does not move


def find_rotation(
    at: Sequence[int], seen: Tensor, buffers: Sequence[Tensor], dtype: torch.dtype
) -> Rope | None:
    """The rotation that explains ``seen`` (P, N, D): N vectors at each of P positions ``at``, the first 0.

    ``buffers`` are inverse frequencies (n,) to try. None if what happens is no rotation.
    """
    seen = seen.double()
    size = seen[0].square().mean().sqrt().clamp(min=1e-12)
    tolerance = TOLERANCE[dtype] * float(size)
    moved = (seen - seen[0]).abs().amax((0, 1)) > tolerance * STILL  # (D,)
    if not bool(moved.any()):
        return Rope(torch.zeros(0, device=seen.device))
    for candidates in (_of_the_model(seen.shape[-1], buffers), _of_the_angles(at, seen, moved)):
        fitting = [
            (error, rope) for rope in candidates if (error := _unexplained(rope, at, seen)) <= tolerance
        ]
        if fitting:  # a measured span may be too wide, with frequencies that are nothing but noise
            narrow = min(len(rope.inv_freq) for _, rope in fitting)
            return min((x for x in fitting if len(x[1].inv_freq) == narrow), key=lambda x: x[0])[1]
    return None


def frequency_buffers(model: nn.Module) -> list[Tensor]:
    """Every different buffer of inverse frequencies (n,) in ``model``, float32."""
    found: list[Tensor] = []
    for name, buffer in model.named_buffers():
        if "inv_freq" in name and buffer.ndim == 1 and buffer.is_floating_point():
            one = buffer.detach().float()
            if not any(one.shape == other.shape and torch.equal(one, other) for other in found):
                found.append(one)
    return found


def _of_the_model(size: int, buffers: Sequence[Tensor]) -> Iterator[Rope]:
    """The model's own frequencies in every layout that fits a head of ``size`` dimensions."""
    for inv_freq in buffers:
        width = 2 * len(inv_freq)
        for start in sorted({0, size - width}) if width <= size else ():
            yield Rope(inv_freq, start)
            yield Rope(inv_freq, start, interleaved=True)


def _of_the_angles(at: Sequence[int], seen: Tensor, moved: Tensor) -> Iterator[Rope]:
    """Measured frequencies of the dimensions that ``moved`` (D,), and of plain spans around them."""
    size = seen.shape[-1]
    first, last = (int(i) for i in moved.nonzero()[[0, -1], 0])
    for start, end in sorted({(first, last + 1), (0, size), (0, last + 1), (first, size)}):
        if (end - start) % 2 == 0:
            for interleaved in (False, True):
                shape = Rope(torch.zeros((end - start) // 2), start, interleaved)
                yield Rope(_measured(shape, at, seen).float(), start, interleaved)


def _measured(shape: Rope, at: Sequence[int], seen: Tensor) -> Tensor:
    """Frequencies (n,) that turn the vectors at position 0 into those at the others; refined step by step.

    An angle is known up to whole turns: a farther position sharpens the estimate once the nearer ones say
    how many turns it has made.
    """
    base = torch.complex(*(x.contiguous() for x in shape.pairs(seen[0])))
    frequency = torch.zeros(base.shape[-1], dtype=torch.float64, device=seen.device)
    for position, vectors in zip(at[1:], seen[1:], strict=True):
        turned = torch.complex(*(x.contiguous() for x in shape.pairs(vectors)))
        angle = (turned * base.conj()).sum(0).angle()
        turns = torch.round((frequency * position - angle) / (2 * math.pi)) if position > 1 else 0.0
        frequency = (angle + 2 * math.pi * turns) / position
    return frequency


def _unexplained(rope: Rope, at: Sequence[int], seen: Tensor) -> float:
    """Largest root mean square, over the positions, of what ``rope`` does not explain."""
    errors = []
    for position, vectors in zip(at[1:], seen[1:], strict=True):
        table = rope.table(torch.tensor([position], device=seen.device), torch.float64)
        errors.append((rope.turn(seen[0], table) - vectors).square().mean().sqrt())
    return float(torch.stack(errors).max())
