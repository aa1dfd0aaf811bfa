"""NVML, the driver's own view of a GPU. The only place where `pynvml` is touched.

The allocator knows what torch asked for; only the driver knows what that really took (contexts,
libraries, fragmentation) and what the whole device holds. Its answers have well-known traps, which
are dealt with here once:

- NVML's index order ignores CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER: devices are matched by UUID.
- On a MIG instance the parent's numbers are the whole card's: the instance's own handle is used, or
  the answer is `Missing`.
- Version 1 of the memory query counts driver-reserved memory as used; version 2 does not.
- Containers hide processes or list them under the host's PIDs; drivers answer "N/A".

Every query returns its value or `Missing(reason)`; no NVML error leaves this module.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from bench.track import split_device
from bench.workload import Missing

P = ParamSpec("P")
T = TypeVar("T")

_NOT_AVAILABLE = 2**64 - 1  # NVML_VALUE_NOT_AVAILABLE as it arrives in a 64-bit field
_NO_PROCESS_MEMORY = "NVML lists the process but answers N/A for its memory"


def _query(question: str) -> Callable[[Callable[P, T | Missing]], Callable[P, T | Missing]]:
    """Turn NVML's exceptions (GPU lost, not supported, no permission, …) into `Missing`."""

    def decorate(function: Callable[P, T | Missing]) -> Callable[P, T | Missing]:
        @functools.wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> T | Missing:
            reason = _start(os.getpid())
            if reason is not None:
                return Missing(reason)
            import pynvml

            try:
                return function(*args, **kwargs)
            except pynvml.NVMLError as error:
                return Missing(f"NVML {question}: {error}")

        return guarded

    return decorate


@functools.lru_cache(maxsize=1)  # keyed by process: NVML's state does not survive a fork
def _start(pid: int) -> str | None:
    """Load and initialise the library; the reason when that cannot be."""
    try:
        import pynvml
    except ImportError:
        return "the Python package nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return f"NVML could not be started: {error}"
    return None


@dataclass(frozen=True)
class Memory:
    """Memory of a device or MIG instance, in bytes.

    ``used`` leaves out ``reserved`` (taken by driver and firmware) unless the driver only speaks
    version 1 of the query: then ``reserved`` is Missing and ``used`` includes it.
    """

    used: int
    reserved: int | Missing
    total: int


@dataclass(frozen=True)
class Process:
    """A compute process as the driver lists it; ``used`` in bytes."""

    pid: int
    used: int | Missing


@dataclass(frozen=True)
class Gpu:
    """One device, or one MIG instance (``mig``), with a live NVML handle."""

    handle: Any
    uuid: str
    name: str
    mig: bool = False

    @_query("memory")
    def memory(self) -> Memory | Missing:
        """Bytes used, reserved and in total at this moment."""
        import pynvml

        reserved: int | Missing
        try:
            info = pynvml.nvmlDeviceGetMemoryInfo(self.handle, version=pynvml.nvmlMemory_v2)
            reserved = int(info.reserved)
        except (
            pynvml.NVMLError_FunctionNotFound,
            pynvml.NVMLError_ArgumentVersionMismatch,
            pynvml.NVMLError_NotSupported,
        ):
            info = pynvml.nvmlDeviceGetMemoryInfo(self.handle)
            reserved = Missing("the driver is too old to tell reserved from used memory")
        if _NOT_AVAILABLE in (info.used, info.total):
            return Missing("NVML memory: the driver answers N/A")
        return Memory(int(info.used), reserved, int(info.total))

    @_query("processes")
    def processes(self) -> list[Process] | Missing:
        """Compute processes on the device, under whatever PIDs the driver shows."""
        import pynvml

        listed = pynvml.nvmlDeviceGetComputeRunningProcesses_v3(self.handle)
        absent = Missing(_NO_PROCESS_MEMORY)
        return [Process(p.pid, absent if p.usedGpuMemory is None else int(p.usedGpuMemory)) for p in listed]

    def process_bytes(self, pid: int | None = None) -> int | Missing:
        """Bytes that process ``pid`` (default: this one) holds on the device.

        A container with a PID namespace of its own can make another process appear under our PID:
        compare with what the allocator holds before believing it (`MemoryTracker` does).
        """
        listed = self.processes()
        if isinstance(listed, Missing):
            return listed
        if not listed:
            return Missing("NVML lists no process: none has used the device yet, or a container hides them")
        wanted = own_pids() if pid is None else {pid}
        found = [process.used for process in listed if process.pid in wanted]
        if not found:
            pids = ", ".join(str(p) for p in sorted(wanted))
            return Missing(
                f"NVML lists {len(listed)} process(es), none under PID {pids}: "
                "not on this device yet, or in a container with PIDs of its own"
            )
        known = [used for used in found if isinstance(used, int)]
        return sum(known) if len(known) == len(found) else Missing(_NO_PROCESS_MEMORY)

    @_query("energy")
    def energy_joules(self) -> float | Missing:
        """Energy used since the driver was loaded, in joules: a counter, meant for differences."""
        import pynvml

        if self.mig:
            return Missing("energy is counted per GPU, which MIG instances share")
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(self.handle)) / 1000


