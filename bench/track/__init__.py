"""Measuring instruments, one question each: memory, time, energy, work.

Each instrument belongs to its own repetition of the measured work, so that none disturbs another:
counting operators slows a step down, synchronising for energy hides overlap, and so on. What cannot
be measured comes back as `bench.workload.Missing` with the reason, never as zero and never as an
exception. Trackers never print. Nothing here imports torch before a device has to be touched.
"""

from __future__ import annotations


def split_device(device: object) -> tuple[str, int | None]:
    """``"cuda:1"`` → ``("cuda", 1)``, ``"cpu"`` → ``("cpu", None)``; takes a `torch.device` as well.

    Raises ValueError when what follows the colon is not an index.
    """
    kind, colon, index = str(device).partition(":")
    if not kind or (colon and not index.isdigit()):
        raise ValueError(f"not a device: {str(device)!r} (expected e.g. cpu, cuda or cuda:1)")
    return kind, int(index) if colon else None


def wait_for(device: object) -> None:
    """Block until everything queued on a CUDA device has run; nothing to wait for on a CPU."""
    if split_device(device)[0] == "cuda":
        import torch

        torch.cuda.synchronize(device)
