"""What kvpress 0.5.5 keeps of 512 tokens of a book at half the budget, and what the next tokens cost there.

Its outputs are kept beside this file, as it needs an older transformers than ours: a hexadecimal number for
every layer and head, whose bit j says that token j is kept, and the NLL of tokens 513 to 639.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddposink.caches import Held, Policy, Ranked, parse_policy
from ddposink.models.language import LoadedModel, ModelRef, load_model
from ddposink.streaming import KeptStream, open_stream
from ddposink.streaming.selection import choose

OURS = {
    "streaming_llm": "sink 4+252",
    "knorm": "knorm 256",
    "tova": "tova 256",
    "snapkv": "snapkv 256",
    "h2o": "h2o 256 recent=0 average=true",
    "keydiff": "keydiff 256",
    "expected_attention": "expected-attention 256",
}


@pytest.fixture(scope="module")
def peer() -> dict[str, Any]:
    kept = Path(__file__).with_name("kvpress_10146.json.gz").read_bytes()
    found: dict[str, Any] = json.loads(gzip.decompress(kept))
    assert found["policies"].keys() == OURS.keys()
    return found


@pytest.fixture(scope="module")
def smollm() -> LoadedModel:
    return load_model(ModelRef.parse("smollm2-135m"), "float32", "cpu")


@pytest.mark.assets
@pytest.mark.parametrize("name", OURS)
def test_the_same_tokens_are_kept_and_the_next_ones_cost_the_same(
    peer: dict[str, Any], smollm: LoadedModel, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores: dict[int, torch.Tensor] = {}

    def watched(policy: Policy, held: Held, count: int) -> torch.Tensor:
        if isinstance(policy, Ranked):
            scores[held.layer] = policy.scores(held)
        return choose(policy, held, count)

    monkeypatch.setattr("ddposink.streaming.kept.choose", watched)
    ids = torch.tensor(smollm.tokenizer(peer["text"]).input_ids[:640])
    policy = parse_policy(f"{OURS[name]} evict=once:512 positions=absolute")
    stream = open_stream(smollm.model, policy, chunk=512).stream
    assert isinstance(stream, KeptStream)
    with stream.attached():
        stream.feed(ids[:512])
        for i, theirs in enumerate(peer["policies"][name]["kept_bits_hex"]):
            for head, bits in enumerate(theirs):
                mine = set(stream.state[i].positions[head].tolist())
                other = {j for j in range(512) if int(bits, 16) >> j & 1}
                # Two tokens may change places where their scores differ by rounding: one ulp was seen.
                for a, b in zip(sorted(mine - other), sorted(other - mine), strict=True):
                    gap = float(scores[i][head, a] - scores[i][head, b])
                    assert abs(gap) < 1e-6, f"layer {i} head {head}: {a} for {b}, score gap {gap:.2g}"
        nll = stream.head.nll(stream.feed(ids[512:639]), ids[513:640]).numpy()
    assert np.abs(nll - np.array(peer["policies"][name]["nll"])).max() < 1e-3
