"""Host peaks against real allocations; device figures against a stand-in driver."""

from __future__ import annotations

import mmap
import textwrap

import pytest

from bench.track import rss
from bench.track.memory import MemoryTracker
from bench.track.rss import RssPeak
from bench.workload import Missing

MIB = 2**20
A = "11111111-0000-0000-0000-00000000000a"
ONE = {"STANDIN_DEVICES": f"GPU-{A}=NVIDIA A100"}
DEVICE_FIGURES = ("alloc_peak_bytes", "reserved_peak_bytes", "nvml_process_bytes", "nvml_device_bytes")

needs_reset = pytest.mark.skipif(not rss._reset_mark(), reason="the peak mark cannot be reset on this system")


def touch(mebibytes: int) -> None:
    """Make pages resident and give them back to the system at once."""
    with mmap.mmap(-1, mebibytes * MIB) as pages:
        for offset in range(0, len(pages), 4096):
            pages[offset] = 1


@needs_reset
def test_peak_of_memory_that_was_freed_again():
    resident = rss._status_bytes("VmRSS")
    with MemoryTracker() as tracker:
        touch(200)  # pages of the system: an allocator may still hold some that other tests have freed
    peak = tracker.peaks["rss_peak_bytes"]
    assert 195 * MIB < peak - resident < 300 * MIB


@needs_reset
def test_an_earlier_peak_is_not_taken_for_ones_own():
    touch(200)
    with MemoryTracker() as first:
        touch(150)
    with MemoryTracker() as second:
        touch(50)
    assert first.peaks["rss_peak_bytes"] - second.peaks["rss_peak_bytes"] > 70 * MIB


@needs_reset
def test_snapshots_rise_within_a_region():
    with MemoryTracker() as tracker:
        touch(50)
        early = tracker.snapshot()["rss_peak_bytes"]
        touch(150)
        late = tracker.snapshot()["rss_peak_bytes"]
    assert late - early > 70 * MIB
    assert tracker.peaks["rss_peak_bytes"] >= late


