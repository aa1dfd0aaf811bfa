"""Training of a small Llama in steps that can be cut off anywhere and looked at with the streaming evaluator.

Everything random is a function of the seed and the step, and the whole state lies in one safetensors
file (nothing pickled): a run that goes on from it ends in the same bits as one never interrupted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from ddposink.assets.catalogue import write_atomic
from ddposink.caches import parse_policy
from ddposink.streaming import evaluate, open_stream

SINKS_KEPT = (0, 1, 2, 4)


@dataclass(frozen=True)
class SinkRecipe:
    """Everything that decides the result. ``context`` counts the sink token too."""

    sink_token: bool = False
    steps: int = 3_400
    layers: int = 6
    width: int = 128
    heads: int = 4
    context: int = 256
    batch: int = 4
    vocabulary: int = 320  # little more than bytes: the smaller the units, the sooner heads find work
    learning_rate: float = 4e-3
    warm_up: int = 200
    decay: float = 0.25  # the last part of the steps, in which the rate falls linearly to zero
    weight_decay: float = 0.1
    bfloat16: bool = True  # autocast; weights and optimizer stay float32
    seed: int = 0

    def rate(self, step: int) -> float:
        """Learning rate of a step counted from 0: linear warm-up, constant, linear decay."""
        left = (self.steps - step) / max(1.0, self.decay * self.steps)
        return self.learning_rate * min(1.0, (step + 1) / self.warm_up, left)


@dataclass
class SinkState:
    """A training in progress; ``history`` has one entry per look."""

    recipe: SinkRecipe
    model: Any
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Pace:
    """How often to look for sinks (steps) and, at a look, how long ago the last save must be (seconds)."""

    look: int = 500
    save_seconds: float = 120.0


def new_state(recipe: SinkRecipe) -> SinkState:
    """Model and optimizer at step 0, seeded."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.width,
        intermediate_size=3 * recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=True,
        bos_token_id=0 if recipe.sink_token else None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    gains = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": gains, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    return SinkState(recipe, model, optimizer)


def sample(ids: Tensor, recipe: SinkRecipe, step: int) -> Tensor:
    """(batch, context) windows of ``ids`` (N,), the same for a step whenever it is asked for."""
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    length = recipe.context - recipe.sink_token
    starts = torch.randint(0, len(ids) - length + 1, (recipe.batch,), generator=generator)
    windows = ids[starts[:, None] + torch.arange(length)]
    return torch.nn.functional.pad(windows, (1, 0), value=0) if recipe.sink_token else windows


def advance(state: SinkState, ids: Tensor) -> float:
    """One optimizer step; returns its loss in nats per token."""
    recipe, batch = state.recipe, sample(ids, state.recipe, state.step)
    for group in state.optimizer.param_groups:
        group["lr"] = recipe.rate(state.step)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=recipe.bfloat16):
        loss = state.model(input_ids=batch, labels=batch, use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    return float(loss.detach())


def look(state: SinkState, held_out: Tensor) -> dict[str, Any]:
    """Signs of sinks: NLL after eviction by number of first tokens kept, attention mass on position 0.

    ``nll``: {sinks kept: nats per token}; ``mass``: per layer the mean over heads, and that of its
    strongest head, over queries in the second half of the context.
    """
    window, model = state.recipe.context, state.model.eval()
    nll = {}
    for kept in SINKS_KEPT:
        policy = parse_policy(f"sink {kept}+{window - kept}" if kept else f"window {window}")
        nll[str(kept)] = float(evaluate(open_stream(model, policy).stream, held_out)[window + 1 :].mean())
    model.set_attn_implementation("eager")
    with torch.no_grad():
        starts = torch.arange(0, len(held_out) - window, window)[:16]
        batch = held_out[starts[:, None] + torch.arange(window)]
        if state.recipe.sink_token:
            batch[:, 0] = 0
        attentions = model(input_ids=batch, output_attentions=True, use_cache=False).attentions
    model.set_attn_implementation("sdpa")
    model.train()
    first = torch.stack([a[:, :, window // 2 :, 0].mean((0, 2)) for a in attentions])
    mass = {"mean": first.mean(1).tolist(), "strongest_head": first.amax(1).tolist()}
    return {"nll": nll, "mass": mass}


def save_checkpoint(state: SinkState, file: Path) -> None:
    """Weights, optimizer and history in one safetensors file, replaced at once."""
    from safetensors.torch import save

    tensors = {f"model.{name}": p.detach() for name, p in state.model.named_parameters()}
    for index, slot in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in slot.items()}
    notes = {"step": state.step, "seconds": state.seconds, "history": state.history}
    metadata = {"recipe": json.dumps(asdict(state.recipe)), "notes": json.dumps(notes)}
    write_atomic(file, save({k: v.contiguous() for k, v in tensors.items()}, metadata=metadata))


def load_checkpoint(file: Path, recipe: SinkRecipe) -> SinkState:
    """The state saved in ``file``. ``recipe.steps`` may have changed, to end early or to prolong.

    Raises ValueError if anything else in the recipe has.
    """
    from safetensors import safe_open

    state = new_state(recipe)
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
        saved, wanted = json.loads(metadata["recipe"]), asdict(recipe)
        changed = [name for name in wanted if name != "steps" and saved.get(name) != wanted[name]]
        if changed:
            was = ", ".join(f"{name}={saved.get(name)}" for name in changed)
            raise ValueError(f"'{file}' was trained with {was}: repeat these options or choose another --out")
        with torch.no_grad():
            for name, parameter in state.model.named_parameters():
                parameter.copy_(opened.get_tensor(f"model.{name}"))
        slots: dict[int, dict[str, Tensor]] = {}
        for key in opened.keys():  # noqa: SIM118 - not a mapping
            if key.startswith("optimizer."):
                _, index, name = key.split(".")
                slots.setdefault(int(index), {})[name] = opened.get_tensor(key)
    state.optimizer.load_state_dict(state.optimizer.state_dict() | {"state": slots})
    notes = json.loads(metadata["notes"])
    state.step, state.seconds, state.history = notes["step"], notes["seconds"], notes["history"]
    return state


def train(state: SinkState, ids: Tensor, held_out: Tensor, file: Path, pace: Pace) -> Iterator[float]:
    """Train to the recipe's last step, looking and saving as ``pace`` says; yields each step's loss."""
    losses: list[float] = []
    begun = saved = time.perf_counter()
    while state.step < state.recipe.steps:
        losses.append(advance(state, ids))
        done = state.step == state.recipe.steps
        if state.step % pace.look == 0 or done:
            now = time.perf_counter()
            state.seconds, begun = state.seconds + now - begun, now
            entry = {"step": state.step, "loss": sum(losses) / len(losses), "seconds": state.seconds}
            entry["learning_rate"] = state.recipe.rate(state.step - 1)
            state.history.append(entry | look(state, held_out))
            # Saved at looks only: a resumed run then averages the same losses as an uninterrupted one.
            if done or now - saved > pace.save_seconds:
                save_checkpoint(state, file)
                saved = now
            yield losses[-1]
            losses = []
        else:
            yield losses[-1]
