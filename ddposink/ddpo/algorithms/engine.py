"""The native engine learning by `nft`, `dpo` or `draft` in place of policy gradients."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ddposink.ddpo import rules
from ddposink.ddpo.algorithms.dpo import Dpo
from ddposink.ddpo.algorithms.draft import Draft
from ddposink.ddpo.algorithms.nft import Nft
from ddposink.ddpo.algorithms.offline import OfflineDpo
from ddposink.ddpo.algorithms.protocol import Algorithm, Invariant, Judged, Learnt, Workshop
from ddposink.ddpo.checkpoint import Checkpoint, read_checkpoint
from ddposink.ddpo.config import DDPOConfig
from ddposink.ddpo.pairs import PreferencePairs
from ddposink.ddpo.protocol import DivergedError, Pipeline, Prompts, RewardFunction, StepLog
from ddposink.ddpo.randomness import Randomness
from ddposink.ddpo.sampler import Trajectories
from ddposink.ddpo.several import told
from ddposink.ddpo.trainer import NativeEngine
from ddposink.models.denoiser import denoiser

MAKERS: dict[str, Callable[[Workshop], Algorithm]] = {rules.NFT: Nft, rules.DPO: Dpo, rules.DRAFT: Draft}


class AlgorithmEngine(NativeEngine):
    """A training by the algorithm of the configuration. See `ddposink.ddpo.protocol.Engine`."""

    def __init__(
        self, config: DDPOConfig, pipeline: Pipeline, reward: RewardFunction, prompts: Prompts
    ) -> None:
        """ValueError, Unavailable: see `make_engine`."""
        super().__init__(config, pipeline, reward, prompts)
        maker = OfflineDpo if rules.offline(config) else MAKERS[config.algorithm]
        self._algorithm: Algorithm = maker(self._workshop())

    @property
    def pairs(self) -> PreferencePairs | None:
        """What it learns from in place of samples, as it was read at the start."""
        return self._algorithm.pairs if isinstance(self._algorithm, OfflineDpo) else None

    def invariant(self) -> Invariant:
        """What must hold before the algorithm learns, and by how much it does not.

        Put to a fresh engine, whose random state and weights are as before.
        """
        randomness = Randomness(self.config.seed, self._device)
        with randomness.active(), self._merged():
            return self._algorithm.invariant()

    def ratio_deviation(self) -> Tensor:
        """Empty (0,): there are no likelihoods whose ratio could be off; see `invariant`."""
        return torch.zeros(0)

    def load(self, folder: Path) -> None:
        """Go on from ``folder``. ValueError if it is damaged or of another configuration."""
        saved = read_checkpoint(folder, like=self._checkpoint([]))
        self._algorithm.restore(saved.part("algorithm"))
        super().load(folder)

    def _checkpoint(self, states: list[dict[str, Tensor]]) -> Checkpoint:
        made = super()._checkpoint(states)
        made.identity |= self._algorithm.identity()
        made.tensors |= {f"algorithm.{name}": value for name, value in self._algorithm.tensors().items()}
        return made

    def _train(self) -> StepLog:
        begun = time.perf_counter()
        denoiser(self.pipeline).eval()
        learnt = self._algorithm.step(self.step + 1)
        self._check_finite(learnt)
        self.step += 1
        done = self.step * self._ranks.count
        norm = float(self._ranks.mean(learnt.norms.mean()))
        # `draft` learns as it judges; a file of pairs has been judged before.
        asked, drawn = learnt.rewards is not None, not rules.offline(self.config)
        verdict = self._verdict if drawn and self.config.algorithm != rules.DRAFT else None
        # What is compared is the step: `draft` has no groups.
        parts, shares = (verdict.parts, verdict.shares) if verdict else told(learnt.parts, group=1)
        return StepLog(
            step=self.step,
            reward_mean=float(learnt.rewards.mean()) if asked else None,
            reward_std=float(learnt.rewards.std()) if asked else None,
            loss=float(self._ranks.mean(learnt.losses.mean())),
            approx_kl=None,
            clip_fraction=None,
            flat_share=learnt.flat_share,
            samples=done * self.config.samples_per_epoch * drawn,
            unet_forwards=done * self._forwards,
            sampling_s=learnt.sampled - begun,
            training_s=time.perf_counter() - learnt.sampled,
            reward_s=verdict.reward_s if verdict else None,
            gradient_norm=norm if math.isfinite(norm) else None,
            parts=parts,
            shares=shares,
        )

    def _check_finite(self, learnt: Learnt) -> None:
        # A scaled half-precision gradient may overflow; the scaler then leaves the update out.
        gradient = {} if self._learner.scaler.is_enabled() else {"gradient": learnt.norms}
        for what, values in ({"loss": learnt.losses} | gradient).items():
            if not bool(torch.isfinite(values).all()):
                raise DivergedError(f"the {what} is not finite", self.step + 1)

    def _workshop(self) -> Workshop:
        """What the algorithm works with."""

        def judge(found: Trajectories) -> Judged:
            everybodys, advantages = self._judge(found)
            mine = everybodys.reshape(self._ranks.count, -1)[self._ranks.rank]
            return Judged(everybodys, mine, advantages, self._comparison.flat_share)

        return Workshop(
            config=self.config,
            pipeline=self.pipeline,
            policy=self._policy,
            learner=self._learner,
            ranks=self._ranks,
            layout=self._layout,
            flow=self._policy.network.flow,
            reward=self._reward,
            sample=lambda batches, steps: self._sample(batches, False, steps),
            judge=judge,
            base=self.base,
            texts=lambda prompts: self._texts.conditions(prompts, len(prompts)),
        )
