"""From per-token NLL to the figures of a cell. Pure: arrays in, numbers out."""

from __future__ import annotations

import numpy as np

from bench.workload import Missing, Samples
from ddposink.caches import Policy
from ddposink.corpora import TokenStream

BLOCK = 128  # tokens
LOST = 1.0  # nats
FEW_KEYS = 16  # fewer key tokens say nothing
KEYS = ("key_tokens", "nll_key", "longppl")
DIVERGENCE = ("kl_dense", "top1_agreement", "lost_tokens")
Measured = dict[str, float | int | Missing | Samples | None]
REFUSED = (
    *("perplexity", "nll", "perplexity_post", "nll_post", "bits_per_byte", "word_perplexity"),
    *("nll_half", "scored_tokens", "nonfinite_tokens"),
)


def quality(nll: np.ndarray, missing_from: int | None, policy: Policy, corpus: TokenStream) -> Measured:
    """Figures of the NLLs (L-1,) of L tokens fed; index 0 is the prediction of the second token.

    Only targets of the corpus count: a BOS that was put between books predicts nothing of the text.
    ``missing_from``: index of the first query that missed an earlier token, None if none did.
    """
    fed = len(nll) + 1
    target = corpus.target[1:fed]
    every, nll = nll.astype(np.float64), nll[target].astype(np.float64)
    if not len(nll):
        return refusals("no token of the text is scored")
    metrics: Measured = {
        "nll": float(nll.mean()),
        "perplexity": exp(float(nll.mean())),
        "scored_tokens": len(nll),
        "nonfinite_tokens": int((~np.isfinite(nll)).sum()),
    }
    post = every[missing_from:][target[missing_from:]] if missing_from is not None else nll[:0]
    if len(post):
        metrics |= {"nll_post": float(post.mean()), "perplexity_post": exp(float(post.mean()))}
    else:
        why = Missing(
            "dense evicts nothing" if not policy.bounded else f"nothing evicted within {fed} tokens"
        )
        metrics |= {"nll_post": why, "perplexity_post": why}
    metrics["nll_half"] = of_second_half(every, target)
    total_bytes = int(corpus.byte_end[fed - 1] - corpus.byte_end[0])
    total_words = int(corpus.word_end[fed - 1] - corpus.word_end[0])
    metrics["bits_per_byte"] = (
        float(nll.sum() / np.log(2) / total_bytes) if total_bytes else Missing("no text scored")
    )
    few = Missing(f"only {total_words} words scored")
    metrics["word_perplexity"] = exp(float(nll.sum() / total_words)) if total_words >= 100 else few
    return metrics


def divergence(kl: np.ndarray, agree: np.ndarray, lost: np.ndarray, target: np.ndarray) -> Measured:
    """Means over the second half of the text: the same tokens for every policy. ``target`` (L-1,) bool."""
    values = (kl, agree, lost > LOST)
    return {name: of_second_half(x, target) for name, x in zip(DIVERGENCE, values, strict=True)}


def of_key_tokens(nll: np.ndarray, key: np.ndarray, target: np.ndarray) -> Measured:
    """LongPPL: perplexity over the key tokens (L-1,) bool alone, and how many of the text's tokens are some.

    The samples are means of `FEW_KEYS` key tokens in a row; the rest of them counts in the mean alone.
    """
    chosen = nll[key & target].astype(np.float64)
    if len(chosen) < FEW_KEYS:
        why = Missing(f"only {len(chosen)} key tokens in the text")
        return {"key_tokens": len(chosen), "nll_key": why, "longppl": why}
    if not np.isfinite(chosen).all():
        why = Missing("not finite at some key token")
        return {"key_tokens": len(chosen), "nll_key": why, "longppl": why}
    blocks = len(chosen) // FEW_KEYS
    means = chosen[: blocks * FEW_KEYS].reshape(blocks, FEW_KEYS).mean(1)
    mean = float(chosen.mean())
    return {"key_tokens": len(chosen), "nll_key": Samples(mean, tuple(means.tolist())), "longppl": exp(mean)}


def of_second_half(values: np.ndarray, target: np.ndarray) -> Samples | Missing:
    """Mean over whole blocks of scored tokens of the second half of a text of ``len(target) + 1`` tokens.

    The samples are means of blocks: neighbouring tokens are not independent, blocks nearly are.
    """
    half = (len(target) + 1) // 2
    chosen = values[half : len(target)][target[half:]].astype(np.float64)
    blocks = len(chosen) // BLOCK
    if not blocks:
        return Missing(f"fewer than {BLOCK} tokens scored in the second half of the text")
    means = chosen[: blocks * BLOCK].reshape(blocks, BLOCK).mean(1)
    if not np.isfinite(means).all():
        return Missing("not finite in the second half of the text")
    return Samples(float(means.mean()), tuple(means.tolist()))


def refusals(why: str = "random weights: their perplexity says nothing") -> Measured:
    """Figures of quality that are not reported, and why."""
    return dict.fromkeys(REFUSED, Missing(why))


def exp(mean: float) -> float | Missing:
    """Perplexity of a mean NLL in nats."""
    with np.errstate(over="ignore"):
        value = float(np.exp(mean))
    return value if np.isfinite(value) else Missing(f"exp({mean:.4g} nats) is not a finite number")


def running(nll: np.ndarray, fed: int) -> dict[str, float]:
    """Perplexity of the last 1,024 tokens, for the live view."""
    recent = nll[max(0, fed - 1025) : fed - 1].astype(np.float64)
    return {"perplexity": float(np.exp(np.minimum(recent.mean(), 80.0)))} if len(recent) else {}


def collapse(nll: np.ndarray, policy: Policy) -> int | None:
    """Where dense attention breaks: the first position whose next 512 tokens cost 1 nat more than before."""
    if policy.bounded:
        return None
    finite = np.nan_to_num(nll.astype(np.float64), nan=80.0, posinf=80.0)
    total = np.concatenate([[0.0], np.cumsum(finite)])
    for start in range(1024, len(nll) - 512, 128):
        if (total[start + 512] - total[start]) / 512 > total[start] / start + 1.0:
            return start
    return None
