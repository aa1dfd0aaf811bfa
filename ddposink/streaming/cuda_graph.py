"""Record a decode step once and replay it for every token.

At batch 1 a step of a 7B model is two thousand small kernels; starting them one by one from Python takes
several times longer than the memory traffic that bounds them. A CUDA graph starts them all at once. It
replays the very same operators on the very same addresses, so a step may depend on the token only
through tensors that lie still: the token ids, the number of tokens fed, and the ring of keys and values.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# (ids (B, 1), tokens fed so far as a scalar) -> hidden states (B, d)
Advance = Callable[[Tensor, Tensor], Tensor]
WARM_UP = 2  # steps before a recording: they choose kernels, allocate workspaces, and compile


class CannotRecordError(RuntimeError):
    """This step cannot be recorded as a CUDA graph; the message says why."""


class CapturedStep:
    """``advance`` on tensors that lie still: a CUDA graph, or on a CPU the function itself, run again.

    ``undo`` puts back what a trial step has written to the ring. Raises CannotRecordError where a step
    needs the host: a size that depends on data, a copy from pageable memory.
    """

    def __init__(self, advance: Advance, ids: Tensor, seen: int, undo: Callable[[], None]) -> None:
        self.ids = ids.clone()
        self.seen = torch.full((), seen, device=ids.device)
        self.hidden: Tensor
        self._advance = advance
        self._replay = self._record(undo) if ids.device.type == "cuda" else self._again

    def __call__(self, ids: Tensor, seen: int) -> Tensor:
        """Hidden states (B, d) of the next tokens ``ids`` (B, 1) after ``seen`` others."""
        self.ids.copy_(ids)
        self.seen.fill_(seen)
        self._replay()
        return self.hidden.clone()  # the next replay writes over its own output

    def _again(self) -> None:
        self.hidden = self._advance(self.ids, self.seen)

    def _record(self, undo: Callable[[], None]) -> Callable[[], None]:
        device = self.ids.device
        with torch.cuda.device(device):
            here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
            aside.wait_stream(here)
            with torch.cuda.stream(aside):
                for _ in range(WARM_UP):
                    self._again()
                    undo()
            here.wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph):
                    self._again()
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                reason = (str(error).strip().splitlines() or ["no reason given"])[0]
                raise CannotRecordError(f"the step cannot be recorded as a CUDA graph: {reason}") from error
        return graph.replay


def fused(advance: Advance) -> Advance:
    """``advance`` compiled as one piece: many small operators become a few kernels."""
    return torch.compile(advance, fullgraph=True, dynamic=False)
