"""What dense attention says of the same tokens, beside the policy: divergence and key tokens."""

from __future__ import annotations

import numpy as np

from bench.workload import Missing
from ddposink.caches import Dense
from ddposink.streaming import (
    DenseStream,
    Divergence,
    contrasted,
    key_tokens,
    length_limit,
    open_stream,
)
from ddposink.workloads.stream_decoding import DecodeRun
from ddposink.workloads.stream_params import StreamParams
from ddposink.workloads.stream_quality import DIVERGENCE, KEYS, Measured, divergence, of_key_tokens


def divergence_of(params: StreamParams, state: DecodeRun) -> Divergence | Missing | None:
    """Dense attention that reads the same text, or why there is none to compare with."""
    if "divergence" not in params.measure:
        return None
    if state.text.corpus is None:
        return Missing("random weights: their predictions say nothing")
    if params.parsed_policy == Dense():
        return Missing("dense is the reference itself")
    dense = open_stream(state.loaded.model, Dense(), chunk=params.chunk).stream
    if not isinstance(dense, DenseStream):
        return Missing("dense attention on the library's own cache is not read beside another stream")
    return Divergence(dense, state.text.ids[: params.length])


def key_tokens_of(params: StreamParams, state: DecodeRun) -> np.ndarray | Missing | None:
    """Which of the text's tokens are key tokens (L-1,), or why nobody knows; before anything else is read."""
    if "key_tokens" not in params.measure:
        return None
    if state.text.corpus is None:
        return Missing("random weights: their predictions say nothing")
    ids = state.text.ids[: min([params.length, *_ends(state)])]
    return key_tokens(contrasted(state.loaded.model, ids, params.key_context, params.chunk))


def against_dense(params: StreamParams, state: DecodeRun) -> Measured:
    """Figures against dense, as far as dense is a reference."""
    beside = state.divergence
    if beside is None:
        return {}
    if isinstance(beside, Missing):
        return dict.fromkeys(DIVERGENCE, beside)
    beside.catch_up()
    if why := _beyond(params, state):
        return dict.fromkeys(DIVERGENCE, why)
    assert state.text.corpus is not None
    target = state.text.corpus.target[1 : params.length]
    return divergence(beside.kl, beside.agree, beside.lost, target)


def on_key_tokens(params: StreamParams, state: DecodeRun) -> Measured:
    """LongPPL, as far as dense can say which tokens count."""
    if state.keys is None:
        return {}
    if isinstance(state.keys, Missing):
        return dict.fromkeys(KEYS, state.keys)
    if why := _beyond(params, state):
        return dict.fromkeys(KEYS, why)
    assert state.text.corpus is not None
    fed = params.length - 1
    return of_key_tokens(state.nll[:fed], state.keys[:fed], state.text.corpus.target[1 : fed + 1])


def _beyond(params: StreamParams, state: DecodeRun) -> Missing | None:
    """Why dense is no reference at this length; None if it is."""
    why = next((why for end, why in _ends(state).items() if params.length > end), None)
    return Missing(f"dense, the reference, {why}") if why else None


def _ends(state: DecodeRun) -> dict[int, str]:
    """Lengths beyond which dense, read in pieces, is no reference, and what it is there."""
    limit, trained = length_limit(state.loaded.model), state.loaded.train_length
    ends = {} if limit is None else {limit: f"has other rotary frequencies beyond {limit:,} tokens"}
    return (
        ends if trained is None else ends | {trained: f"is beyond its training length of {trained:,} tokens"}
    )
