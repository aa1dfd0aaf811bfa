"""What each algorithm asks of a configuration. No torch. What it costs is in `ddposink.ddpo.costs`."""

from __future__ import annotations

from typing import Any

from ddposink.ddpo.numeric import is_real

Settings = Any  # those of `ddpo.settings`, which ask here and cannot be imported
DDPO, NFT, DPO, DRAFT = "ddpo", "nft", "dpo", "draft"
ALGORITHMS = (DDPO, NFT, DPO, DRAFT)
DPO_BETA = 2000.0  # the paper's for Stable Diffusion 1.5, whose latents have so many dimensions:
DPO_DIMENSIONS = 4 * 64 * 64
LEARN_FROM_NOISED = (NFT, DPO)  # from noised pictures, of which a sample is noised at several times
_LIKELIHOOD_ONLY = {"loss": "is", "keep_sampling_graph": False}
_OWN = {
    NFT: ("nft_beta", "nft_decay", "nft_decay_rate"),
    DPO: ("dpo_beta",),
    DRAFT: ("draft_steps",),
}
_COMPARED = ("train_adv_clip_max", "advantages", "advantage_epsilon")  # of advantages that are numbers
_RATIO = ("train_clip_range", "log_prob_reduction", "train_cfg")
_IDLE = {
    NFT: _RATIO,
    DPO: (*_RATIO, *_COMPARED),
    DRAFT: (*_RATIO, *_COMPARED, "train_timestep_fraction", "train_skip_last_steps"),
}


def check(config: Settings) -> None:
    """Raise ValueError, in one line, for what the algorithm cannot do."""
    if config.dpo_pairs is not None and config.algorithm != DPO:
        raise ValueError(
            f"dpo_pairs '{config.dpo_pairs}' is a file that algorithm 'dpo' learns from, and "
            f"'{config.algorithm}' draws its own samples; leave it out, or use algorithm 'dpo'"
        )
    if config.algorithm == DDPO:
        return
    if config.engine == "trl":
        raise ValueError(f"TRL's engine knows no algorithm '{config.algorithm}': use engine 'native'")
    for name, default in _LIKELIHOOD_ONLY.items():
        if getattr(config, name) != default:
            raise ValueError(
                f"{name} {getattr(config, name)!r} is about the likelihood of samples, which algorithm "
                f"'{config.algorithm}' does not use; leave it out"
            )
    if config.share_initial_noise and deterministic(config) and not offline(config):
        raise ValueError(
            "share_initial_noise under deterministic sampling makes all samples of a group one picture; use "
            "share_initial_noise false, or a noisy sample_kernel"
        )
    {NFT: _nft, DPO: _dpo, DRAFT: _draft}[config.algorithm](config)


def idle(config: Settings) -> list[str]:
    """Settings that say something and have no part in the algorithm: trainings that differ in them are one.

    They are taken, for a suite may have several algorithms.
    """
    others = [name for owner, names in _OWN.items() if owner != config.algorithm for name in names]
    names = (*others, *_IDLE.get(config.algorithm, ()))
    return [name for name in names if getattr(config, name) != getattr(type(config), name)]


def deterministic(config: Settings) -> bool:
    """Whether sampling adds no noise after the start."""
    return config.sample_eta == 0 or config.sample_kernel == "ode"


def offline(config: Settings) -> bool:
    """Whether it learns from a file: no sample is drawn and no reward asked while it trains."""
    return config.dpo_pairs is not None


def _nft(config: Settings) -> None:
    _positive("nft_beta", config.nft_beta)
    for name in ("nft_decay", "nft_decay_rate"):
        value = getattr(config, name)
        if not is_real(value) or not 0 <= value < 1:
            raise ValueError(f"{name} must lie in [0, 1), not {value!r}")


def _dpo(config: Settings) -> None:
    if not is_real(config.dpo_beta) or not config.dpo_beta > 0:
        raise ValueError(
            f"dpo_beta must be a positive number, not {config.dpo_beta!r}: below zero it would prefer what "
            f"was rejected; {DPO_BETA:g} is the paper's"
        )
    if config.dpo_pairs is not None:
        if not isinstance(config.dpo_pairs, str) or not config.dpo_pairs:
            raise ValueError(f"dpo_pairs is the path of a file of pairs, not {config.dpo_pairs!r}")
        return  # nothing is drawn, so there are no groups
    size = config.samples_per_prompt
    if size < 2:
        raise ValueError(
            "algorithm 'dpo' compares the best and the worst sample of a group: samples_per_prompt of at "
            "least 2, or a file of pairs as dpo_pairs"
        )
    update = config.train_batch_size * config.train_gradient_accumulation_steps
    if update % size:
        raise ValueError(
            f"algorithm 'dpo' learns from whole groups: samples_per_prompt {size} does not divide an update "
            f"of {update} samples (train_batch_size x train_gradient_accumulation_steps); use an update of "
            f"{max(1, round(update / size)) * size} samples"
        )


def _draft(config: Settings) -> None:
    steps = config.draft_steps
    if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= config.sample_num_steps:
        raise ValueError(
            f"draft_steps must be 1 to sample_num_steps ({config.sample_num_steps}), not {steps!r}"
        )
    if config.train_num_inner_epochs != 1:
        raise ValueError(
            f"algorithm 'draft' learns from a sample while it is drawn, so once: train_num_inner_epochs 1, "
            f"not {config.train_num_inner_epochs}"
        )


def times_learnt(config: Settings) -> int:
    """Times at which a sample is noised and learnt from; of `draft`, denoising steps with a gradient."""
    if config.algorithm == DRAFT:
        return config.draft_steps
    return int((config.sample_num_steps - config.train_skip_last_steps) * config.train_timestep_fraction)


def _positive(name: str, value: object) -> None:
    if not is_real(value) or not value > 0:
        raise ValueError(f"{name} must be a positive number, not {value!r}")
