"""Count the work a function does: floating-point operations, operator calls, bytes allocated.

Counts do not depend on the machine's mood: a `cat` that creeps back into decode, a forward done twice
or a cache that is lost shows as an exact jump where a stopwatch sees nothing. Counting slows every
operator down, so it has a repetition of its own and is never combined with timing.

Composite operators are counted by their parts, so that a function counts the same under
``inference_mode``, under ``no_grad`` and with gradients. Under a dispatch mode torch runs compiled
functions eagerly: they are counted as written. What happens inside one operator (a fused kernel's
workspace, a CUDA graph's replay) is not seen, and FlexAttention cannot be counted: torch's own
counter refuses it with a TypeError.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_ATTENTION = (  # forward attention kernels that start with query, key, value
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)


@dataclass(frozen=True)
class WorkCounts:
    """Work of one call. All exact: the same call counts the same on every run.

    ``flops``: matrix products, convolutions and attention, a multiply-add as two; attention counts
    every query-key pair, causal or not (torch's convention). ``calls``: ATen operators dispatched.
    ``cat_calls``: those of them that are ``aten.cat``. ``allocated_bytes``: storage of operator
    outputs that is not an input's (views and in-place results cost nothing).
    """

    flops: int
    calls: int
    cat_calls: int
    allocated_bytes: int


def count_work(fn: Callable[[], object]) -> WorkCounts:
    """Call ``fn`` once and count its work. The result of ``fn`` is dropped, its errors pass through."""
    from torch.utils.flop_counter import FlopCounterMode

    flops = FlopCounterMode(display=False, custom_mapping=_attention_formulas())
    counter = _make_counter()
    with flops, counter:
        fn()
    return WorkCounts(flops.get_total_flops(), counter.calls, counter.cat_calls, counter.allocated_bytes)


def _make_counter() -> Any:
    """The dispatch mode; defined in here because its base class needs torch."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counter(TorchDispatchMode):
        calls = 0
        cat_calls = 0
        allocated_bytes = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if not isinstance(func, torch._ops.OpOverload) or func.namespace == "prim":
                return func(*args, **kwargs)
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
            result = func(*args, **kwargs)
            self.calls += 1
            self.cat_calls += func.overloadpacket is torch.ops.aten.cat
            fresh = _storages(result)
            for key in _storages((args, kwargs)):
                fresh.pop(key, None)
            self.allocated_bytes += sum(fresh.values())
            return result

    return Counter()


def _storages(tree: Any) -> dict[int, int]:
    """Storage identity → bytes, of all strided tensors in nested arguments or results."""
    import torch
    from torch.utils._pytree import tree_iter

    found = {}
    for leaf in tree_iter(tree):
        if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided:
            storage = leaf.untyped_storage()
            found[storage._cdata] = storage.nbytes()
    return found


def _attention_formulas() -> dict[Any, Callable[..., int]]:
    """Formulas where torch has none (its CPU kernel) or, in older releases, none for grouped heads."""
    import torch

    names = [name for name in _ATTENTION if hasattr(torch.ops.aten, name)]
    return {getattr(torch.ops.aten, name): _attention_flops for name in names}


def _attention_flops(
    query: Any, key: Any, value: Any, *_args: Any, out_shape: Any = None, **_kwargs: Any
) -> int:
    """Shapes (B, heads, tokens, width); two matrix products per query head."""
    batch, heads, tokens, width = query
    return 2 * batch * heads * tokens * key[2] * (width + value[3])