def test_without_reset_only_a_new_peak_is_a_number(monkeypatch):
    monkeypatch.setattr(rss, "_reset_mark", lambda: False)
    below = RssPeak()
    assert "earlier peak" in below.read().reason
    mark = rss._mark()
    above = RssPeak()
    touch((mark - rss._status_bytes("VmRSS")) // MIB + 64)
    assert above.read() > mark


def test_getrusage_stands_in_where_proc_has_no_mark(monkeypatch):
    pytest.importorskip("resource")
    resident = rss._status_bytes("VmRSS") or 0
    monkeypatch.setattr(rss, "_status_bytes", lambda key: None)
    assert not rss._reset_mark()
    before = rss._mark()
    touch((before - resident) // MIB + 64)
    assert 30 * MIB < rss._mark() - before < 300 * MIB


def test_a_reset_without_effect_is_noticed(monkeypatch):
    sizes = {"VmHWM": 900 * MIB, "VmRSS": 100 * MIB}
    monkeypatch.setattr(rss, "_status_bytes", sizes.get)
    assert not rss._reset_mark()


def test_no_mark_at_all_is_a_reason(monkeypatch):
    monkeypatch.setattr(rss, "_mark", lambda: None)
    monkeypatch.setattr(rss, "_reset_mark", lambda: False)
    assert isinstance(RssPeak().read(), Missing)


def test_on_cpu_no_device_figure_is_given():
    with MemoryTracker("cpu") as tracker:
        pass
    for figure in DEVICE_FIGURES:
        assert "ran on cpu" in tracker.peaks[figure].reason


def test_peaks_are_kept_when_the_work_fails():
    tracker = MemoryTracker()
    with pytest.raises(MemoryError), tracker:
        raise MemoryError
    assert isinstance(tracker.peaks["rss_peak_bytes"], int | Missing)


def test_not_a_device():
    with pytest.raises(ValueError, match="not a device: 'cuda:first'"):
        MemoryTracker("cuda:first")


TRACK = f"""
cuda = pretend_cuda("{A}")
def device(used, processes):
    os.environ.update(STANDIN_MEMORY=f"{{used}} 1000 100000", STANDIN_PROCESSES=processes)
"""


def test_device_figures_add_up(ask):
    code = """
    device(700, "self=200,9=500")          # ours and a neighbour's, before the region
    tracker = MemoryTracker("cuda:0")
    with tracker:
        cuda.reserved = cuda.allocated = 3000
        device(3900, "self=3400,9=500")
        tracker.sample()
        cuda.reserved = 0
        device(800, "self=300,9=500")
    answer(tracker.peaks)
    """
    peaks = ask(TRACK + textwrap.dedent(code), **ONE)
    assert peaks["nvml_process_bytes"] == 3400, "the highest sample, not the last"
    assert peaks["nvml_device_bytes"] == 3400, "the neighbour's 500 and the driver's 1000 are not ours"


def test_device_growth_is_the_same_with_an_old_driver(ask_old):
    code = 'device(700, "9=700")\nt = MemoryTracker("cuda")\ndevice(1700, "9=700")\nanswer(t.snapshot())'
    peaks = ask_old(TRACK + code, **ONE)
    assert peaks["nvml_device_bytes"] == 1000
    assert "none under PID" in peaks["nvml_process_bytes"]["missing"]


@pytest.mark.parametrize("listed", ["", "9=700", "self=1"])
def test_memory_already_held_counts_as_ours(ask, listed):
    code = f'cuda.reserved = 600\ndevice(700, "{listed}")\nt = MemoryTracker("cuda")\nanswer(t.snapshot())'
    assert ask(TRACK + code, **ONE)["nvml_device_bytes"] == 600


def test_a_process_smaller_than_our_allocator_is_not_ours(ask):
    code = """
device(0, "")
t = MemoryTracker("cuda:0")
cuda.reserved = cuda.allocated = 3000
device(3500, "self=250")
answer(t.snapshot())
"""
    peaks = ask(TRACK + code, **ONE)
    assert "PIDs of another namespace" in peaks["nvml_process_bytes"]["missing"]
    assert peaks["nvml_device_bytes"] == 3500
    assert peaks["alloc_peak_bytes"] == 3000


def test_a_neighbour_that_freed_memory_spoils_the_growth(ask):
    code = """
device(5000, "9=5000")
t = MemoryTracker("cuda:0")
cuda.reserved = 3000
device(3500, "self=3500")
answer(t.snapshot())
"""
    peaks = ask(TRACK + code, **ONE)
    assert "other processes freed" in peaks["nvml_device_bytes"]["missing"]
    assert peaks["nvml_process_bytes"] == 3500


def test_a_device_that_nvml_does_not_know(ask):
    code = 'pretend_cuda("elsewhere")\nanswer(MemoryTracker("cuda").snapshot())'
    peaks = ask(code, **ONE)
    assert "no device with the UUID" in peaks["nvml_process_bytes"]["missing"]
    assert "no device with the UUID" in peaks["nvml_device_bytes"]["missing"]
    assert peaks["alloc_peak_bytes"] == 0, "the allocator needs no NVML"


def test_cuda_asked_for_where_there_is_none(ask):
    code = 'pretend_cuda().is_available = lambda: False\nanswer(MemoryTracker("cuda").snapshot())'
    peaks = ask(code, **ONE)
    assert all("sees no CUDA device" in peaks[figure]["missing"] for figure in DEVICE_FIGURES)


@pytest.mark.gpu
def test_on_a_real_gpu():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    tracker = MemoryTracker("cuda:0")
    with tracker:
        block = torch.ones(256 * MIB, dtype=torch.uint8, device="cuda:0")
        del block
    assert tracker.peaks["alloc_peak_bytes"] >= 256 * MIB
    assert tracker.peaks["reserved_peak_bytes"] >= 256 * MIB
    for figure in ("nvml_process_bytes", "nvml_device_bytes"):
        value = tracker.peaks[figure]
        assert isinstance(value, Missing) or value >= 256 * MIB
