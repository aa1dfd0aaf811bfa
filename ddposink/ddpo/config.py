"""One configuration for both engines: TRL's fields with TRL's names and defaults, then our own.

Who followed the DDPO blog post changes the import. Every rule TRL checks when its trainer starts, and
those it finds out too late or never, are checked here, when the configuration is made.
"""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass, fields
from typing import Any

from ddposink.ddpo import checks, grpo
from ddposink.ddpo.settings import Settings

# Bookkeeping: scripts written for TRL assign it after the rest has been parsed.
BOOKKEEPING = (
    "exp_name run_name log_with tracker_kwargs accelerator_kwargs project_kwargs tracker_project_name logdir "
    "num_epochs save_freq num_checkpoint_limit resume_from push_to_hub"
).split()
# A checkpoint may be resumed under other values of these: bookkeeping, layout, and what is only told.
FREE = [
    *BOOKKEEPING,
    *"async_reward_computation max_workers gradient_checkpointing steps_per_forward".split(),
    *"rows_per_forward keep_sampling_graph merge_lora compile threads measure_kl".split(),
]


@dataclass
class DDPOConfig(Settings):
    """Everything that decides a DDPO training (Black et al. 2024, arXiv 2305.13301).

    Raises ValueError, one line, if the values contradict each other. Frozen but for `BOOKKEEPING`.

    Of TRL's fields the native engine leaves those about trackers, hub, checkpoint folders and
    asynchronous rewards to its caller:
    ``log_with``, ``tracker_*``, ``project_kwargs``, ``logdir``, ``save_freq``, ``num_checkpoint_limit``,
    ``resume_from``, ``push_to_hub``, ``async_reward_computation`` and ``max_workers`` are TRL's alone, as
    is ``num_epochs`` where an engine is told how far to run. Of ours, those below "layout" and
    ``loss="sf"`` are the native engine's alone.

    The gradient of a step's log-probability grows with one over its standard deviation. That of the last
    steps is a twentieth of the first's, so they drown what the others have to say, though they decide
    little about the picture; ``train_skip_last_steps`` leaves them out (0, TRL's way, learns from all).
    With ``engine="trl"`` its trainer is handed trajectories without them.

    What a sample starts from is not the policy's doing, but decides much of its reward. Where the samples
    of a group start from the same noise (`samples_per_prompt`, `share_initial_noise`; as in DanceGRPO, Xue
    et al. 2025, arXiv 2505.07818), their mean is a baseline that knows prompt and noise. Such samples also
    take one negative prompt.
    """

    def __post_init__(self) -> None:
        checks.check(self)

    def __setattr__(self, name: str, value: Any) -> None:
        """Only bookkeeping may change once a configuration is made; it is checked again."""
        checks.check_names([name], list(self.__dataclass_fields__))
        if name not in self.__dict__:  # being made
            object.__setattr__(self, name, value)
            return
        if name not in BOOKKEEPING:
            raise FrozenInstanceError(
                f"'{name}' cannot be assigned: make a new configuration with dataclasses.replace"
            )
        before = self.__dict__[name]
        self.__dict__[name] = value
        try:
            checks.check(self)
        except ValueError:
            self.__dict__[name] = before
            raise

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values of every field."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return values | {"lora_targets": list(self.lora_targets)}

    def decisive(self) -> dict[str, Any]:
        """The fields that a checkpoint must share with whoever resumes it.

        Options of `grpo` that are not used are left out, so that checkpoints from before them go on. Where
        a file of pairs lies decides nothing; what is in it is the engine's to compare.
        """
        fixed = {n: value for n, value in self.to_dict().items() if n not in (*FREE, "dpo_pairs")}
        return {n: v for n, v in fixed.items() if n not in grpo.OPTIONS or v != grpo.OPTIONS[n]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DDPOConfig:
        """From plain values; raises ValueError naming an unknown field and the nearest known one."""
        checks.check_names(values, [f.name for f in fields(cls)])
        values = dict(values)
        if "lora_targets" in values:
            values["lora_targets"] = tuple(values["lora_targets"])
        return cls(**values)
