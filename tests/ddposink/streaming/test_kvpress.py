"""What kvpress 0.5.5 keeps of 512 tokens of a book at half the budget, and what the next tokens cost there.

The peer needs an older transformers than ours, so its outputs are kept beside this file: for every layer and head
a hexadecimal number whose bit j says that token j is kept, and the NLL of tokens 513 to 639.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddposink.caches import parse_policy
from ddposink.models.language import LoadedModel, ModelRef, load_model
from ddposink.streaming import KeptStream, open_stream

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
    found: dict[str, Any] = json.loads(Path(__file__).with_name("kvpress_10146.json").read_text("utf-8"))
    assert found["policies"].keys() == OURS.keys()
    return found


@pytest.fixture(scope="module")
def smollm() -> LoadedModel:
    return load_model(ModelRef.parse("smollm2-135m"), "float32", "cpu")


@pytest.mark.assets
@pytest.mark.parametrize("name", OURS)
def test_the_same_tokens_are_kept_and_the_next_ones_cost_the_same(
    peer: dict[str, Any], smollm: LoadedModel, name: str
) -> None:
    ids = torch.tensor(smollm.tokenizer(peer["text"]).input_ids[:640])
    policy = parse_policy(f"{OURS[name]} evict=once:512 positions=absolute")
    stream = open_stream(smollm.model, policy, chunk=200).stream  # not the piece that the peer read
    assert isinstance(stream, KeptStream)
    with stream.attached():
        while stream.seen < 512:
            size = stream.next_size(512 - stream.seen)
            stream.feed(ids[stream.seen : stream.seen + size])
        for layer, theirs in zip(stream.state.values(), peer["policies"][name]["kept_bits_hex"], strict=True):
            for head, bits in zip(layer.positions.tolist(), theirs, strict=True):
                assert set(head) == {j for j in range(512) if int(bits, 16) >> j & 1}
        nll = stream.head.nll(stream.feed(ids[512:639]), ids[513:640]).numpy()
    assert np.abs(nll - np.array(peer["policies"][name]["nll"])).max() < 1e-3
