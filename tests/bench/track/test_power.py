"""The energy meter against a stand-in counter."""

from __future__ import annotations

import pytest

from bench.track.power import EnergyMeter
from bench.workload import Missing

A = "11111111-0000-0000-0000-00000000000a"
ONE = {"STANDIN_DEVICES": f"GPU-{A}=NVIDIA A100"}
METER = f"cuda = pretend_cuda('{A}')\nmeter = EnergyMeter('cuda:0', min_seconds=0)\n"


def run(after: str) -> str:
    body = (
        f"    os.environ['STANDIN_ENERGY'] = '{after}'\n"
        if after
        else "    del os.environ['STANDIN_ENERGY']\n"
    )
    return METER + "with meter:\n" + body + "answer([meter.joules, cuda.waits])"


def test_joules_are_a_difference_of_the_counter(ask):
    joules, waits = ask(run("9500"), STANDIN_ENERGY="2000", **ONE)
    assert joules == 7.5
    assert waits == 2, "queued work must be done before the counter is read"


@pytest.mark.parametrize(
    ("after", "reason"), [("2000", "from 2 J to 2 J"), ("10", "from 2 J to 0.01 J"), ("", "Not Supported")]
)
def test_a_counter_that_cannot_be_believed(ask, after, reason):
    joules, _ = ask(run(after), STANDIN_ENERGY="2000", **ONE)
    assert reason in joules["missing"]


def test_no_counter(ask):
    joules, _ = ask(run("9500"), **ONE)
    assert "Not Supported" in joules["missing"]


def test_a_region_shorter_than_the_counters_rhythm(ask):
    code = run("9500").replace("min_seconds=0", "min_seconds=30")
    joules, _ = ask(code, STANDIN_ENERGY="2000", **ONE)
    assert "too short" in joules["missing"]


def test_failed_work_has_no_energy():
    meter = EnergyMeter("cpu")
    with pytest.raises(ZeroDivisionError), meter:
        raise ZeroDivisionError
    assert "ZeroDivisionError" in meter.joules.reason


def test_cpu_has_no_counter():
    meter = EnergyMeter("cpu", min_seconds=0)
    with meter:
        pass
    assert isinstance(meter.joules, Missing)
    assert "cpu" in meter.joules.reason


@pytest.mark.gpu
def test_on_a_real_gpu():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    meter = EnergyMeter("cuda:0")
    matrix = torch.randn(4096, 4096, device="cuda:0")
    with meter:
        for _ in range(2000):
            matrix = torch.nn.functional.normalize(matrix @ matrix)
            torch.cuda.synchronize()
    assert isinstance(meter.joules, Missing) or 1 < meter.joules / meter.seconds < 2000, "watts"
