"""The configuration: TRL's fields and defaults, and one clear line for everything that cannot be."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddposink.ddpo import DDPOConfig
from ddposink.ddpo.layout import make_layout


def defaults(cls: type) -> dict[str, Any]:
    return {
        f.name: f.default_factory()
        if f.default is MISSING and f.default_factory is not MISSING
        else f.default
        for f in fields(cls)
    }


def test_trl_names_and_defaults() -> None:
    from trl import DDPOConfig as Theirs

    ours, theirs = defaults(DDPOConfig), defaults(Theirs)
    del theirs["exp_name"]  # the script's name, which TRL cuts at a fixed length
    assert {name: ours.get(name, "missing") for name in theirs} == theirs
    assert "exp_name" in ours


def test_defaults_are_valid_and_json() -> None:
    config = DDPOConfig()
    assert DDPOConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert (config.samples_per_epoch, config.updates_per_epoch, config.num_train_timesteps) == (2, 2, 50)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"sample_num_steps": 0}, "at least 2, not 0"),
        ({"sample_num_steps": 1}, "at least 2, not 1"),
        ({"sample_num_steps": 2.5}, "whole number"),
        ({"sample_eta": 0.0}, "log-probability of a deterministic step is undefined; use eta 1.0"),
        ({"sample_eta": -1.0}, r"lie in \(0, 1\]"),
        ({"sample_guidance_scale": 0.5}, "at least 1"),
        ({"sample_guidance_scale": float("nan")}, "at least 1"),
        ({"train_learning_rate": -1e-3}, "train_learning_rate must be a positive number, not -0.001"),
        ({"train_learning_rate": float("inf")}, "positive"),
        ({"train_learning_rate": "1e-3"}, "positive number, not '1e-3'"),
        ({"train_timestep_fraction": 0.0}, "train_timestep_fraction"),
        ({"train_timestep_fraction": 0.01}, "use at least 0.02"),
        ({"train_adam_beta2": 1.0}, "train_adam_beta2"),
        ({"engine": "nativ"}, "did you mean 'native'"),
        ({"loss": "ppo"}, "loss 'ppo' is unknown"),
        ({"use_lora": "no"}, "use_lora must be true or false, not 'no'"),
        ({"merge_lora": "no"}, "merge_lora must be true or false, not 'no'"),
        ({"train_cfg": 1}, "train_cfg must be true or false, not 1"),
        ({"engine": "trl", "loss": "sf"}, "use engine 'native'"),
        ({"mixed_precision": "fp32"}, "no, fp16, bf16"),
        ({"seed": -1}, "seed"),
        ({"threads": 0}, "threads"),
        ({"lora_rank": 0}, "lora_rank"),
        ({"advantage_epsilon": 0.0}, "advantage_epsilon"),
        ({"per_prompt_stat_tracking_min_count": 32}, "would never be used"),
        ({"train_batch_size": 2}, "does not divide sample_batch_size 1; nearest valid: 1"),
        ({"sample_batch_size": 12, "train_batch_size": 5}, "nearest valid: 4 or 6"),
        (
            {
                "sample_batch_size": 6,
                "sample_num_batches_per_epoch": 2,
                "train_gradient_accumulation_steps": 5,
            },
            r"12 samples an epoch \(6 x 2\) do not split into updates of 5 .*: 4 or 6",
        ),
        ({"sample_batch_size": 12, "samples_per_prompt": 5}, "samples_per_prompt 5 .*: 4 or 6"),
        ({"share_initial_noise": True}, "samples_per_prompt of at least 2"),
        ({"keep_sampling_graph": True}, "exactly one update per step"),
    ],
)
def test_one_clear_line(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        DDPOConfig(**values)
    assert "\n" not in str(caught.value)


def test_unknown_field() -> None:
    with pytest.raises(ValueError, match=r"'train_lerning_rate' \(did you mean 'train_learning_rate'\?\)"):
        DDPOConfig.from_dict({"train_lerning_rate": 1e-3})


@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 12), st.integers(1, 12))
def test_batch_arithmetic_is_trls(sample: int, batches: int, train: int, accumulation: int) -> None:
    theirs = sample >= train and sample % train == 0 and sample * batches % (train * accumulation) == 0
    values: dict[str, Any] = {
        "sample_batch_size": sample,
        "sample_num_batches_per_epoch": batches,
        "train_batch_size": train,
        "train_gradient_accumulation_steps": accumulation,
    }
    if theirs:
        assert DDPOConfig(**values).updates_per_epoch * train * accumulation == sample * batches
    else:
        with pytest.raises(ValueError, match="nearest valid"):
            DDPOConfig(**values)


def test_negative_prompts_are_split_at_commas() -> None:
    assert DDPOConfig().negatives == [""]
    assert DDPOConfig(negative_prompts="dull, dark").negatives == ["dull", "dark"]
    assert DDPOConfig(negative_prompts="dull, dark", split_negative_prompts=False).negatives == ["dull, dark"]


def test_trls_default_precision_means_fp32_on_a_cpu() -> None:
    assert [DDPOConfig().precision_on(device) for device in ("cpu", "cuda")] == ["no", "fp16"]
    assert DDPOConfig(mixed_precision="bf16").precision_on("cpu") == "bf16"


def test_layout() -> None:
    small = DDPOConfig(sample_batch_size=8, sample_num_batches_per_epoch=4, train_batch_size=4)
    assert make_layout(small, 8 * 8).learning == 16
    assert make_layout(small, 8 * 8).sampling == 32  # all there is
    assert make_layout(small, 64 * 64) == make_layout(
        DDPOConfig(**small.to_dict() | {"compile": True}), 64 * 64
    )
    assert (make_layout(small, 64 * 64).learning, make_layout(small, 64 * 64).sampling) == (4, 8)  # as TRL
    flow = DDPOConfig(**small.to_dict() | {"sample_kernel": "flow-sde"})
    assert [make_layout(flow, n).learning for n in (8 * 8, 64 * 64)] == [8, 1]  # whatever the batch
    assert make_layout(flow, 8 * 8, "cuda") == make_layout(small, 8 * 8)
    few = DDPOConfig(**small.to_dict() | {"steps_per_forward": 3, "rows_per_forward": 7})
    assert (make_layout(few, 64).learning, make_layout(few, 64).sampling) == (12, 7)
