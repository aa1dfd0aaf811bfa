"""The `attention` workload at work, in the child: pieces of a text, each read afresh, then the text once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.workload import Cell, Context, Scalar, Skip
from ddposink.corpora import CorpusRef, load_stream
from ddposink.devices import chosen_device
from ddposink.errors import Unavailable
from ddposink.models.language import LoadedModel, ModelRef, load_model
from ddposink.streaming.attention import Attention, Shares
from ddposink.workloads.attention_params import AttentionParams
from ddposink.workloads.attention_shares import Reading, along, by_head, of_pieces
from ddposink.workloads.common_params import RANDOM_TOKENS


def run(cells: Sequence[tuple[Cell, AttentionParams]], ctx: Context) -> None:
    """Measure ``cells``, each on its own."""
    for cell, params in cells:
        if params.threads:
            torch.set_num_threads(params.threads)
        try:
            device = chosen_device(params.device)
            loaded = load_model(ModelRef.parse(params.model), params.dtype, str(device))
            text, convention = _text(params, loaded, cell.seed)
        except Unavailable as error:
            raise Skip(str(error)) from error
        _measure(cell, params, loaded, text.to(device), convention, ctx)


def _measure(
    cell: Cell, params: AttentionParams, loaded: LoadedModel, text: Tensor, convention: str, ctx: Context
) -> None:
    attention = Attention(loaded.model, params.chunk)
    total, pieces = params.pieces * params.span + params.length, list[Reading]()
    heads, worst = None, 0.0
    for piece in _pieces(text, params):
        heads = attention.read(piece)
        pieces.append(_reading(heads))
        worst = max(worst, heads.worst_sum)
        ctx.progress(len(pieces) * params.span, total)
    assert heads is not None  # there is at least one piece
    whole = attention.read(text[: params.length])
    ctx.progress(total, total)
    maps, bins = by_head(pieces), along(_reading(whole), params.threshold)
    saved = [
        _save(ctx.out / f"sinkmap-{params.length}.npz", _places(heads) | maps),
        _save(ctx.out / f"along-{params.length}.npz", bins),
    ]
    top = int(maps["sink"].argmax())
    far = {"attention_first_far": bins["first"][-1], "attention_first_four_far": bins["few"][-1]}
    finite = all(np.isfinite(values).all() for values in (*maps.values(), *bins.values()))
    ctx.emit(
        cell,
        of_pieces(pieces, params.threshold) | {name: float(value) for name, value in far.items()},
        status="ok" if finite else "nan",
        reason=None if finite else "some attention is NaN",
        facts=_facts(loaded) | {"strongest_head": f"layer {heads.layer[top]}, head {heads.head[top]}"},
        conformance={
            "attention_layers": len(attention.windows),
            "layers_with_own_window": sum(own is not None for own in attention.windows.values()),
            "farthest_sum_from_1": max(worst, whole.worst_sum),
            "tokens_fed": total,
            "corpus_convention": convention,
        },
        artifacts=saved,
    )


def _text(params: AttentionParams, loaded: LoadedModel, seed: int) -> tuple[Tensor, str]:
    """Token ids (N,), with the BOS first if it is asked for, and one line on the text."""
    count = max(params.length, params.pieces * params.span)
    if params.corpus == RANDOM_TOKENS:
        vocabulary = loaded.model.config.get_text_config().vocab_size
        drawn = torch.randint(0, vocabulary, (count,), generator=torch.Generator().manual_seed(seed))
        return drawn, "uniform random token ids, seeded"
    found = load_stream(CorpusRef.parse(params.corpus), loaded.tokenizer, count, bos=params.bos)
    return torch.from_numpy(np.ascontiguousarray(found.ids[:count])), found.convention


def _pieces(text: Tensor, params: AttentionParams) -> Iterator[Tensor]:
    """Pieces (span,) of the text from its beginning on, without overlap; each begins with the BOS, if any."""
    size = params.span - params.bos
    for i in range(params.pieces):
        begin = params.bos + i * size
        piece = text[begin : begin + size]
        yield torch.cat([text[:1], piece]) if params.bos else piece


def _reading(shares: Shares) -> Reading:
    first, few = (one.double().numpy() for one in (shares.first, shares.few))
    return Reading(first, few, None if shares.learned is None else shares.learned.double().numpy())


def _places(shares: Shares) -> dict[str, np.ndarray]:
    """Layer and head (N,) of every row."""
    return {"layer": shares.layer.numpy(), "head": shares.head.numpy()}


def _facts(loaded: LoadedModel) -> dict[str, Scalar]:
    return {"train_length": loaded.train_length, "threads": torch.get_num_threads(), **loaded.facts}


def _save(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """Equally long named arrays; shares in float32."""
    kept: dict[str, Any] = {k: v.astype(np.float32) if v.dtype.kind == "f" else v for k, v in arrays.items()}
    np.savez_compressed(path, **kept)
    return path
