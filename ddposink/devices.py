"""The device that was asked for, or why it cannot be had; and what the C library does on a CPU."""

from __future__ import annotations

from functools import cache

import torch

from ddposink.errors import Unavailable


def chosen_device(name: str) -> torch.device:
    """The device a suite asks for; ``auto`` is CUDA where there is any. Raises Unavailable without CUDA."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise Unavailable(f"device '{name}': no CUDA device on this machine")
    return torch.device(name)


def check_device(device: str) -> None:
    """Raise ValueError for what names no device, Unavailable for one that this machine has not."""
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device '{device}' is unknown: cpu, cuda or cuda:N") from error
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise Unavailable(f"device '{device}': this machine, or this build of torch, has no CUDA; use cpu")
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise Unavailable(
            f"device '{device}': there are only {torch.cuda.device_count()} here, from cuda:0 on"
        )


@cache
def keep_freed_pages() -> None:
    """Let the C library keep activations' memory between layers instead of giving it back to the kernel.

    glibc trims its heap by a threshold of twice the largest block it has unmapped so far (up to 32 MiB).
    Left to itself, a forward may return and fault in its activations once per layer, or may not: a
    tenth of the time on a CPU, by luck. Freeing one block just below the limit settles it.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)
