"""Memory of a CPU run: what the C library does with pages that are free for a moment."""

from __future__ import annotations

from functools import cache

import torch


@cache
def keep_freed_pages() -> None:
    """Let the C library keep activations' memory between layers instead of giving it back to the kernel.

    glibc trims its heap by a threshold of twice the largest block it has unmapped so far (up to 32 MiB).
    Left to itself, a forward may return and fault in its activations once per layer, or may not: a
    tenth of the time on a CPU, by luck. Freeing one block just below the limit settles it.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)
