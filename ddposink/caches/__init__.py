"""Cache policies: one file each, one line of registration here; other packages add theirs by entry points.

Text form: ``dense`` · ``window 1024`` · ``sink 4+1020`` · ``snapkv 512``, followed by options such as
``positions=absolute``, ``evict=chunk:64`` and ``bits=4``. A budget may be given in bytes (`in_tokens`).
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import pairwise

from ddposink import plugins
from ddposink.caches.adakv import AdaKV
from ddposink.caches.base import CacheShape, Evict, Policy
from ddposink.caches.dense import Dense
from ddposink.caches.expected_attention import ExpectedAttention
from ddposink.caches.h2o import H2O
from ddposink.caches.held import Held, Observes
from ddposink.caches.keydiff import KeyDiff
from ddposink.caches.knorm import KNorm
from ddposink.caches.lagkv import LagKV
from ddposink.caches.offloaded import Offloaded
from ddposink.caches.pyramidkv import PyramidKV
from ddposink.caches.quantized import Quantized
from ddposink.caches.random import Random
from ddposink.caches.ranked import Ranked
from ddposink.caches.recompute import Recompute
from ddposink.caches.schedule import Schedule
from ddposink.caches.sink import Sink
from ddposink.caches.snapkv import SnapKV
from ddposink.caches.static import Static
from ddposink.caches.tova import Tova
from ddposink.caches.window import Window
from ddposink.errors import suggest

_KINDS = (
    *(Dense, Window, Sink, Recompute, Quantized, Static, Offloaded),
    *(H2O, Tova, SnapKV, PyramidKV, AdaKV, KNorm, KeyDiff, ExpectedAttention, LagKV, Random),
)
POLICIES: dict[str, type[Policy]] = {policy.kind: policy for policy in _KINDS}


_SIZED = re.compile(
    r"^(?P<kind>\S+) (?P<sinks>\d+\+)?(?P<amount>\d+(?:\.\d+)?)(?P<unit>[kKMG]i?B|B)(?P<rest>(?: .*)?)$"
)
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def in_tokens(text: str, shape: CacheShape) -> str:
    """A policy's text with a budget in bytes (``h2o 11MiB``, ``sink 4+11MiB``) written in tokens.

    As many tokens as fit, sinks included, at the bytes that a token takes in all layers with the policy's
    ``bits``. Any other text is returned as it is. Raises ValueError if not even one token fits.
    """
    match = _SIZED.match(" ".join(str(text).split()))
    if match is None:
        return text
    bits = re.search(r" bits=(\S+)", match["rest"])
    one = shape.layers * shape.token_bytes(bits[1] if bits else None)
    tokens = int(float(match["amount"]) * _UNITS[match["unit"].upper()] // one)
    sinks = int((match["sinks"] or "0").rstrip("+"))
    if tokens <= sinks:
        least = "one token takes" if not sinks else f"{sinks} sinks and one token take"
        raise ValueError(
            f"a budget of {match['amount']}{match['unit']} is too small: {least} {(sinks + 1) * one:,} bytes "
            f"in {shape.layers} layers"
        )
    return f"{match['kind']} {match['sinks'] or ''}{tokens - sinks}{match['rest']}"


@lru_cache(maxsize=1024)
def parse_policy(text: str) -> Policy:
    """Read a policy's text form. Raises ValueError naming what was expected and the nearest word."""
    kind, *words = str(text).split() or [""]
    policy = _kind(kind)
    if policy is None:
        known = [*POLICIES, *plugins.installed(plugins.POLICIES)]
        raise ValueError(
            f"unknown cache policy '{kind}'{suggest(kind, known)}; "
            f"policies are written 'dense', 'window 1024', 'sink 4+1020' or 'snapkv 512'"
        )
    if huge := re.search(r"\d{13,}", " ".join(words)):
        raise ValueError(f"'{kind}' with {huge[0][:40]}: no text and no seed is so large")
    sizes = [word for word in words if "=" not in word]
    options: dict[str, object] = {}
    for name, value in (word.split("=", 1) for word in words if "=" in word):
        if name not in policy.option_names():
            names = policy.option_names()
            raise ValueError(
                f"'{kind}' has no option '{name}'{suggest(name, list(names))}; "
                f"options: {', '.join(names) or 'none'}"
            )
        if name in options:
            raise ValueError(f"'{kind}' has the option '{name}' twice")
        options[name] = Evict.parse(value) if name == "evict" else value
    if any(a[-1].isdigit() and b[0].isdigit() for a, b in pairwise(sizes)):
        raise ValueError(f"'{kind}' is followed by one size, got '{' '.join(sizes)}'")
    return policy.from_text("".join(sizes), **options)


def _kind(name: str) -> type[Policy] | None:
    """The class of a policy's name; ValueError if an installed package claims a name of ours."""
    if name not in plugins.installed(plugins.POLICIES):
        return POLICIES.get(name)
    if name in POLICIES:
        raise ValueError(f"an installed package claims the cache policy '{name}', which is ours")
    return plugins.load(plugins.POLICIES, name, Policy)


__all__ = [
    "POLICIES",
    "CacheShape",
    "Dense",
    "Evict",
    "Held",
    "Observes",
    "Policy",
    "Ranked",
    "Schedule",
    "Sink",
    "Window",
    "in_tokens",
    "parse_policy",
]
