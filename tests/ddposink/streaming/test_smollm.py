"""The real model on a real book: exact = decode = plain = reference on every token, eviction running.

Sixteen passages of the novel are sixteen streams. Decode and the plain peer feed them in step, one token
of each per forward: that costs twice a forward of one token, not sixteen times. The reference, which feeds a
token at every place of the cache, reads one passage at a small budget.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.plain import ConcatenatingStream
from ddposink.caches import parse_policy
from ddposink.corpora import CorpusRef, load_stream
from ddposink.models.language import ModelRef, load_model
from ddposink.streaming import DecodeStream, ExactStream, ReferenceStream, Stream, evaluate, inspect

POLICY = parse_policy("sink 4+60")
STREAMS, TOKENS = 16, 192


def in_step(stream: Stream, ids: Tensor) -> np.ndarray:
    """NLL (B, n-1) of B streams ``ids`` (B, n), one token of each per forward."""
    with stream.attached():
        columns = [
            stream.head.nll(stream.feed(ids[:, t : t + 1]), ids[:, t + 1]) for t in range(ids.shape[1] - 1)
        ]
    return torch.stack(columns, 1).numpy()


@pytest.mark.assets
def test_smollm_on_a_novel_exact_equals_decode_equals_reference() -> None:
    torch.set_num_threads(1)  # two wait for each other wherever the machine is busy
    loaded = load_model(ModelRef.parse("smollm2-135m"), "float32", "cpu")
    model, positions = loaded.model, inspect(loaded.model).positions
    assert positions is not None
    text = load_stream(CorpusRef.parse("novel:persuasion"), loaded.tokenizer, STREAMS * TOKENS)
    ids = torch.from_numpy(text.ids[: STREAMS * TOKENS]).long().view(STREAMS, TOKENS)

    exact = np.stack([evaluate(ExactStream(model, POLICY, positions, 1024), one) for one in ids])
    decode = in_step(DecodeStream(model, POLICY, positions), ids)
    plain = in_step(ConcatenatingStream(model, POLICY, positions), ids)
    alone = evaluate(DecodeStream(model, POLICY, positions), ids[0, :90])

    assert POLICY.evicts_from is not None
    assert exact[:, POLICY.evicts_from :].size >= 2000  # tokens with eviction running, all in all
    assert np.abs(decode - exact).max() < 1e-3
    assert np.abs(plain - exact).max() < 1e-3
    assert np.abs(alone - plain[0, :89]).max() < 1e-3  # one stream by itself, 24 tokens of it evicting
    small, passage = parse_policy("sink 2+10"), ids[0, :60]
    reference = evaluate(ReferenceStream(model, small, positions), passage)
    assert np.abs(evaluate(ExactStream(model, small, positions, 25), passage) - reference).max() < 1e-3
    assert 3.0 < exact.mean() < 4.5  # a language model reading English, not noise
