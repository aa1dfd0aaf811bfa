"""What both trainings share: a state that can be cut off anywhere, averaged weights, a learning rate.

Everything random is a function of the seed and the step, and the whole state lies in one safetensors
file (nothing pickled), so that a run that goes on draws the same batches as one never interrupted.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddposink.assets.catalogue import write_atomic

SAVE_SECONDS = 60.0
LENGTH = ("steps", "stop")
LOG_EVERY = 25  # steps averaged into one entry of the loss curve


@dataclass(frozen=True)
class PipelineRecipe:
    """What every training has. ``steps`` is the length of the learning rate's way down; ``stop`` ends sooner.

    ``decay`` is that of the averaged weights.
    """

    steps: int
    learning_rate: float
    stop: int | None = None
    warm_up: int = 200
    decay: float = 0.999
    seed: int = 0

    @property
    def last(self) -> int:
        """How many steps are taken."""
        return self.steps if self.stop is None else min(self.stop, self.steps)

    def rate(self, step: int) -> float:
        """Learning rate of a step counted from 0: linear warm-up, then a cosine down to a hundredth."""
        falling = 0.505 + 0.495 * math.cos(math.pi * min(1.0, step / max(1, self.steps)))
        return self.learning_rate * min(1.0, (step + 1) / self.warm_up) * falling


@dataclass
class PipelineState:
    """A training in progress. ``average`` is the exponential moving average of ``model``'s weights."""

    recipe: PipelineRecipe
    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: dict[str, Tensor]
    step: int = 0
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)


def new_state(recipe: PipelineRecipe, model: nn.Module) -> PipelineState:
    """State at step 0 of training those parameters of ``model`` that want gradients."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, gains = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.01}, {"params": gains, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        betas=(0.9, 0.99),
        fused=True,
    )
    return PipelineState(
        recipe, model, optimizer, {name: p.detach().clone() for name, p in model.named_parameters()}
    )


def generator(recipe: PipelineRecipe, step: int) -> torch.Generator:
    """The source of everything random in one step."""
    return torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)


def train(
    state: PipelineState, loss_of: Callable[[int, torch.Generator], Tensor], file: Path
) -> Iterator[dict[str, float]]:
    """Train to the schedule's end, saving now and then; yields the newest point of the loss curve."""
    losses: list[float] = []
    begun = saved = time.perf_counter()
    while state.step < state.recipe.last:
        losses.append(_advance(state, loss_of))
        done = state.step == state.recipe.last
        if state.step % LOG_EVERY and not done:
            continue
        now = time.perf_counter()
        state.seconds, begun = state.seconds + now - begun, now
        entry = {"step": state.step, "seconds": state.seconds, "loss": sum(losses) / len(losses)}
        state.curve.append(entry)
        losses = []
        if done or now - saved > SAVE_SECONDS:  # only here: a resumed run then averages the same losses
            save_state(state, file)
            saved = now
        yield entry


def _advance(state: PipelineState, loss_of: Callable[[int, torch.Generator], Tensor]) -> float:
    recipe = state.recipe
    for group in state.optimizer.param_groups:
        group["lr"] = recipe.rate(state.step)
    loss = loss_of(state.step, generator(recipe, state.step))
    loss.backward()
    nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    weight = 1 - min(recipe.decay, (1 + state.step) / (10 + state.step))
    with torch.no_grad():
        names, weights = zip(*state.model.named_parameters(), strict=True)
        torch._foreach_lerp_([state.average[n] for n in names], [w.detach() for w in weights], weight)
    state.step += 1
    return float(loss.detach())


def save_state(state: PipelineState, file: Path) -> None:
    """Weights, averages, optimizer and loss curve in one safetensors file, replaced at once."""
    from safetensors.torch import save

    tensors = {f"model.{name}": p.detach() for name, p in state.model.named_parameters()}
    tensors |= {f"average.{name}": p for name, p in state.average.items()}
    for index, slot in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in slot.items()}
    notes = {"step": state.step, "seconds": state.seconds, "curve": state.curve}
    metadata = {"recipe": json.dumps(asdict(state.recipe)), "notes": json.dumps(notes)}
    write_atomic(file, save({k: v.clone().contiguous() for k, v in tensors.items()}, metadata=metadata))


def load_state(state: PipelineState, file: Path) -> PipelineState:
    """Fill a new ``state`` from ``file``. ``steps`` and ``stop`` may have changed, to end sooner or later.

    Raises ValueError if anything else in the recipe has.
    """
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
        saved, wanted = json.loads(metadata["recipe"]), json.loads(json.dumps(asdict(state.recipe)))
        if changed := [n for n in wanted if n not in LENGTH and saved.get(n) != wanted[n]]:
            was = ", ".join(f"{name}={saved.get(name)}" for name in changed)
            raise ValueError(f"'{file}' was trained with {was}: repeat that or choose another --out")
        with torch.no_grad():
            for name, parameter in state.model.named_parameters():
                parameter.copy_(opened.get_tensor(f"model.{name}"))
                state.average[name].copy_(opened.get_tensor(f"average.{name}"))
        slots: dict[int, dict[str, Tensor]] = {}
        parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
        for key in opened.keys():  # noqa: SIM118 - not a mapping
            if key.startswith("optimizer."):
                _, index, name = key.split(".")
                value, like = opened.get_tensor(key), parameters[int(index)].detach()
                # The fused optimizer walks over memory: its slots must be laid out as their parameters.
                slot = torch.empty_like(like).copy_(value) if value.shape == like.shape else value
                slots.setdefault(int(index), {})[name] = slot
    state.optimizer.load_state_dict(state.optimizer.state_dict() | {"state": slots})
    notes = json.loads(metadata["notes"])
    state.step, state.seconds, state.curve = notes["step"], notes["seconds"], notes["curve"]
    return state


def load_average(model: nn.Module, file: Path) -> dict[str, Any]:
    """Copy the averaged weights saved in ``file`` into ``model``; returns step, seconds and loss curve."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened, torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(opened.get_tensor(f"average.{name}"))
        return json.loads(opened.metadata()["notes"]) | {"recipe": json.loads(opened.metadata()["recipe"])}
