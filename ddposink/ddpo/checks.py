"""What a DDPO configuration must satisfy; every complaint is one line that says what would be right."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

from ddposink.ddpo import grpo, rules
from ddposink.ddpo.numeric import is_real
from ddposink.ddpo.settings import Settings
from ddposink.ddpo.window import DDIM, KERNELS, MOVES, ODE
from ddposink.errors import suggest

CHOICES: dict[str, tuple[str, ...]] = {
    "engine": ("native", "trl"),
    "algorithm": rules.ALGORITHMS,
    "loss": ("is", "sf"),
    "advantages": ("auto", "group", "prompt", "batch"),
    "advantage_deviation": ("own", "batch", "none"),
    "combine_rewards": ("sum", "gdpo"),
    "log_prob_reduction": ("mean", "sum"),
    "mixed_precision": ("no", "fp16", "bf16"),
    "sample_kernel": KERNELS,
    "sample_sde_window_moves": MOVES,
}
COUNTS = (
    "sample_batch_size sample_num_batches_per_epoch train_batch_size train_gradient_accumulation_steps "
    "train_num_inner_epochs per_prompt_stat_tracking_buffer_size per_prompt_stat_tracking_min_count "
    "sample_sde_window_stride sample_sde_window_every samples_per_prompt lora_rank save_freq "
    "num_checkpoint_limit max_workers"
).split()
FLOW_ONLY = (
    "sample_shift sample_sde_window sample_sde_window_moves sample_sde_window_stride sample_sde_window_every "
    "max_sequence_length"
).split()
POSITIVE = (
    "train_learning_rate train_adam_epsilon train_max_grad_norm train_adv_clip_max train_clip_range "
    "lora_alpha"
).split()
SWITCHES = [f.name for f in fields(Settings) if isinstance(f.default, bool)]


def check(config: Settings) -> None:
    """Raise ValueError for the first thing wrong with ``config``."""
    for name, known in CHOICES.items():
        value = getattr(config, name)
        if value not in known:
            raise ValueError(f"{name} '{value}' is unknown{suggest(str(value), known)}: {', '.join(known)}")
    for name in [*SWITCHES, *(["merge_lora"] if config.merge_lora is not None else [])]:
        if not isinstance(getattr(config, name), bool):  # "no" would be true
            raise ValueError(f"{name} must be true or false, not {getattr(config, name)!r}")
    for name in COUNTS:
        _whole(name, getattr(config, name), 1)
    for name in POSITIVE:
        value = getattr(config, name)
        if not (is_real(value) and value > 0):
            raise ValueError(f"{name} must be a positive number, not {value!r}")
    _sampling(config)
    rules.check(config)
    _flow(config)
    _training(config)
    _ours(config)
    grpo.check(config)
    _batches(config)


def check_prompts(given: Any) -> None:
    """Raise ValueError unless ``given`` is a function that draws prompts, or texts to draw from."""
    if callable(given):
        return
    if isinstance(given, str):
        raise ValueError(f"the prompts are one text, whose letters would be drawn: write [{given!r}]")
    if not isinstance(given, Iterable):
        raise ValueError(f"prompts are a list of texts or a function that draws one, not {given!r}")
    texts = list(given)
    if not texts:
        raise ValueError("there are no prompts to draw from")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"prompt {index + 1} is no text but {text!r}")


def check_names(given: Iterable[str], known: Sequence[str]) -> None:
    """Raise ValueError for a field that does not exist."""
    for name in given:
        if name not in known:
            raise ValueError(f"DDPO has no setting '{name}'{suggest(name, known)}")


def _sampling(config: Settings) -> None:
    _whole("seed", config.seed, 0)
    _whole("num_epochs", config.num_epochs, 0)
    steps, eta, scale = config.sample_num_steps, config.sample_eta, config.sample_guidance_scale
    _whole("sample_num_steps", steps, 0)
    if steps < 2:
        raise ValueError(
            f"sample_num_steps must be at least 2, not {steps}: a single denoising step would start at the "
            f"schedule's last, almost noise-free timestep"
        )
    most = math.inf if config.sample_kernel.endswith("-sde") else 1
    if not is_real(eta) or not 0 <= eta <= most:
        upper = "be a positive number" if most > 1 else "lie in (0, 1]"
        raise ValueError(f"sample_eta must {upper}, not {eta!r}")
    if config.algorithm == rules.DDPO and rules.deterministic(config):
        what = f"sample_eta {eta:g}" if eta == 0 else f"sample_kernel '{ODE}'"
        instead = "use eta 1.0" if config.sample_kernel == DDIM else "use 'flow-sde' with eta 0.7"
        raise ValueError(
            f"{what} makes sampling deterministic, and the log-probability of a deterministic step is "
            f"undefined; {instead}, or an algorithm without likelihood: nft, dpo, draft"
        )
    if not is_real(scale) or scale < 1:
        raise ValueError(f"sample_guidance_scale must be at least 1 (1 = no guidance), not {scale!r}")
    if config.algorithm == rules.DDPO and config.guided and not config.train_cfg:
        raise ValueError(
            f"train_cfg false under sample_guidance_scale {scale:g} learns from another policy than the one "
            f"that drew the samples, so no importance ratio is right; use train_cfg true, or guidance 1"
        )


def _flow(config: Settings) -> None:
    """What flow models are told: kernel, times and window."""
    kernel, window, shift = config.sample_kernel, config.sample_sde_window, config.sample_shift
    if kernel == DDIM:
        for name in FLOW_ONLY:
            if getattr(config, name) != getattr(Settings, name):
                raise ValueError(f"{name} is of flow models; sample_kernel '{DDIM}' knows none")
        return
    if config.engine == "trl":
        raise ValueError(f"TRL's engine knows no sample_kernel '{kernel}': use engine 'native'")
    if shift is not None and not (is_real(shift) and shift > 0):
        raise ValueError(f"sample_shift must be a positive number, not {shift!r}")
    if config.max_sequence_length is not None:
        _whole("max_sequence_length", config.max_sequence_length, 0)
    moves = config.sample_sde_window_moves
    if window is None and moves != "fixed":
        raise ValueError("sample_sde_window_moves is of a window: name its size, sample_sde_window")
    if moves == "fixed":
        for name in ("sample_sde_window_stride", "sample_sde_window_every"):
            if getattr(config, name) != getattr(Settings, name):
                raise ValueError(f"{name} is of a window that moves: say how, sample_sde_window_moves")
    if window is None:
        return
    if kernel == ODE:
        raise ValueError(f"sample_sde_window is where noise is drawn; sample_kernel '{ODE}' draws none")
    _whole("sample_sde_window", window, 1)
    if window > config.noisy_steps > 0:
        left = config.sample_num_steps - config.noisy_steps
        last = f" of which the last {left} {'has' if left == 1 else 'have'} no part in it" if left else ""
        raise ValueError(
            f"sample_sde_window {window} is beyond the {config.sample_num_steps} denoising steps{last}; "
            f"use at most {config.noisy_steps}"
        )
    most = config.noisy_steps - window
    if moves == "random" and config.sample_sde_window_stride > most > 0:
        raise ValueError(
            f"sample_sde_window_stride {config.sample_sde_window_stride} leaves a random window of {window} "
            f"in {config.noisy_steps} denoising steps one place; use at most {most}"
        )


def _training(config: Settings) -> None:
    fraction = config.train_timestep_fraction
    if not is_real(fraction) or not 0 < fraction <= 1:
        raise ValueError(f"train_timestep_fraction must lie in (0, 1], not {fraction!r}")
    _whole("train_skip_last_steps", config.train_skip_last_steps, 0)
    if config.train_skip_last_steps >= config.sample_num_steps:
        raise ValueError(
            f"train_skip_last_steps {config.train_skip_last_steps} of {config.sample_num_steps} denoising "
            f"steps leaves none to learn from; use at most {config.sample_num_steps - 1}"
        )
    if config.num_train_timesteps < 1:
        noised = config.algorithm in rules.LEARN_FROM_NOISED
        of = config.sample_num_steps - config.train_skip_last_steps if noised else config.window.size
        raise ValueError(
            f"train_timestep_fraction {fraction} of {of} denoising steps to be learnt from leaves none; "
            f"use at least {math.ceil(1e4 / of) / 1e4}"
        )
    for name in ("train_adam_beta1", "train_adam_beta2"):
        value = getattr(config, name)
        if not is_real(value) or not 0 <= value < 1:
            raise ValueError(f"{name} must lie in [0, 1), not {value!r}")
    if not is_real(config.train_adam_weight_decay) or config.train_adam_weight_decay < 0:
        raise ValueError(
            f"train_adam_weight_decay must not be negative, not {config.train_adam_weight_decay!r}"
        )


def _ours(config: Settings) -> None:
    if config.engine == "trl" and config.loss != "is":
        raise ValueError(
            "TRL's engine has only the loss 'is'; for the plain policy gradient use engine 'native'"
        )
    if config.use_lora and not config.lora_targets:
        raise ValueError("lora_targets names no module; TRL's are to_k, to_q, to_v, to_out.0")
    for name in ("rows_per_forward", "steps_per_forward", "threads"):
        if getattr(config, name) is not None:
            _whole(name, getattr(config, name), 1)
    epsilon = config.advantage_epsilon
    if epsilon is not None and not (is_real(epsilon) and epsilon > 0):
        raise ValueError(f"advantage_epsilon must be a positive number, not {epsilon!r}")
    if config.advantages == "group" and config.samples_per_prompt < 2:
        raise ValueError("advantages 'group' needs groups: samples_per_prompt of at least 2")
    if config.per_prompt_stat_tracking_min_count > config.per_prompt_stat_tracking_buffer_size:
        raise ValueError(
            f"per_prompt_stat_tracking_min_count {config.per_prompt_stat_tracking_min_count} is more than "
            f"the buffer ever holds ({config.per_prompt_stat_tracking_buffer_size}): statistics would never "
            f"be used"
        )


def _batches(config: Settings) -> None:
    """TRL's arithmetic; the number of processes cancels out."""
    sample, train = config.sample_batch_size, config.train_batch_size
    accumulation, drawn = config.train_gradient_accumulation_steps, config.samples_per_epoch
    for name in ("train_batch_size", "samples_per_prompt"):
        if sample % (value := getattr(config, name)):
            divisors = [d for d in range(1, sample + 1) if sample % d == 0]
            raise ValueError(
                f"{name} {value} does not divide sample_batch_size {sample}; nearest valid: "
                f"{_nearest(divisors, value)}"
            )
    if drawn % (train * accumulation):
        batches = drawn // train
        divisors = [d for d in range(1, batches + 1) if batches % d == 0]
        raise ValueError(
            f"{drawn} samples an epoch ({sample} x {config.sample_num_batches_per_epoch}) do not split into "
            f"updates of {train * accumulation} (train_batch_size {train} x "
            f"train_gradient_accumulation_steps {accumulation}); nearest valid accumulation: "
            f"{_nearest(divisors, accumulation)}"
        )
    if config.share_initial_noise and config.samples_per_prompt < 2:
        raise ValueError(
            "share_initial_noise needs groups: samples_per_prompt of at least 2, or every sample is alone"
        )
    some = config.num_train_timesteps < config.sample_num_steps
    if config.keep_sampling_graph and (config.updates_per_epoch > 1 or some):
        raise ValueError(
            f"keep_sampling_graph needs exactly one update per step on all denoising steps; these are "
            f"{config.updates_per_epoch} updates on {config.num_train_timesteps} of {config.sample_num_steps}"
        )


def _nearest(values: list[int], wanted: int) -> str:
    below = [v for v in values if v <= wanted][-1:]
    above = [v for v in values if v > wanted][:1]
    return " or ".join(str(v) for v in below + above)


def _whole(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")
