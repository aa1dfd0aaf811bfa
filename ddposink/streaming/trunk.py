"""A causal model cut in two: the trunk makes hidden states, and the model itself makes logits of them.

What stands between the last hidden state and the logits is the model's business: a projection, a
scaling (Granite, Cohere), a soft cap (Gemma 2), whatever comes next. Nothing of it is known here. Logits
are made by the model's own forward while its trunk is replaced by a function that returns the hidden
states at hand.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ddposink.streaming.refusals import UnsupportedModelError


class Trunk:
    """The part of ``model`` that turns token ids into hidden states, found by watching the model run.

    Raises UnsupportedModelError if no part of the model is called once per forward and returns hidden states.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.body, self._output = _find_body(model, self.device)
        self._accepted = frozenset(inspect.signature(self.body.forward).parameters)

    @classmethod
    def of(cls, model: nn.Module) -> Trunk:
        """The trunk of ``model``, found once for as long as the model lives."""
        if model not in _found:
            _found[model] = cls(model)
        return _found[model]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def hidden(self, ids: Tensor, positions: Tensor | None, cache: Any = None) -> Tensor:
        """Hidden states (B, L, d) of ``ids`` (B, L) at ``positions`` (B or 1, L), where the model takes any.

        None leaves counting to the model. ``cache`` is one of the library's, read and extended.
        """
        told = positions is not None and "position_ids" in self._accepted
        arguments: dict[str, Any] = {"position_ids": positions} if told else {}
        if cache is not None:
            arguments["past_key_values"] = cache
        return self.body(input_ids=ids, use_cache=cache is not None, **arguments).last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """(n, vocabulary) of ``hidden`` (n, d), made by the model itself."""
        output = self._output(last_hidden_state=hidden[None])
        ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        with _replaced(self.body, output):
            return self.model(input_ids=ids, use_cache=False).logits[0]

    def plain_logits(self, ids: Tensor) -> Tensor:
        """(n, vocabulary) of ``ids`` (n,): one forward of the untouched model, everything seen."""
        return self.model(input_ids=ids[None], use_cache=False).logits[0]


_found: WeakKeyDictionary[nn.Module, Trunk] = WeakKeyDictionary()


def _find_body(model: nn.Module, device: torch.device) -> tuple[nn.Module, type]:
    """The module whose output the model makes its logits of, and the type of that output."""
    decoder = getattr(model, "get_decoder", lambda: None)()
    candidates = [m for m in (model.base_model, decoder) if isinstance(m, nn.Module) and m is not model]
    calls: dict[nn.Module, list[Any]] = {module: [] for module in candidates}
    handles = [m.register_forward_hook(lambda m, _, out: calls[m].append(out)) for m in calls]
    try:
        with torch.no_grad():
            model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    for module, outputs in calls.items():
        if len(outputs) == 1 and getattr(outputs[0], "last_hidden_state", None) is not None:
            return module, type(outputs[0])
    raise UnsupportedModelError(
        f"{type(model).__name__} does not make its logits from the hidden states of one inner model"
    )


@contextmanager
def _replaced(module: nn.Module, output: Any) -> Iterator[None]:
    """``module`` returns ``output`` meanwhile, whatever it is called with."""
    before = vars(module).get("forward")
    module.forward = lambda *_, **__: output
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before
