"""The options that make `ddpo` GRPO as it is practised: their defaults, and what they must satisfy. No torch.

None of them is TRL's. At these defaults a training is what it was before they existed.
"""

from __future__ import annotations

from typing import Any

from ddposink.ddpo.numeric import is_real

Settings = Any  # those of `ddpo.settings`, which are checked here
OPTIONS: dict[str, Any] = {
    "train_clip_range_high": None,
    "ratio_norm": False,
    "kl_beta": 0.0,
    "measure_kl": 0.0,
    "ema_decay": 0.0,
    "advantage_deviation": "own",
    "combine_rewards": "sum",
}


def check(config: Settings) -> None:
    """Raise ValueError, in one line, for what cannot be."""
    used = [name for name, default in OPTIONS.items() if getattr(config, name) != default]
    if used and config.engine == "trl":
        raise ValueError(f"TRL's engine knows no {used[0]}: leave it out, or use engine 'native'")
    own = [name for name in used if name != "ema_decay"]  # which is of the weights, however they are learnt
    if own and config.algorithm != "ddpo":
        raise ValueError(
            f"{own[0]} is an option of policy gradients, and algorithm '{config.algorithm}' learns by "
            f"another rule; leave it out, or use algorithm 'ddpo'"
        )
    high, beta, decay = config.train_clip_range_high, config.kl_beta, config.ema_decay
    share = config.measure_kl
    if high is not None and not (is_real(high) and high > 0):
        raise ValueError(f"train_clip_range_high must be a positive number, not {high!r}")
    if not is_real(beta) or beta < 0:
        raise ValueError(
            f"kl_beta must not be negative, not {beta!r}: below zero it would reward leaving the base model; "
            f"0 is no KL term"
        )
    if not is_real(share) or not 0 <= share <= 1:
        raise ValueError(
            f"measure_kl must lie in [0, 1], not {share!r}: the share of a step's samples on which the base "
            f"model is asked; 0.25 is usual, 0 asks nothing"
        )
    if not is_real(decay) or not 0 <= decay < 1:
        raise ValueError(
            f"ema_decay must lie in [0, 1), not {decay!r}; 0 evaluates the weights themselves, 0.9 is usual"
        )
    if config.loss != "is":
        for name in ("train_clip_range_high", "ratio_norm"):
            if name in used:
                raise ValueError(f"{name} is of ratios, and loss '{config.loss}' has none; use loss 'is'")
    if config.keep_sampling_graph:
        for name in ("kl_beta", "measure_kl", "ratio_norm"):
            if name in used:
                raise ValueError(
                    f"{name} needs the means of denoising steps, which keep_sampling_graph does not keep; "
                    f"use keep_sampling_graph false"
                )
    if config.combine_rewards == "gdpo" and config.advantage_deviation == "none":
        raise ValueError(
            "combine_rewards 'gdpo' brings every reward to one width, which advantage_deviation 'none' does "
            "not; use 'own' or 'batch'"
        )
    if config.combine_rewards == "gdpo" and config.compares == "prompt":
        raise ValueError(
            "combine_rewards 'gdpo' compares within groups or a step, not with earlier rewards of a prompt; "
            "use samples_per_prompt of at least 2 and advantages 'group'"
        )


def needs_several(reward: str) -> str:
    """The refusal of GDPO on a single ``reward``, given as it is to be shown."""
    return (
        f"combine_rewards 'gdpo' needs several rewards, and {reward} is one: use a weighted sum, for example "
        f"weighted:0.5*alignment+0.5*brisque"
    )
