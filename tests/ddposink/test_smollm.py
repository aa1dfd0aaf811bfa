"""The real model on a real book: exact = decode = reference on every token, eviction running."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ddposink.caches import parse_policy
from ddposink.corpora import CorpusRef, load_stream
from ddposink.models import ModelRef, load_model
from ddposink.verify import compare


@pytest.mark.assets
def test_smollm_on_a_novel_exact_equals_decode_equals_reference() -> None:
    loaded = load_model(ModelRef.parse("smollm2-135m"), "float32", "cpu")
    ids = torch.from_numpy(load_stream(CorpusRef.parse("novel:persuasion"), loaded.tokenizer, 2050).ids)
    exact, decode, reference = compare(loaded.model, parse_policy("sink 4+124"), ids)
    assert (exact.name, decode.name, reference.name) == ("exact", "decode", "reference")
    assert exact.nll is not None
    assert len(exact.nll) == 2049  # 1,921 of them with eviction running
    for other in (decode, reference):
        assert other.nll is not None
        assert np.abs(other.nll - exact.nll).max() < 1e-3
    assert 3.0 < exact.nll.mean() < 4.5  # a language model reading English, not noise
