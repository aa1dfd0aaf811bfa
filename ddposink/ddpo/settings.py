"""The settings of a DDPO training as plain fields, and what follows from them: TRL's, then our own."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ddposink.ddpo import rules
from ddposink.ddpo.window import Window


@dataclass
class Settings:
    """Fields and arithmetic of `ddposink.ddpo.config.DDPOConfig`, unchecked."""

    # -- TRL 0.23.1 --------------------------------------------------------------------------------------
    exp_name: str = field(default_factory=lambda: Path(sys.argv[0]).stem)
    run_name: str = ""
    seed: int = 0
    log_with: str | None = None
    tracker_kwargs: dict[str, Any] = field(default_factory=dict)
    accelerator_kwargs: dict[str, Any] = field(default_factory=dict)
    project_kwargs: dict[str, Any] = field(default_factory=dict)
    tracker_project_name: str = "trl"
    logdir: str = "logs"
    num_epochs: int = 100
    save_freq: int = 1
    num_checkpoint_limit: int = 5
    mixed_precision: str = "fp16"  # no | fp16 | bf16; on a CPU fp16 means no, see `precision_on`
    allow_tf32: bool = True
    resume_from: str = ""
    sample_num_steps: int = 50  # denoising steps T
    sample_eta: float = 1.0
    sample_guidance_scale: float = 5.0
    sample_batch_size: int = 1
    sample_num_batches_per_epoch: int = 2
    train_batch_size: int = 1
    train_use_8bit_adam: bool = False
    train_learning_rate: float = 3e-4
    train_adam_beta1: float = 0.9
    train_adam_beta2: float = 0.999
    train_adam_weight_decay: float = 1e-4
    train_adam_epsilon: float = 1e-8
    train_gradient_accumulation_steps: int = 1
    train_max_grad_norm: float = 1.0
    train_num_inner_epochs: int = 1
    train_cfg: bool = True
    train_adv_clip_max: float = 5.0
    train_clip_range: float = 1e-4
    train_timestep_fraction: float = 1.0
    per_prompt_stat_tracking: bool = False
    per_prompt_stat_tracking_buffer_size: int = 16
    per_prompt_stat_tracking_min_count: int = 16
    async_reward_computation: bool = False
    max_workers: int = 2
    negative_prompts: str = ""  # comma-separated, see `negatives`
    push_to_hub: bool = False

    # -- ours --------------------------------------------------------------------------------------------
    engine: Literal["native", "trl"] = "native"
    algorithm: Literal["ddpo", "nft", "dpo", "draft"] = "ddpo"  # see `ddpo.algorithms`
    nft_beta: float = 1.0  # of nft: how much of the trained policy is in v+ and v-
    nft_decay: float = 0.5  # of nft: the most that the old policy keeps of itself after a training step
    nft_decay_rate: float = 1e-3  # of nft: that share grows by so much a training step
    dpo_beta: float = rules.DPO_BETA  # of dpo: how hard it is to leave the base model, on the paper's scale
    dpo_pairs: str | None = None  # of dpo: a file of pairs to learn from in place of drawn samples
    draft_steps: int = (
        1  # of draft: denoising steps K, the last ones, that the reward's gradient goes through
    )
    sample_kernel: Literal["ddim", "ode", "flow-sde", "dance-sde", "cps"] = "ddim"  # see `ddpo.table`
    sample_shift: float | None = None  # of a flow model's times; None: as its scheduler says
    sample_sde_window: int | None = None  # denoising steps in a row that are noisy; None: all that can be
    sample_sde_window_stride: int = 1  # denoising steps by which it moves on, or whose multiples it begins at
    sample_sde_window_every: int = 1  # training steps after which it moves
    sample_sde_window_moves: Literal["fixed", "progressive", "random"] = "fixed"
    max_sequence_length: int | None = None  # tokens of T5; None: the library's, none where there is no T5
    loss: Literal["is", "sf"] = "is"  # clipped importance sampling, or plain policy gradient
    train_clip_range_high: float | None = None  # upper half of the clip range; None: train_clip_range
    ratio_norm: bool = False  # ratios of one width at every denoising step, see `ddpo.loss`
    kl_beta: float = 0.0  # weight of the KL from the base model in the loss, per nat; see `ddpo.reference`
    measure_kl: float = 0.0  # share of the samples on which that KL is told where it is not in the loss
    ema_decay: float = 0.0  # of the average of the weights that is evaluated and exported; 0: the weights
    use_lora: bool = True  # False: full fine-tuning of the UNet
    lora_rank: int = 4
    lora_alpha: float = 4.0
    lora_targets: tuple[str, ...] = ("to_k", "to_q", "to_v", "to_out.0")
    samples_per_prompt: int = 1  # drawn in a row: a group
    advantages: Literal["auto", "group", "prompt", "batch"] = "auto"  # compared with whom, see `compares`
    advantage_deviation: Literal["own", "batch", "none"] = "own"  # divided by whose, see `ddpo.stats`
    combine_rewards: Literal["sum", "gdpo"] = "sum"  # parts of a weighted reward, see `ddpo.several`
    share_initial_noise: bool = False  # the samples of such a group start from the same latents, see below
    train_skip_last_steps: int = 0  # low-noise denoising steps at the end that are not learnt from, see below
    advantage_epsilon: float | None = None  # None: TRL's, 1e-8 over all samples and 1e-6 per prompt
    log_prob_reduction: Literal["mean", "sum"] = "mean"  # over the latent's dimensions; TRL's is the mean
    split_negative_prompts: bool = True  # False: TRL's behaviour, the whole string is one negative prompt

    # -- layout: changes nothing but rounding, time and memory ---------------------------------------------
    gradient_checkpointing: bool = False
    rows_per_forward: int | None = None  # samples in one UNet forward; None: see `ddposink.ddpo.layout`
    steps_per_forward: int | None = None  # or: denoising steps of a training batch in one forward
    keep_sampling_graph: bool = False  # one update per step: learn from the sampling forward itself
    merge_lora: bool | None = None  # compute with W + s·B·A; None: on a CPU, see `ddposink.ddpo.merged`
    compile: bool = False
    threads: int | None = None  # torch threads on a CPU; None: leave them as they are

    @property
    def samples_per_epoch(self) -> int:
        """Samples one process draws for one training step; pairs it learns from, where none are drawn."""
        return self.sample_batch_size * self.sample_num_batches_per_epoch

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer updates in one training step, all inner epochs."""
        per_update = self.train_batch_size * self.train_gradient_accumulation_steps
        return self.train_num_inner_epochs * self.samples_per_epoch // per_update

    @property
    def compares(self) -> Literal["group", "prompt", "batch"]:
        """What a sample is compared with: those drawn with it, the last of its prompt, or all of the step.

        Groups if there are any (``samples_per_prompt``), else as TRL has it: by prompt with
        ``per_prompt_stat_tracking``, or all. ``advantages`` says otherwise.
        """
        if self.advantages != "auto":
            return self.advantages
        if self.samples_per_prompt > 1:
            return "group"
        return "prompt" if self.per_prompt_stat_tracking else "batch"

    @property
    def group(self) -> int:
        """Samples in a row that are compared with each other alone; 1 where `compares` is not by group."""
        return self.samples_per_prompt if self.compares == "group" else 1

    @property
    def noisy_steps(self) -> int:
        """Denoising steps, from the first on, that may be noisy and learnt from; CPS' last is never noisy."""
        return self.sample_num_steps - max(self.train_skip_last_steps, int(self.sample_kernel == "cps"))

    @property
    def window(self) -> Window:
        """Which of them are, in each training step."""
        steps = self.noisy_steps
        return Window(
            steps,
            steps if self.sample_sde_window is None else self.sample_sde_window,
            self.sample_sde_window_stride,
            self.sample_sde_window_every,
            self.sample_sde_window_moves,
            self.seed,
        )

    @property
    def num_train_timesteps(self) -> int:
        """Denoising steps of each sample that are learnt from, or times at which it is noised for it."""
        if self.algorithm != rules.DDPO:
            return rules.times_learnt(self)
        return int(self.window.size * self.train_timestep_fraction)

    @property
    def guided(self) -> bool:
        """Whether sampling uses classifier-free guidance."""
        return self.sample_guidance_scale > 1.0

    @property
    def learns_guided(self) -> bool:
        """Whether learning asks the network twice. DDIM's does as TRL has it, also at guidance 1."""
        return self.train_cfg and (self.guided or self.sample_kernel == "ddim")

    @property
    def negatives(self) -> list[str]:
        """Negative prompts; the samples of a batch take them in turn."""
        if not self.split_negative_prompts:
            return [self.negative_prompts]
        return [part.strip() for part in self.negative_prompts.split(",")]

    def precision_on(self, device_type: str) -> Literal["no", "fp16", "bf16"]:
        """``mixed_precision`` for "cpu", "cuda", …: TRL's default fp16 is refused on a CPU, so it is fp32."""
        if device_type == "cpu" and self.mixed_precision == "fp16":
            return "no"
        return self.mixed_precision  # type: ignore[return-value]
