"""Diffusion-DPO (`dpo`) from a file of pairs: nothing is drawn and no reward is asked while it trains.

The pictures are encoded once by the pipeline's own autoencoder, at the mean of what it says of them, and
stay in memory as latents: 4·C·H·W bytes a picture. A training step takes as many pairs as it would draw
samples, in the place of those. Every pair is learnt from once before any is again, in an order that follows
from the seed alone, so that a training that is resumed needs no memory of it.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddposink.ddpo.algorithms.dpo import Dpo
from ddposink.ddpo.algorithms.protocol import Invariant, Learnt, Workshop
from ddposink.ddpo.layout import DECODING
from ddposink.ddpo.pairs import PreferencePairs, pixels, read_pairs
from ddposink.ddpo.sampler import Trajectories
from ddposink.models.denoiser import denoiser, size_of


class OfflineDpo(Dpo):
    """See the module docstring; implements `Algorithm`.

    ValueError for a file that cannot be learnt from, or whose pictures are of another size than the
    pipeline's.
    """

    def __init__(self, workshop: Workshop) -> None:
        super().__init__(workshop)
        self.pairs = read_pairs(workshop.config.dpo_pairs or "")
        pipeline = workshop.pipeline
        self.pairs.check_size(size_of(denoiser(pipeline).config, pipeline.vae.config), "the pipeline")
        self.latents = encoded(pipeline, self.pairs)

    def step(self, number: int) -> Learnt:
        """See `Algorithm.step`. What is timed as sampling is the reading of the prompts."""
        count, ranks = self.config.samples_per_epoch, self.workshop.ranks
        begin = ((number - 1) * ranks.count + ranks.rank) * count
        found, pairs = self._found(in_turn(len(self.pairs), self.config.seed, begin, count))
        sampled = time.perf_counter()
        losses, norms = self.learn(found, pairs, torch.ones_like(pairs[:, 0], dtype=torch.bool), 1)
        return Learnt(None, losses, norms, None, sampled)

    def invariant(self) -> Invariant:
        """That the loss of a pair is log 2 before the first update."""
        few = min(8, len(self.pairs))
        return self.log_two(*self._found(in_turn(len(self.pairs), self.config.seed, 0, few)))

    def identity(self) -> dict[str, Any]:
        """Also the pairs themselves."""
        return super().identity() | {"dpo_pairs.sha256": self.pairs.sha256}

    def _found(self, which: np.ndarray) -> tuple[Trajectories, Tensor]:
        """Pairs ``which`` (M,) as if drawn: 2M samples, the better of a pair first, and (M, 2) of them."""
        pairs, device = self.pairs, self.workshop.device
        prompts = [pairs.prompts[one] for one in which for _ in range(2)]
        places = [place for one in which for place in (pairs.preferred[one], pairs.rejected[one])]
        clean = self.latents[places].to(device)
        samples = torch.arange(len(places))
        found = Trajectories(
            prompts, self.workshop.texts(prompts), clean[None], clean.new_zeros((0, len(places))), [], samples
        )
        return found, samples.to(device).view(-1, 2)


def in_turn(count: int, seed: int, begin: int, many: int) -> np.ndarray:
    """(many,) of 0 … count−1, from place ``begin`` on of an endless row of shuffled rounds of them all."""
    places = np.arange(begin, begin + many)
    rounds = {n: np.random.default_rng([seed, n]).permutation(count) for n in set((places // count).tolist())}
    return np.array([rounds[place // count][place % count] for place in places.tolist()])


@torch.no_grad()
def encoded(pipeline: Any, pairs: PreferencePairs) -> Tensor:
    """Latents (pictures, C, H, W) float32 on the CPU, as the network denoises them.

    Raises ValueError where the autoencoder answers with what is no number.
    """
    vae = pipeline.vae
    rows, found = max(1, DECODING // (pairs.size[0] * pairs.size[1])), []
    for some in torch.arange(len(pairs.pictures)).split(rows):
        seen = torch.from_numpy(pixels(pairs, some.tolist())).to(vae.device, vae.dtype)
        # Contiguous: noise that is drawn like a latent lies in memory as it does.
        found.append(vae.encode(seen).latent_dist.mode().float().cpu().contiguous())
    latents = (torch.cat(found) - (vae.config.get("shift_factor") or 0.0)) * vae.config.scaling_factor
    if not bool(torch.isfinite(latents).all()):
        raise ValueError(
            f"the autoencoder encodes some picture of '{pairs.file}' to what is no finite number; another "
            f"mixed_precision may help"
        )
    return latents
