"""What a reward is: pictures and prompts in, one number per picture out, higher being better.

A name in a suite is read without torch (`RewardRef`), so that a suite can be planned anywhere; weights
are loaded by `RewardKind.load`. Whatever is loaded is wrapped by `checked`: training must never learn
from a number that is not one, and a reward that fails must show the pictures on which it failed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

RewardFunction = Callable[["Tensor", list[str]], "Tensor"]  # (B,3,H,W) in [0,1], prompts -> (B,) float32


@dataclass(frozen=True)
class RewardInfo:
    """Facts of a reward for tables and cards; ``range`` is where its values usually lie.

    ``label`` names it in tables (default: its name), and ``evaluated`` says whether every cell of a suite can
    be scored on it: not so a control, or a sum of others. ``differentiable`` says whether its function has a
    gradient with respect to the pictures, as algorithm `draft` needs it.
    """

    range: tuple[float, float]
    unit: str
    needs: str  # what must be had to compute it, in words
    licence: str  # of weights and data
    source: str  # paper or definition
    direction: str = "higher"
    label: str = ""
    evaluated: bool = True
    differentiable: bool = False


class Reward(Protocol):
    """A loaded reward. Raises RewardError, never returns what is not finite."""

    @property
    def name(self) -> str:
        """Canonical text form."""

    @property
    def info(self) -> RewardInfo:
        """What its numbers are."""

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """(B, 3, H, W) in [0, 1] and B prompts → (B,) float32, higher is better."""

    def with_gradient(self, images: Tensor, prompts: list[str]) -> Tensor:
        """The same with a history that leads to ``images``, if the reward is differentiable."""


class RewardKind:
    """What is registered under a name. Importing the module of a kind must not import torch.

    ``argument`` is what follows the name (``preference:path:DIR`` → ``path:DIR``, ``aesthetic@REV`` →
    ``@REV``), empty if nothing does.
    """

    info: RewardInfo

    def parse(self, argument: str) -> str:
        """The canonical form of ``argument``. Raises ValueError naming what was expected."""
        if argument:
            raise ValueError(f"it takes nothing after its name, not '{argument}'")
        return ""

    def identity(self, argument: str) -> dict[str, str]:
        """What the numbers depend on: revisions, sha256, definition. No network, no torch."""
        raise NotImplementedError

    def runs_code(self, argument: str) -> bool:
        """Whether loading it runs code that ``argument`` names."""
        return False

    def differentiable(self, argument: str) -> bool:
        """Whether its function has a gradient with respect to the pictures."""
        return self.info.differentiable

    def unanswered(self, argument: str, prompts: tuple[str, ...]) -> str | None:
        """Why it has no number for pictures of some ``prompts``, in words; None if it has for all."""
        return None

    def load(self, argument: str, device: str) -> RewardFunction:
        """The function. Raises Unavailable in one line if its weights cannot be had here."""
        raise NotImplementedError


class RewardError(RuntimeError):
    """A reward failed on a batch, which comes with the error; ``nan`` if it returned what is not finite."""

    def __init__(self, name: str, what: str, images: Any, prompts: list[str], rewards: Any = None) -> None:
        super().__init__(f"reward '{name}' {what}")
        self.images, self.prompts, self.rewards = images, list(prompts), rewards
        self.nan = rewards is not None

    def save(self, folder: Path) -> list[Path]:
        """Write the batch to ``folder``/reward-error.npz: images (B, 3, H, W), prompts, rewards if any."""
        import numpy as np

        arrays = {"images": self.images.detach().float().cpu().numpy(), "prompts": np.array(self.prompts)}
        if self.rewards is not None:
            arrays["rewards"] = self.rewards.detach().float().cpu().numpy()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "reward-error.npz"
        np.savez_compressed(path, **arrays)
        return [path]


@dataclass(frozen=True)
class Checked:
    """A reward whose answers have been looked at; see `checked`. ``function`` gets copies."""

    name: str
    info: RewardInfo
    function: RewardFunction

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """(B, 3, H, W) in [0, 1] and B prompts → (B,) float32. Raises RewardError with the batch."""
        import torch

        try:
            with torch.no_grad():
                rewards = self.function(images.clone(), list(prompts))  # it may write into what it gets
        except (RewardError, MemoryError, torch.OutOfMemoryError):  # the last two are outcomes of their own
            raise
        except Exception as error:
            what = f"raised {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise RewardError(self.name, what, images, prompts) from error
        if fault := _fault(rewards, len(prompts)):
            raise RewardError(self.name, fault, images, prompts)
        if not (finite := torch.isfinite(rewards)).all():
            bad = int((~finite).sum())
            what = f"returned {bad} of {len(prompts)} values that are not finite"
            raise RewardError(self.name, what, images, prompts, rewards)
        return rewards

    def with_gradient(self, images: Tensor, prompts: list[str]) -> Tensor:
        """(B, 3, H, W) in [0, 1] and B prompts → (B,) float32 with a history that leads to ``images``.

        Raises RewardError with the batch where an answer is not a finite number, or has no gradient.
        """
        import torch

        try:
            rewards = self.function(images, list(prompts))
        except (RewardError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            what = f"raised {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise RewardError(self.name, what, images, prompts) from error
        if not isinstance(rewards, torch.Tensor) or not rewards.requires_grad:
            raise RewardError(self.name, "has no gradient with respect to the pictures", images, prompts)
        if fault := _fault(rewards.detach(), len(prompts)):
            raise RewardError(self.name, fault, images, prompts)
        if not (finite := torch.isfinite(rewards.detach())).all():
            bad = int((~finite).sum())
            what = f"returned {bad} of {len(prompts)} values that are not finite"
            raise RewardError(self.name, what, images, prompts, rewards)
        return rewards


def checked(name: str, info: RewardInfo, function: RewardFunction) -> Checked:
    """``function`` as a reward: without gradients, and only finite float32 of shape (B,) come out of it.

    Anything else raises RewardError, which carries the batch.
    """
    return Checked(name, info, function)


def _fault(rewards: Any, count: int) -> str | None:
    """What is wrong with the form of an answer to ``count`` pictures."""
    import torch

    if not isinstance(rewards, torch.Tensor):
        return f"returned {type(rewards).__name__}, not a tensor"
    if tuple(rewards.shape) != (count,):
        return f"returned shape {tuple(rewards.shape)} for {count} pictures, not ({count},)"
    if rewards.dtype != torch.float32:
        return f"returned {str(rewards.dtype).removeprefix('torch.')}, not float32"
    if rewards.requires_grad:
        return "returned a tensor with gradients; return it detached"
    return None


def to_uint8(images: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] → (B, H, W, 3) uint8 on the CPU: the pictures as they would be saved."""
    import torch

    return (images.detach().float() * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu()
