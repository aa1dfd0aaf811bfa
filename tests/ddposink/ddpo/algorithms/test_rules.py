"""What each algorithm asks of a configuration, what it costs, and which words refuse the rest."""

from __future__ import annotations

from typing import Any

import pytest

from ddposink.ddpo import DDPOConfig

VALUES: dict[str, Any] = {
    "sample_num_steps": 4,
    "sample_guidance_scale": 1.0,
    "sample_batch_size": 8,
    "train_batch_size": 8,
    "samples_per_prompt": 4,
}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"algorithm": "nfd"}, r"algorithm 'nfd' is unknown \(did you mean 'nft'\?\)"),
        ({"sample_eta": 0.0}, "sample_eta 0 makes sampling deterministic.*or an algorithm without"),
        ({"algorithm": "nft", "engine": "trl"}, "TRL's engine knows no algorithm 'nft'"),
        ({"algorithm": "nft", "loss": "sf"}, "loss 'sf' is about the likelihood of samples"),
        ({"algorithm": "draft", "keep_sampling_graph": True}, "keep_sampling_graph True is about"),
        ({"algorithm": "nft", "nft_beta": 0.0}, "nft_beta must be a positive number"),
        ({"algorithm": "nft", "nft_decay": 1.0}, r"nft_decay must lie in \[0, 1\)"),
        ({"algorithm": "dpo", "dpo_beta": -1.0}, "dpo_beta must be a positive number"),
        ({"algorithm": "dpo", "samples_per_prompt": 1}, "samples_per_prompt of at least 2"),
        (
            {"algorithm": "dpo", "train_batch_size": 2},
            "samples_per_prompt 4 does not divide an update of 2 samples .* use an update of 4 samples",
        ),
        ({"algorithm": "dpo", "samples_per_prompt": 3}, "samples_per_prompt 3 does not divide"),
        ({"algorithm": "draft", "draft_steps": 5}, r"draft_steps must be 1 to sample_num_steps \(4\), not 5"),
        ({"algorithm": "draft", "draft_steps": 0}, "draft_steps must be 1 to sample_num_steps"),
        ({"algorithm": "draft", "train_num_inner_epochs": 2}, "while it is drawn, so once"),
        (
            {"algorithm": "nft", "sample_eta": 0.0, "share_initial_noise": True},
            "makes all samples of a group one picture",
        ),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        DDPOConfig(**VALUES | values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("algorithm", ["nft", "dpo", "draft"])
@pytest.mark.parametrize("sampling", [{"sample_eta": 0.0}, {"sample_kernel": "ode"}], ids=str)
def test_without_likelihoods_sampling_may_be_deterministic(algorithm: str, sampling: dict[str, Any]) -> None:
    assert DDPOConfig(**VALUES | {"algorithm": algorithm} | sampling).num_train_timesteps
