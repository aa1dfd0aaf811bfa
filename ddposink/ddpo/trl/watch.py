"""What the reference engine sees of TRL's trainer: its log, its clock, its ratios."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from ddposink.ddpo.stats import Advantages


class Watched:  # to be mixed with a trl.DDPOTrainer
    """Keeps what TRL's trainer logs, when its sampling ended, and can say how far the ratio is from 1."""

    accelerator: Any
    config: Any
    sd_pipeline: Any
    calculate_loss: Any
    skipped = 0  # denoising steps at the end of each trajectory that are not learnt from
    comparison: Advantages | None = None  # what turns rewards into advantages; None: TRL's own
    stat_tracker: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.comparison is not None:
            self.stat_tracker = self.comparison
        self.logged: list[dict[str, Any]] = []
        self.sampled_at = 0.0
        self._ratio = torch.ones(0)
        log = self.accelerator.log

        def keep(values: dict[str, Any], *args: Any, **kwargs: Any) -> None:
            self.logged.append({k: v.detach() if isinstance(v, Tensor) else v for k, v in values.items()})
            log(values, *args, **kwargs)

        self.accelerator.log = keep

    def compute_rewards(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's; the last thing before learning begins."""
        rewards = super().compute_rewards(*args, **kwargs)  # type: ignore[misc]
        self.sampled_at = time.perf_counter()
        return rewards

    def _generate_samples(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's; without the denoising steps that are not learnt from."""
        samples, prompts = super()._generate_samples(*args, **kwargs)  # type: ignore[misc]
        for sample in samples if self.skipped else ():
            for name in ("timesteps", "latents", "next_latents", "log_probs"):
                sample[name] = sample[name][:, : -self.skipped]
        return samples, prompts

    @property
    def flat_share(self) -> float:
        """Part of the last step's comparisons whose rewards were all equal; NaN where TRL compares."""
        return float("nan") if self.comparison is None else self.comparison.flat_share

    def means(self) -> dict[str, float]:
        """Each logged number, averaged over the updates since ``logged`` was cleared."""
        names = ("reward_mean", "reward_std", "loss", "approx_kl", "clipfrac")
        found = {name: [float(entry[name]) for entry in self.logged if name in entry] for name in names}
        return {name: sum(values) / len(values) for name, values in found.items()}

    def loss(self, advantages: Tensor, clip_range: float, ratio: Tensor) -> Tensor:
        """TRL's; the importance ratios (B,) are seen nowhere else."""
        self._ratio = ratio.detach()
        return super().loss(advantages, clip_range, ratio)  # type: ignore[misc]

    @torch.no_grad()
    def ratio_deviation(self) -> Tensor:
        """Largest |ratio − 1| (T,) per denoising step, over one batch drawn and evaluated for learning."""
        config = self.config
        (sample,), _ = self._generate_samples(iterations=1, batch_size=config.sample_batch_size)
        rows = {name: value[: config.train_batch_size] for name, value in sample.items()}
        embeddings = rows["prompt_embeds"]
        if config.train_cfg:
            embeddings = torch.cat([rows["negative_prompt_embeds"], embeddings])
        self.sd_pipeline.unet.train()
        found = []
        for j in range(rows["timesteps"].shape[1]):
            step = [rows[name][:, j] for name in ("latents", "timesteps", "next_latents", "log_probs")]
            self.calculate_loss(*step, torch.zeros(len(step[0]), device=step[0].device), embeddings)
            found.append((self._ratio - 1).abs().max())
        return torch.stack(found).cpu()
