"""Memory of a measured region, seen by four witnesses that must not contradict each other.

=========================  =====================================================================
``alloc_peak_bytes``       peak of the tensors alive in torch's allocator; exact
``reserved_peak_bytes``    peak of what that allocator took from the device
``nvml_process_bytes``     what the driver says this process holds: reserved + context + libraries
``nvml_device_bytes``      growth of the whole device's use, driver-reserved memory excluded
``rss_peak_bytes``         peak resident *host* memory; never to be shown as device memory
=========================  =====================================================================

The allocator and the kernel keep peaks themselves. NVML only knows the present, so its numbers are
the highest of the samples taken; because torch keeps what it has reserved, a sample at the end of a
region (without ``empty_cache`` before it) misses nothing that the allocator held.

A driver's number below what our own allocator holds at that moment cannot be about this process
alone (host PIDs in a container, a neighbour that freed memory) and becomes `Missing`.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

from bench.track import nvml, split_device
from bench.track.rss import RssPeak
from bench.workload import Missing

MemoryPeaks = dict[str, int | Missing]


class MemoryTracker:
    """Peaks since the ``with`` began, each ``int | Missing``, in bytes.

    ``nvml_device_bytes`` counts from *construction*, and what torch holds then counts as ours: make
    the tracker before the model is loaded so that the CUDA context is covered too. The other numbers
    are absolute, restarted by ``with`` or `restart`. `snapshot` may be called at any time, e.g.
    whenever a pass crosses a length of interest; after the ``with``, ``peaks`` holds the last one.
    """

    peaks: MemoryPeaks

    def __init__(self, device: object = "cpu") -> None:
        self.device = device
        self._cuda = _cuda_of(device)
        self._gpu = nvml.find(device) if not isinstance(self._cuda, Missing) else self._cuda
        self._rss = RssPeak()
        self._neighbours = self._used_by_others()
        self.restart()

    def restart(self) -> None:
        """Forget the peaks so far."""
        self._process: int | Missing = Missing("not sampled")
        self._grown: int | Missing = Missing("not sampled")
        if not isinstance(self._cuda, Missing):
            self._cuda.reset_peak_memory_stats(self.device)
        self._rss.restart()

    def sample(self) -> None:
        """Look at the driver's numbers now; the highest look counts. Cheap (two NVML queries)."""
        if isinstance(self._gpu, Missing):
            self._process = self._grown = self._gpu
            return
        held = self._held()
        self._process = _higher(
            self._process,
            self._gpu.process_bytes(),
            held,
            "the process that NVML lists under our PID is another one (PIDs of another namespace)",
        )
        memory = self._gpu.memory()
        grown: int | Missing
        if isinstance(memory, Missing) or isinstance(self._neighbours, Missing):
            grown = memory if isinstance(memory, Missing) else self._neighbours
        else:
            grown = memory.used - self._neighbours
        self._grown = _higher(self._grown, grown, held, "other processes freed device memory meanwhile")

    def snapshot(self) -> MemoryPeaks:
        """Sample, then return all five numbers."""
        self.sample()
        return {
            "alloc_peak_bytes": self._allocator("max_memory_allocated"),
            "reserved_peak_bytes": self._allocator("max_memory_reserved"),
            "nvml_process_bytes": self._process,
            "nvml_device_bytes": self._grown,
            "rss_peak_bytes": self._rss.read(),
        }

    def __enter__(self) -> MemoryTracker:
        self.restart()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.peaks = self.snapshot()

    def _allocator(self, figure: str) -> int | Missing:
        """One of the allocator's figures, by its name in `torch.cuda`."""
        if isinstance(self._cuda, Missing):
            return self._cuda
        return int(getattr(self._cuda, figure)(self.device))

    def _held(self) -> int:
        """Bytes that torch's allocator holds on the device now."""
        held = self._allocator("memory_reserved")
        return 0 if isinstance(held, Missing) else held

    def _used_by_others(self) -> int | Missing:
        """Device memory in use that is not ours: the zero line of ``nvml_device_bytes``."""
        if isinstance(self._gpu, Missing):
            return self._gpu
        memory, own, held = self._gpu.memory(), self._gpu.process_bytes(), self._held()
        if isinstance(memory, Missing):
            return memory
        return memory.used - (held if isinstance(own, Missing) else max(own, held))


def _cuda_of(device: object) -> Any | Missing:
    """The `torch.cuda` module, or why there is no allocator to ask."""
    kind, _ = split_device(device)
    if kind != "cuda":
        return Missing(f"no device memory: ran on {kind}, host memory is rss_peak_bytes")
    try:
        import torch
    except ImportError:
        return Missing("torch is not installed")
    if not torch.cuda.is_available():
        return Missing("torch sees no CUDA device")
    torch.cuda.init()
    return torch.cuda


def _higher(seen: int | Missing, now: int | Missing, held: int, implausible: str) -> int | Missing:
    """The higher of two samples; a sample below ``held`` is none, and any number beats a reason."""
    if isinstance(now, int) and now < held:
        now = Missing(f"NVML shows {now} bytes where torch's allocator holds {held}: {implausible}")
    if isinstance(seen, int) and isinstance(now, int):
        return max(seen, now)
    return seen if isinstance(seen, int) else now