def own_pids() -> set[int]:
    """This process's PID, and those it has in outer namespaces as far as /proc shows them."""
    pids = {os.getpid()}
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return pids
    for line in status.splitlines():
        if line.startswith("NSpid:"):
            pids.update(int(pid) for pid in line.split()[1:])
    return pids


@_query("driver version")
def driver_version() -> str | Missing:
    """Version of the NVIDIA driver, e.g. ``580.65.06``."""
    import pynvml

    return str(pynvml.nvmlSystemGetDriverVersion())


@_query("devices")
def devices() -> list[Gpu] | Missing:
    """All physical GPUs in NVML's order (not torch's: use `find` for a torch device). Torch-free."""
    import pynvml

    count = pynvml.nvmlDeviceGetCount()
    return [_gpu(pynvml.nvmlDeviceGetHandleByIndex(index)) for index in range(count)]


def find(device: object) -> Gpu | Missing:
    """The NVML side of a torch device such as ``"cuda:0"``, matched by UUID."""
    kind, index = split_device(device)
    if kind != "cuda":
        return Missing(f"NVML knows NVIDIA GPUs only, this ran on {kind}")
    try:
        import torch

        index = torch.cuda.current_device() if index is None else index
        uuid = str(torch.cuda.get_device_properties(index).uuid)
    except (ImportError, AttributeError, RuntimeError, AssertionError) as error:
        return Missing(f"torch does not show the UUID of {device}: {str(error).splitlines()[0]}")
    return find_uuid(uuid, _visible_mig(index))


@_query("device")
def find_uuid(uuid: str, mig_uuid: str | None = None) -> Gpu | Missing:
    """The device with this UUID, in any of its forms (``GPU-…``, ``MIG-…`` or bare).

    ``mig_uuid`` names the MIG instance where ``uuid`` may be the parent's, as CUDA reports it with
    some drivers. Missing when the device is partitioned and the instance cannot be told.
    """
    bare = uuid.removeprefix("GPU-").removeprefix("MIG-")
    for name in filter(None, (mig_uuid, f"GPU-{bare}", f"MIG-{bare}")):
        gpu = _by_uuid(name)
        if gpu is None:
            continue
        instances = None if gpu.mig else _mig_instances(gpu.handle)
        if instances is None:
            return gpu
        if len(instances) == 1:
            return instances[0]
        return Missing(f"{len(instances)} MIG instances on {name}: cannot tell which one is used")
    return Missing(f"NVML knows no device with the UUID {uuid}")


def _by_uuid(uuid: str) -> Gpu | None:
    import pynvml

    try:
        return _gpu(pynvml.nvmlDeviceGetHandleByUUID(uuid), mig=uuid.startswith("MIG-"))
    except (pynvml.NVMLError_NotFound, pynvml.NVMLError_InvalidArgument):
        return None


def _gpu(handle: Any, mig: bool = False) -> Gpu:
    import pynvml

    return Gpu(handle, str(pynvml.nvmlDeviceGetUUID(handle)), str(pynvml.nvmlDeviceGetName(handle)), mig)


def _mig_instances(handle: Any) -> list[Gpu] | None:
    """The instances of a partitioned GPU; None where MIG is off or unknown to the device."""
    import pynvml

    try:
        current, _pending = pynvml.nvmlDeviceGetMigMode(handle)
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
        return None
    if current != pynvml.NVML_DEVICE_MIG_ENABLE:
        return None
    instances = []
    for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            instances.append(_gpu(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index), mig=True))
        except pynvml.NVMLError_NotFound:
            continue
    return instances


def _visible_mig(index: int) -> str | None:
    """The MIG instance that CUDA_VISIBLE_DEVICES puts at this index, if it names one there."""
    entries = [entry.strip() for entry in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return entries[index] if index < len(entries) and entries[index].startswith("MIG-") else None
