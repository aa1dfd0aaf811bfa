"""TRL's ``DDPOConfig``: takes whatever TRL 0.23.1's takes, and is checked when a trainer is made of it.

`checked` turns it, or TRL's own, into the engines' configuration. What TRL takes and can work with is put in
the engines' words; what it takes and fails at later is refused there, in one line.
"""

from __future__ import annotations

import inspect
import math
import operator
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Any

from ddposink.ddpo import config as configuration
from ddposink.ddpo.stats import PROMPT_EPSILON
from ddposink.errors import suggest

# The smallest and the largest of float32: zero and infinity to everything that is computed with them.
LEAST, MOST = 1.1754943508222875e-38, 3.4028234663852886e38
BUILT_IN = {"mixed_precision", "log_with", "project_config", "gradient_accumulation_steps"}
ELSEWHERE = ("plugin", "plugins", "dynamo_backend", "parallelism_config", "fp8_config")


@dataclass
class DDPOConfig(configuration.DDPOConfig):
    """TRL's fields with TRL's defaults, then those of `ddposink.ddpo.DDPOConfig`.

    Any value may be given and assigned, as in TRL; `DDPOTrainer` raises ValueError, one line, for what
    cannot be trained with. As in TRL it is the pipeline that says whether LoRA is used, so scripts may have
    a command-line argument ``--use_lora`` of their own beside this one's.
    """

    mixed_precision: str | None = "fp16"  # type: ignore[assignment]  # None: what accelerate is set to
    use_lora: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        """Nothing is checked yet."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Any attribute, as of any object."""
        object.__setattr__(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """Every field; dictionaries are flattened to ``name/key``, as TRL hands them to trackers."""
        return dict(_flat("", self.__dict__))


def checked(config: Any, use_lora: bool) -> configuration.DDPOConfig:
    """The engines' configuration of ``config`` (ours or TRL's). Raises ValueError, one line."""
    names = [f.name for f in fields(configuration.DDPOConfig) if hasattr(config, f.name)]
    values = {name: getattr(config, name) for name in names} | {"use_lora": bool(use_lora)}
    if isinstance(config, configuration.DDPOConfig) and not isinstance(config, DDPOConfig):
        return configuration.DDPOConfig.from_dict(values)  # checked already
    for name, convert in CONVERSIONS.items():
        values[name] = convert(values[name])
    if isinstance(values["seed"], int) and values["seed"] >= 2**32:
        raise ValueError(f"seed must be below 2**32 (numpy's generator takes no more), not {values['seed']}")
    if not values["async_reward_computation"]:
        values["max_workers"] = 1
    _known_keys(values)
    _prompts(values)
    _fraction(values)
    return configuration.DDPOConfig.from_dict(values)


def _flat(prefix: str, values: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}{key}/", value)
        else:
            yield f"{prefix}{key}", value


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _whole(value: Any) -> Any:
    """An ``int`` of whatever counts as one; the rest is left for the check to refuse."""
    try:
        return int(operator.index(value))
    except TypeError:
        return value


def _real(value: Any) -> Any:
    return value if isinstance(value, str | int) or not hasattr(value, "__float__") else float(value)


def _not_zero(value: Any) -> Any:
    number = _real(value)
    return LEAST if isinstance(number, int | float) and number == 0 else number


def _bound(value: Any) -> Any:
    """A limit: infinity is none."""
    number = _not_zero(value)
    return MOST if number == math.inf else number


def _epochs(value: Any) -> Any:
    number = _whole(value)
    return max(0, number) if isinstance(number, int) else number


def _period(value: Any) -> Any:
    """Epochs between checkpoints, of which TRL takes remainders: 1e6 and -5 will do, and 0 is never."""
    number = _real(value)
    if not isinstance(number, int | float) or math.isnan(number):
        return value
    return sys.maxsize if number == 0 or math.isinf(number) else abs(Fraction(number).numerator)


def _kept(value: Any) -> Any:
    """Checkpoints to keep. TRL never looks at it, so it must not be an error either."""
    number = _real(value)
    few = isinstance(number, int | float) and 1 <= number < sys.maxsize
    return int(number) if few else sys.maxsize


def _precision(value: Any) -> str:
    return os.environ.get("ACCELERATE_MIXED_PRECISION", "no") if value is None else str(value).lower()


def _workers(value: Any) -> Any:
    return min(32, (os.cpu_count() or 1) + 4) if value is None else _whole(value)  # the executor's default


def _negatives(value: Any) -> str:
    """TRL hands a list to the tokenizer, which takes it."""
    if not isinstance(value, list | tuple):
        return _text(value)
    if odd := [text for text in value if "," in str(text)]:
        raise ValueError(f"negative_prompts are separated by commas, so none may hold one: {odd[0]!r}")
    return ", ".join(map(str, value))


def _known_keys(values: dict[str, Any]) -> None:
    """ValueError for a key that accelerate does not know, or whose meaning is lost on these engines."""
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration

    known = {
        "accelerator_kwargs": set(inspect.signature(Accelerator.__init__).parameters) - {"self"} - BUILT_IN,
        "project_kwargs": {f.name for f in fields(ProjectConfiguration)},
    }
    for name, keys in known.items():
        for key in values[name]:
            if key in BUILT_IN and name == "accelerator_kwargs":
                raise ValueError(f"{name}: '{key}' has a setting of its own and cannot be given twice")
            if key not in keys:
                raise ValueError(f"{name}: accelerate has no '{key}'{suggest(key, sorted(keys))}")
            wraps = key in ELSEWHERE or key.rpartition("_")[2] in ELSEWHERE
            if wraps and values[name][key] is not None:
                raise ValueError(
                    f"{name}: '{key}' would wrap the model, which is not done here; leave it out"
                )


def _prompts(values: dict[str, Any]) -> None:
    """Statistics per prompt: buffers that never hold enough are never used, and that is no error in TRL."""
    buffer, least = (
        values["per_prompt_stat_tracking_buffer_size"],
        values["per_prompt_stat_tracking_min_count"],
    )
    if not isinstance(least, int) or not isinstance(buffer, int | None):
        return
    buffer = sys.maxsize if buffer is None else buffer
    tracking = values["per_prompt_stat_tracking"]
    if tracking and (buffer < 0 or (not buffer and least < 1)):
        raise ValueError(f"per_prompt_stat_tracking_buffer_size {buffer} holds no reward: at least 1")
    if tracking and max(1, least) > buffer and values.get("engine", "native") == "native":
        values |= {"per_prompt_stat_tracking": False, "advantage_epsilon": PROMPT_EPSILON}
        tracking = False
    buffer, least = max(1, buffer), max(1, least)
    values["per_prompt_stat_tracking_buffer_size"] = buffer
    values["per_prompt_stat_tracking_min_count"] = least if tracking else min(least, buffer)


def _fraction(values: dict[str, Any]) -> None:
    """A fraction a little above 1 is 1: TRL truncates its product with the denoising steps."""
    fraction, steps = values["train_timestep_fraction"], values["sample_num_steps"]
    if (
        isinstance(fraction, float)
        and isinstance(steps, int)
        and fraction > 1
        and int(steps * fraction) == steps
    ):
        values["train_timestep_fraction"] = 1.0


def _each(names: str, convert: Callable[[Any], Any]) -> dict[str, Callable[[Any], Any]]:
    return dict.fromkeys(names.split(), convert)


CONVERSIONS: dict[str, Callable[[Any], Any]] = (
    _each("exp_name run_name tracker_project_name logdir resume_from", _text)
    | _each(
        "tracker_kwargs accelerator_kwargs project_kwargs", lambda value: {} if value is None else dict(value)
    )
    | _each("allow_tf32 train_use_8bit_adam train_cfg per_prompt_stat_tracking", bool)
    | _each("async_reward_computation push_to_hub", bool)
    | _each("seed sample_num_steps sample_batch_size sample_num_batches_per_epoch train_batch_size", _whole)
    | _each("train_gradient_accumulation_steps train_num_inner_epochs", _whole)
    | _each("per_prompt_stat_tracking_buffer_size per_prompt_stat_tracking_min_count", _whole)
    | _each("sample_eta sample_guidance_scale train_adam_beta1 train_adam_beta2", _real)
    | _each("train_adam_weight_decay train_timestep_fraction", _real)
    | _each("train_learning_rate train_adam_epsilon", _not_zero)
    | _each("train_max_grad_norm train_adv_clip_max train_clip_range", _bound)
    | {
        "num_epochs": _epochs,
        "save_freq": _period,
        "num_checkpoint_limit": _kept,
        "mixed_precision": _precision,
        "max_workers": _workers,
        "negative_prompts": _negatives,
    }
)
