"""The random numbers of a training: its own state of the three global generators, swapped in while it works.

TRL draws from the global generators (prompts from Python's or numpy's, everything else from torch's), and
sameness with it needs the same draws in the same order. Swapping the whole state keeps that, and still
makes a training independent of whatever else draws random numbers between its steps.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


class PromptSource:
    """Hands out prompts, each ``times`` times in a row; both engines draw theirs here.

    A list is drawn from with Python's global generator, without replacement until it is used up or the next
    step begins. A batch is a multiple of ``times`` (`checks`), so nothing is left over between steps that a
    checkpoint would have to keep.
    """

    def __init__(self, prompts: Sequence[str] | Callable[[], str], times: int = 1) -> None:
        self._prompts, self._times = prompts, times
        self._prompt, self._left = "", 0
        self._order: Iterator[int] = iter(())

    def begin(self) -> None:
        """A step begins: every prompt of the list may be drawn again."""
        self._order, self._left = iter(()), 0

    def draw(self) -> str:
        """The next prompt. Raises ValueError if a prompt function answers with something else than a text."""
        if not self._left:
            prompt = self._prompts() if callable(self._prompts) else self._prompts[self._index()]
            if not isinstance(prompt, str):
                raise ValueError(f"the prompt function answered {prompt!r}, not a text")
            self._prompt, self._left = prompt, self._times
        self._left -= 1
        return self._prompt

    def _index(self) -> int:
        found = next(self._order, None)
        if found is None:
            self._order = shuffled(len(self._prompts))  # type: ignore[arg-type]
            found = next(self._order)
        return found

    def names(self) -> list[str]:
        """What a checkpoint knows of the prompts: the texts; of a function only that it was one."""
        return ["(a function)"] if callable(self._prompts) else list(self._prompts)


def shuffled(count: int) -> Iterator[int]:
    """0 … count−1 in random order, drawn as it is asked for (Fisher and Yates): a step needs few of many."""
    moved: dict[int, int] = {}
    for place in range(count):
        other = random.randrange(place, count)
        moved[other], found = moved.get(place, place), moved.get(other, other)
        yield found


def shared_noise(latents: Tensor, times: int) -> Tensor:
    """Initial ``latents`` (B, C, H, W), of every ``times`` in a row the first's. B is a multiple of it."""
    return latents[::times].repeat_interleave(times, dim=0)


def noise_like(latents: Tensor) -> Tensor:
    """Standard normal noise for ``latents`` (B, C, H, W), drawn one by one.

    Drawn together, a latent's noise may depend on how many share a forward: on a CPU it does where a latent's
    size is no multiple of 16.
    """
    return torch.stack([torch.randn_like(one) for one in latents])


class Randomness:
    """A state of Python's, numpy's and torch's generators (CPU and, if used, one CUDA device)."""

    def __init__(self, seed: int, device: torch.device) -> None:
        """Seeded as accelerate's ``set_seed(seed)`` does. ``seed`` already holds the process's rank."""
        self._device = device
        kept = self._read()
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        self._state = self._read()
        self._write(kept)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, the global generators are this state; outside they are as they were."""
        kept = self._read()
        self._write(self._state)
        try:
            yield
        finally:
            self._state = self._read()
            self._write(kept)

    def tensors(self) -> dict[str, Tensor]:
        """The state as tensors, for a checkpoint."""
        python, numpy, torch_state, cuda = self._state
        version, words, gauss = python
        _, keys, position, has_gauss, cached = numpy
        found = {
            "python": torch.tensor([version, *words], dtype=torch.int64),
            "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
            "numpy": torch.from_numpy(np.append(keys.astype(np.int64), (position, has_gauss))),
            "numpy_gauss": torch.tensor([cached], dtype=torch.float64),
            "torch": torch_state.clone(),
        }
        return found if cuda is None else found | {"cuda": cuda.clone()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """The reverse of `tensors`. ValueError if a part is missing."""
        missing = {"python", "python_gauss", "numpy", "numpy_gauss", "torch"} - set(tensors)
        if missing:
            raise ValueError(f"the random state lacks {', '.join(sorted(missing))}")
        version, *words = tensors["python"].tolist()
        gauss = tensors["python_gauss"].tolist()
        *keys, position, has_gauss = tensors["numpy"].tolist()
        self._state = (
            (version, tuple(words), gauss[0] if gauss else None),
            ("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, tensors["numpy_gauss"].item()),
            tensors["torch"].to(torch.uint8),
            # Resumed on another kind of device: its generator goes on from the seed.
            tensors["cuda"].to(torch.uint8) if "cuda" in tensors else self._state[3],
        )

    def _read(self) -> tuple[Any, Any, Tensor, Tensor | None]:
        cuda = torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None
        return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda

    def _write(self, state: tuple[Any, Any, Tensor, Tensor | None]) -> None:
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.set_rng_state(state[2])
        if state[3] is not None and self._device.type == "cuda":
            torch.cuda.set_rng_state(state[3], self._device)
