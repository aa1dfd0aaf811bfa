"""The processes of a training that runs on several devices; a single process is the common case.

Started by ``accelerate launch`` or ``torchrun``. Each process samples and learns on its own share; rewards
are gathered, gradients averaged before every update, and the first process's weights are everybody's.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Ranks:
    """``rank`` of ``count`` processes. All methods are plain copies when there is only one."""

    def __init__(self, device: torch.device) -> None:
        """Joins the group that the launcher's environment describes, if any."""
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
            from accelerate import PartialState

            PartialState(cpu=device.type == "cpu")
        together = dist.is_available() and dist.is_initialized()
        if together:
            _leave_at_exit()
        self.rank: int = dist.get_rank() if together else 0
        self.count: int = dist.get_world_size() if together else 1

    @property
    def first(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def share_weights(self, parameters: Iterable[Tensor]) -> None:
        """Everybody takes the first process's values."""
        if self.count > 1:
            for parameter in parameters:
                dist.broadcast(parameter.data, src=0)

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace every gradient by its mean over the processes, in one exchange per dtype."""
        if self.count == 1:
            return
        groups: dict[torch.dtype, list[Tensor]] = {}
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            groups.setdefault(parameter.grad.dtype, []).append(parameter.grad)
        for gradients in groups.values():
            flat = torch.cat([g.flatten() for g in gradients])
            dist.all_reduce(flat)
            flat /= self.count
            for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(mean.view_as(gradient))

    def mean(self, values: Tensor) -> Tensor:
        """The mean of ``values`` over the processes."""
        if self.count == 1:
            return values
        values = values.clone()
        dist.all_reduce(values)
        return values / self.count

    def gather(self, mine: Any) -> list[Any]:
        """Everybody's objects (CPU tensors, text, …), by rank."""
        if self.count == 1:
            return [mine]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, mine)
        return found

    def wait(self) -> None:
        """Until everybody is here."""
        if self.count > 1:
            dist.barrier()


@cache
def _leave_at_exit() -> None:
    """End the group before the interpreter goes: torn down with it, its threads may abort the process."""

    def leave() -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

    atexit.register(leave)
