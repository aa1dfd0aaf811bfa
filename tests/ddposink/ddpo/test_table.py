"""Denoising policies as tables: the invariants every kernel keeps, the papers' formulas, the library's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from ddposink.ddpo.table import flow_table, grid, shift_of
from ddposink.ddpo.window import FLOW, MOVES, STOCHASTIC, Window

steps_, shifts, etas = st.integers(2, 30), st.floats(0.2, 8), st.floats(0.01, 1)


@pytest.mark.parametrize(
    ("kernel", "eta", "step", "wanted"),
    [
        ("flow-sde", 0.7, 0, (0.75500, -0.03571, 0.70000)),
        ("flow-sde", 0.7, 9, (0.91833, -0.31125, 0.20207)),
        ("dance-sde", 0.3, 0, (0.99839, -0.03571, 0.05669)),
        ("cps", 0.8, 8, (0.82725, -0.27728, 0.23776)),
    ],
)
def test_known_values(kernel: str, eta: float, step: int, wanted: tuple[float, float, float]) -> None:
    """T = 10, shift 3."""
    times = grid(10, 3.0)
    assert times[[0, 1, 8, 9, 10]].tolist() == pytest.approx([1, 27 / 28, 3 / 7, 0.25, 0])
    table = flow_table(kernel, times, eta)
    found = [float(column[step]) for column in (table.a, table.b, table.s)]
    assert found == pytest.approx(wanted, abs=1e-5)


@given(st.sampled_from(FLOW), steps_, shifts, etas)
def test_the_datas_part_is_kept(kernel: str, steps: int, shift: float, eta: float) -> None:
    table = flow_table(kernel, grid(steps, shift), eta)
    t, later = table.times[:-1], table.times[1:]
    torch.testing.assert_close(table.a * (1 - t) - table.b, 1 - later)
    assert len(table) == steps


@given(st.sampled_from(FLOW), steps_, shifts)
def test_without_noise_it_is_eulers(kernel: str, steps: int, shift: float) -> None:
    ode, table = flow_table("ode", grid(steps, shift), 1.0), flow_table(kernel, grid(steps, shift), 0.0)
    for name in ("a", "b", "s"):
        torch.testing.assert_close(getattr(table, name), getattr(ode, name))


@given(steps_, shifts, etas)
def test_cps_keeps_the_noises_part(steps: int, shift: float, eta: float) -> None:
    table = flow_table("cps", grid(steps, shift), eta)
    t, later = table.times[:-1], table.times[1:]
    torch.testing.assert_close((table.a * t + table.b) ** 2 + table.s**2, later**2)
    assert table.s[-1] == 0


@given(st.sampled_from(STOCHASTIC), st.integers(3, 20), st.data())
def test_noise_only_inside_the_window(kernel: str, steps: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, steps - 1))
    moves, stride = data.draw(st.sampled_from(MOVES)), data.draw(st.integers(1, 3))
    window = Window(steps - 1, size, stride, data.draw(st.integers(1, 4)), moves, seed=3)
    ode = flow_table("ode", grid(steps), 1.0)
    for training_step in (0, 1, 7, 1000):
        noisy = window.at(training_step)
        assert noisy == window.at(training_step)
        assert len(noisy) == size
        assert 0 <= noisy[0] <= noisy[-1] < steps - 1
        table = flow_table(kernel, grid(steps), 0.5, noisy)
        assert (table.s > 0).nonzero().flatten().tolist() == list(noisy)
        outside = table.s == 0
        torch.testing.assert_close(table.b[outside], ode.b[outside])
        assert (table.a[outside] == 1).all()


def test_a_window_moves() -> None:
    slow = Window(9, 4, stride=2, every=3, moves="progressive")
    assert [slow.at(k)[0] for k in range(0, 15, 3)] == [0, 2, 4, 5, 5]
    assert slow.at(2) == slow.at(0)
    drawn = {Window(9, 4, moves="random").at(k)[0] for k in range(100)}
    assert drawn == set(range(6))
    assert {Window(9, 4, stride=2, moves="random").at(k)[0] for k in range(100)} == {0, 2, 4}
    assert Window(9, 4).at(77) == range(4)


@pytest.mark.parametrize("eta", [0.3, 0.7])
@pytest.mark.parametrize("kernel", ["flow-sde", "dance-sde"])
def test_an_sde_is_the_papers_formula(kernel: str, eta: float) -> None:
    """x + [v + σ²/(2t)·(x + (1−t)·v)]·Δ + σ·√|Δ|·u, written plainly."""
    times = grid(6, 2.0)
    table = flow_table(kernel, times, eta)
    x, v, u = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for i in range(6):
        t, change = times[i], times[i + 1] - times[i]
        sigma = eta * (t / (1 - (times[1] if i == 0 else t))) ** 0.5 if kernel == "flow-sde" else eta
        plain = x + (v + sigma**2 / (2 * t) * (x + (1 - t) * v)) * change + sigma * (-change) ** 0.5 * u
        torch.testing.assert_close(table.a[i] * x + table.b[i] * v + table.s[i] * u, plain)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_grid_and_eulers_steps_are_the_librarys_when_times_are_named(shift: float) -> None:
    steps = 10
    library = FlowMatchEulerDiscreteScheduler(shift=shift)
    library.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    times = grid(steps, shift)
    torch.testing.assert_close(library.sigmas.double(), times, atol=1e-6, rtol=0)
    torch.testing.assert_close(library.timesteps.double(), 1000 * times[:-1], atol=1e-3, rtol=0)
    table, generator = flow_table("ode", times, 1.0), torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, generator=generator)
    mine = x.double()
    for i, t in enumerate(library.timesteps):
        v = torch.randn(2, 3, generator=generator)
        x = library.step(v, t, x).prev_sample
        mine = table.a[i] * mine + table.b[i] * v
    torch.testing.assert_close(x.double(), mine, atol=1e-5, rtol=0)


def test_a_schedulers_shift() -> None:
    assert shift_of(FlowMatchEulerDiscreteScheduler(shift=3.0), 64) == 3.0
    dynamic = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    for tokens in (256, 1024, 4096):
        mu = 0.5 + 0.65 * (tokens - 256) / 3840
        dynamic.set_timesteps(sigmas=np.linspace(1, 1 / 8, 8), mu=mu)
        torch.testing.assert_close(
            dynamic.sigmas.double(), grid(8, shift_of(dynamic, tokens)), atol=1e-6, rtol=0
        )
    with pytest.raises(ValueError, match="use_karras_sigmas"):
        shift_of(FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True), 64)


def test_what_is_no_table() -> None:
    with pytest.raises(ValueError, match="'ddim' is no kernel of flow models"):
        flow_table("ddim", grid(4), 1.0)
    with pytest.raises(ValueError, match="3 to 5 are not within the 4"):
        flow_table("cps", grid(4), 1.0, range(3, 6))
