"""The plan's number of forwards against the network's own count, in real trainings by all there is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ddposink.ddpo import DDPOConfig, make_engine
from ddposink.ddpo.costs import samples_measured
from ddposink.ddpo.reference import evenly
from ddposink.workloads.ddpo import DdpoParams, DdpoWorkload
from helpers.tiny import brightness, tiny_pipeline
from helpers.tiny_flow import tiny_flux, tiny_sd3, tiny_sdxl

SHAPE: dict[str, Any] = {
    "reward": "brisque", "sample_num_steps": 4, "sample_batch_size": 4, "sample_num_batches_per_epoch": 2,
    "train_batch_size": 4, "samples_per_prompt": 2, "train_timestep_fraction": 0.6, "threads": 1,
    "mixed_precision": "no",
}  # fmt: skip
KERNELS = ("flow-sde", "dance-sde", "cps")
CASES: dict[str, dict[str, Any]] = {
    "ddim": {"sample_guidance_scale": 2.0, "train_num_inner_epochs": 2},
    "ddim at guidance 1": {"sample_guidance_scale": 1.0},
    "ddim, a KL term": {"kl_beta": 0.1, "train_skip_last_steps": 1},
    "ddim, KL measured": {"measure_kl": 0.3},
    "ddim, the graph kept": {
        "keep_sampling_graph": True, "train_timestep_fraction": 1.0, "sample_num_batches_per_epoch": 1,
        "sample_guidance_scale": 1.0,
    },
    "ddim, all weights": {"use_lora": False, "measure_kl": 1.0},
    **{kernel: {"sample_kernel": kernel, "sample_eta": 0.5} for kernel in KERNELS},
    "flow-sde in a window": {"sample_kernel": "flow-sde", "sample_sde_window": 2, "measure_kl": 0.5},
    "flow-sde at guidance 1": {"sample_kernel": "flow-sde", "sample_guidance_scale": 1.0, "kl_beta": 0.1},
    **{
        f"{algorithm} by {kernel}": {"algorithm": algorithm, "sample_kernel": kernel, "draft_steps": 2}
        for algorithm in ("nft", "dpo", "draft")
        for kernel in ("ddim", "ode", "flow-sde")
    },
    "the peer": {"engine": "trl", "train_num_inner_epochs": 2},
    "SDXL": {"pipeline": "random:sdxl"},
    "Flux": {"pipeline": "random:flux-dev", "sample_kernel": "flow-sde", "measure_kl": 0.5},
}  # fmt: skip
TINY: dict[str, Callable[[], Any]] = {
    "emoji-sd": tiny_pipeline, "emoji-sd3": tiny_sd3, "random:sdxl": tiny_sdxl, "random:flux-dev": tiny_flux,
}  # fmt: skip


@pytest.mark.parametrize(
    ("share", "of", "asked"),
    [(0.07, 100, 7), (0.28, 25, 7), (0.3, 4, 2), (1e-12, 4, 1), (0.0, 4, 0), (1.0, 4, 4)],
)
def test_a_share_of_the_samples_is_rounded_up_and_not_beyond_it(share: float, of: int, asked: int) -> None:
    shape = {"sample_batch_size": of, "sample_num_batches_per_epoch": 1, "train_batch_size": 1}
    config = DDPOConfig(measure_kl=share, **shape)  # type: ignore[arg-type]
    assert samples_measured(config) == len(evenly(samples_measured(config), of)) == asked


def counted(pipeline: Any) -> list[int]:
    """Rows that the network is asked for, one with a gradient three times: its backward is two more."""
    asked: list[int] = []

    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        latents = args[0] if args else kwargs["hidden_states"]
        asked.append(len(latents) * (3 if torch.is_grad_enabled() else 1))

    network = getattr(pipeline, "unet", None) or pipeline.transformer
    network.register_forward_pre_hook(hook, with_kwargs=True)
    return asked


@pytest.mark.parametrize("case", CASES)
def test_a_step_costs_what_the_plan_and_the_log_say(case: str) -> None:
    values = SHAPE | CASES[case]
    flow = values.get("sample_kernel", "ddim") != "ddim"
    values.setdefault("pipeline", "emoji-sd3" if flow else "emoji-sd")
    base, planned = (DdpoParams(**values, steps=steps) for steps in (0, 1))
    pipeline = TINY[values["pipeline"]]()
    asked = counted(pipeline)
    one = make_engine(planned.config(seed=0), pipeline, brightness, ["cat", "dog"])
    asked.clear()
    (log,) = one.run(1)
    assert log.unet_forwards == sum(asked)
    assert DdpoWorkload().cost(planned).amount - DdpoWorkload().cost(base).amount == sum(asked)
