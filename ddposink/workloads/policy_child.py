"""What workloads under a cache policy do in the child: load the model, prove that the policy was applied."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.workload import Scalar
from ddposink.caches import Policy
from ddposink.caches.schedule import slots_by_turns
from ddposink.models.language import LoadedModel, ModelRef, load_model
from ddposink.streaming import PolicyNotAppliedError, Stream, refuse_by_configuration


def load_under(policy: Policy, model: str, dtype: str, device: torch.device) -> LoadedModel:
    """The model, unless its configuration says that ``policy`` cannot be defined on it."""
    ref = ModelRef.parse(model)
    refuse_by_configuration(policy, ref.config_dict())
    return load_model(ref, dtype, str(device))


def facts_of(loaded: LoadedModel, device: torch.device) -> dict[str, Scalar]:
    """What a record says of the model and of what it ran on."""
    return {
        "train_length": loaded.train_length,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        **loaded.facts,
    }


def applied(
    policy: Policy, stream: Stream, reason: str, turn_ends: Tensor | None = None
) -> dict[str, Scalar]:
    """Proof that the policy was applied, for the record; raises PolicyNotAppliedError where it was not.

    Slots of every layer and measured bytes are held against what the cell's ``policy`` promises, whatever the
    stream takes its own to be. Where the text decides when tokens leave and its ``turn_ends`` are not given,
    bytes alone are.
    """
    held = stream.slots()
    predicted, measured = stream.predicted_bytes(), stream.nbytes()
    expected = policy.slots(stream.seen, len(held))
    if policy.evict.by_turns:
        ends = None if turn_ends is None else turn_ends.numpy()
        expected = held if ends is None else slots_by_turns(policy, ends, stream.seen, len(held))
    if held != expected or measured != predicted:
        raise PolicyNotAppliedError(
            f"after {stream.seen} tokens the layers hold {_range(held)} tokens in {measured} bytes; "
            f"'{policy}' promises {_range(expected)} tokens in {predicted} bytes"
        )
    return {
        "path": stream.path,
        "path_reason": reason,
        "attention_calls_per_layer": stream.calls_per_layer,
        "tokens_held": stream.held,
        "tokens_held_per_layer": _range(held),
        "largest_position": stream.largest_position,
        "kv_bytes_predicted": predicted,
        "kv_bytes_measured": measured,
        "first_query_missing_a_token": stream.missing_from,
    }


def _range(held: list[int]) -> str:
    """Slots of every key-value head, from the layer with the fewest to the one with the most."""
    least, most = min(held), max(held)
    return f"{least}" if least == most else f"{least}…{most}"
