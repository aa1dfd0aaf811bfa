"""Noised latents and what is right to say of them: every kind of output means the same clean latents."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler

from ddposink.ddpo.algorithms.forward import ForwardProcess, drawn_times, forward_process
from ddposink.ddpo.algorithms.nft import loss, mixtures

CLEAN, NOISE = torch.randn(2, 5, 4, 3, 3, generator=torch.Generator().manual_seed(0)).unbind()
STEP = torch.tensor([0, 3, 1, 2, 0])


def ddim(prediction: str) -> tuple[DDIMScheduler, ForwardProcess]:
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", steps_offset=1, prediction_type=prediction)
    scheduler.set_timesteps(4)
    return scheduler, forward_process(scheduler, scheduler.timesteps, flow=False)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_noising_is_the_librarys(prediction: str) -> None:
    scheduler, process = ddim(prediction)
    times = scheduler.timesteps[STEP]
    noised = process.noised(STEP, CLEAN, NOISE)
    torch.testing.assert_close(noised, scheduler.add_noise(CLEAN, NOISE, times), atol=1e-5, rtol=1e-5)
    if prediction == "v_prediction":
        wanted = scheduler.get_velocity(CLEAN, NOISE, times)
        torch.testing.assert_close(process.target(STEP, CLEAN, NOISE), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample", "flow"])
def test_the_right_output_means_the_clean_latents(prediction: str) -> None:
    if prediction == "flow":
        process = forward_process(None, torch.tensor([1000.0, 800.0, 500.0, 100.0]), flow=True)
    else:
        _, process = ddim(prediction)
    noised = process.noised(STEP, CLEAN, NOISE)
    found = process.clean(STEP, noised, process.target(STEP, CLEAN, NOISE))
    torch.testing.assert_close(found, CLEAN, atol=2e-5, rtol=1e-4)


def test_nft_is_the_same_for_every_kind_of_output() -> None:
    """Two networks that mean the same clean latents have the same loss, whatever they say."""
    trained, old = torch.randn(2, *CLEAN.shape, generator=torch.Generator().manual_seed(1)).unbind()
    good, found = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0]), []
    for prediction in ("epsilon", "v_prediction", "sample"):
        _, process = ddim(prediction)
        noised = process.noised(STEP, CLEAN, NOISE)
        said = [_saying(process, noised, clean) for clean in (trained, old)]
        found.append(loss(process, STEP, noised, CLEAN, *said, good, 0.7))
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[2], found[0], atol=1e-4, rtol=1e-4)


def _saying(process: ForwardProcess, noised: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """The output that means ``clean``."""
    c, d = (table[STEP].view(-1, 1, 1, 1) for table in (process.of_latents, process.of_output))
    return (clean - c * noised) / d


@pytest.mark.parametrize("beta", [0.1, 1.0, 3.0])
def test_the_mixtures_average_to_the_old_policy(beta: float) -> None:
    positive, negative = mixtures(CLEAN, NOISE, beta)
    torch.testing.assert_close((positive + negative) / 2, NOISE)
    torch.testing.assert_close((positive - negative) / 2, beta * (CLEAN - NOISE))


def test_a_sample_is_noised_at_different_times() -> None:
    times = drawn_times(50, 3, 5, torch.device("cpu"))
    assert times.shape == (50, 3)
    assert set(times.flatten().tolist()) == set(range(5))
    assert all(len(set(row)) == 3 for row in times.tolist())
