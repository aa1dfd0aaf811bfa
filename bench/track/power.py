"""Energy of a measured region: the difference of a counter, never an integral of sampled power.

The GPU counts millijoules itself, so nothing has to run beside the measured work and no short peak
is missed. The counter moves every 0.02–0.1 s, depending on the GPU: a region has to be much longer
than that. It counts the whole GPU, neighbours and idle power included.
"""

from __future__ import annotations

import time
from types import TracebackType

from bench.track import nvml, wait_for
from bench.workload import Missing


class EnergyMeter:
    """Joules used by the device of ``with``'s body; afterwards ``joules`` is a float or `Missing`.

    ``min_seconds``: the shortest region that is believed; 1 s bounds the counter's granularity to a
    tenth of the result in the worst case. ``seconds`` is the region's duration.
    """

    def __init__(self, device: object = "cpu", *, min_seconds: float = 1.0) -> None:
        self.device = device
        self.min_seconds = min_seconds
        self.seconds = 0.0
        self.joules: float | Missing = Missing("the energy meter has not been run")
        self._gpu = nvml.find(device)

    def __enter__(self) -> EnergyMeter:
        self._before = self._read()
        self._started = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.joules = Missing(f"the measured work failed with {kind.__name__}")
            return
        self.joules = self.so_far()

    def so_far(self) -> float | Missing:
        """Joules since the ``with`` began."""
        after = self._read()
        self.seconds = time.perf_counter() - self._started
        return self._difference(self._before, after)

    def _read(self) -> float | Missing:
        """The counter, once all queued work is done."""
        if isinstance(self._gpu, Missing):
            return self._gpu
        wait_for(self.device)
        return self._gpu.energy_joules()

    def _difference(self, before: float | Missing, after: float | Missing) -> float | Missing:
        if isinstance(before, Missing):
            return before
        if isinstance(after, Missing):
            return after
        if self.seconds < self.min_seconds:
            return Missing(
                f"{self.seconds:.3f} s is too short for the energy counter (needs {self.min_seconds:g} s)"
            )
        if after <= before:
            return Missing(f"the energy counter went from {before:g} J to {after:g} J")
        return after - before
