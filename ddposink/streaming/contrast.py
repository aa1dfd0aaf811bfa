"""Which tokens need what stands far back: the key tokens of LongPPL (Fang et al. 2025, arXiv 2410.23771).

Perplexity is a mean over tokens most of which need their neighbours alone. Here the model, dense and
untouched, reads every token twice: after the whole text, and after the last few hundred tokens. A token is a
key token if the whole text makes it more likely by more than `ALPHA` nats (the paper's long-short
difference), and if its log-probability then exceeds `BETA` (its long-context likelihood).
"""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from ddposink.caches import Dense
from ddposink.caches.recompute import Recompute
from ddposink.streaming.perplexity import evaluate

ALPHA, BETA = 2.0, -2.0  # nats, the paper's


def contrasted(model: nn.Module, ids: Tensor, context: int, chunk: int) -> np.ndarray:
    """NLL (2, N-1) in nats of ``ids`` (N,) under dense attention, after the whole text and a short context.

    The latter holds between ``context`` and 1.25 ``context`` tokens, as in the authors' program (4,096 and
    1,024 there). Raises what `open_stream` does. No other stream of the model may be attached.
    """
    from ddposink.streaming import open_stream

    quarter = max(1, context // 4)
    policies = (Dense(), Recompute(window=context + quarter, stride=quarter))
    return np.stack([evaluate(open_stream(model, one, chunk=chunk).stream, ids) for one in policies])


def key_tokens(nll: np.ndarray) -> np.ndarray:
    """Which tokens are key tokens (N-1,) bool, of NLLs (2, N-1) as `contrasted` gives them."""
    whole, short = nll
    return (short - whole > ALPHA) & (-whole > BETA)
