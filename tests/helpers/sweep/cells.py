"""One architecture against the oracle: what is measured under every policy, and whether it is right."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import torch
import transformers
from torch import Tensor, nn

from ddposink.caches import parse_policy
from ddposink.streaming import (
    NotProvenError,
    PolicyNotAppliedError,
    UnsupportedModelError,
    UnsupportedPolicyError,
    evaluate,
    open_stream,
)
from helpers.sweep import oracle
from helpers.sweep.tiny_configs import VOCABULARY, tiny_model

POLICIES = {"dense": None, "window 24": (0, 24), "sink 4+20": (4, 20)}
TOKENS = 112
CHUNK = 64  # tokens a forward: several blocks, and a remainder
TOLERANCE = 1e-3  # nats, on every token
EFFECT = 0.05  # nats: a policy that changes no token by more is not tested by its numbers
REFUSALS = (UnsupportedModelError, UnsupportedPolicyError, NotProvenError, PolicyNotAppliedError)

EXACT, LIBRARY, REFUSED = "exact", "library", "refused"
WRONG, UNCHECKED, CRASHED, NOT_BUILT = "wrong", "no oracle", "crashed", "not built"
BAD = (WRONG, UNCHECKED, CRASHED)


@dataclass(frozen=True)
class Cell:
    """What a policy came to: ``off`` is the largest difference of an NLL from the oracle's, in nats."""

    outcome: str
    reason: str = ""
    off: float | None = None

    def __str__(self) -> str:
        off = "" if self.off is None else f" {self.off:.0e}"
        return f"{self.outcome}{off}"


@dataclass(frozen=True)
class Row:
    """One architecture, with or without sliding windows of its own."""

    kind: str
    own_windows: bool = False
    cells: dict[str, Cell] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As tables have it."""
        return f"{self.kind}, own windows" if self.own_windows else self.kind

    @property
    def outcomes(self) -> set[str]:
        """Of all cells."""
        return {cell.outcome for cell in self.cells.values()}

    @property
    def reason(self) -> str:
        """The first reason given, for what is not exact."""
        return next((cell.reason for cell in self.cells.values() if cell.reason), "")

    @classmethod
    def uniform(cls, kind: str, own_windows: bool, outcome: str, reason: str) -> Row:
        """The same in every cell."""
        return cls(kind, own_windows, dict.fromkeys(POLICIES, Cell(outcome, reason)))


def text() -> Tensor:
    """(N,) tokens at random: nothing is to be guessed, everything has to be attended to."""
    return torch.randint(3, VOCABULARY, (TOKENS,), generator=torch.Generator().manual_seed(5))


def measure(kind: str, own_windows: bool = False) -> Row:
    """Build the tiny model and fill its row."""
    transformers.logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model, ids = tiny_model(kind, own_windows), text()
            plain = oracle.dense(model, ids)
        except Exception as error:  # whatever the library does not like about a tiny model of that kind
            return Row.uniform(kind, own_windows, NOT_BUILT, _line(error))
        cells = {}
        for policy, budget in POLICIES.items():
            try:
                found = _dense(model, ids, plain) if budget is None else _bounded(model, policy, ids, plain)
                cells[policy] = found
            except Exception as error:  # a crash of what is tested is a row
                cells[policy] = Cell(CRASHED, _line(error))
    return Row(kind, own_windows, cells)


def _dense(model: nn.Module, ids: Tensor, plain: Tensor) -> Cell:
    try:
        found, path, reason = _stream(model, "dense", ids)
    except REFUSALS as error:
        return Cell(REFUSED, _cause(error, "dense"))
    return _judged(found, plain, path, "" if path == EXACT else reason)


def _bounded(model: nn.Module, policy: str, ids: Tensor, plain: Tensor) -> Cell:
    """Under its plain label a bounded policy must be StreamingLLM, or be refused."""
    try:
        found, _, _ = _stream(model, policy, ids)
    except REFUSALS as error:
        return _under_its_own_label(model, policy, ids, _cause(error, policy))
    try:
        expected = oracle.streaming(model, ids, *POLICIES[policy])
    except oracle.NoOracleError as error:
        return Cell(UNCHECKED, _line(error))
    effect = float((expected - plain).abs().max())
    cell = _judged(found, expected, EXACT)
    if cell.outcome == EXACT and effect < EFFECT and not _sees_no_further(model, policy):
        return Cell(UNCHECKED, f"the policy changes no token by more than {effect:.1e} nats")
    return cell


def _under_its_own_label(model: nn.Module, policy: str, ids: Tensor, refusal: str) -> Cell:
    """Refused as StreamingLLM: whether the library's own cache can be had, named as what it is."""
    try:
        found, _, _ = _stream(model, f"{policy} positions=library", ids)
    except REFUSALS:
        return Cell(REFUSED, refusal)
    return _judged(found, oracle.library(model, ids, *POLICIES[policy]), LIBRARY, refusal)


def _stream(model: nn.Module, policy: str, ids: Tensor) -> tuple[Tensor, str, str]:
    """NLL (N-1,), the path it came by, and why that one."""
    choice = open_stream(model, parse_policy(policy), chunk=CHUNK)
    return torch.from_numpy(evaluate(choice.stream, ids)), choice.stream.path, choice.reason


def _judged(found: Tensor, expected: Tensor, outcome: str, reason: str = "") -> Cell:
    off = float((found - expected).abs().max())
    if not off <= TOLERANCE:
        return Cell(WRONG, f"a token is off by {off:.2g} nats", off)
    return Cell(outcome, reason, off)


def _sees_no_further(model: nn.Module, policy: str) -> bool:
    """Whether the model's own windows are so short in every layer that the policy takes nothing away."""
    config = model.config.get_text_config()
    own, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    return bool(own) and own <= parse_policy(policy).window + 1 and set(kinds or ()) <= {"sliding_attention"}


def _cause(error: Exception, policy: str) -> str:
    """The reason in a refusal, without what it refuses and what it offers instead."""
    message = _line(error).removeprefix(f"'{policy}' cannot be measured on this model: ")
    for offer in ("; the library's own cache", ". The library's own cache", "; open "):
        message = message.split(offer)[0]
    return message


def _line(error: BaseException) -> str:
    kind = "" if isinstance(error, REFUSALS) else f"{type(error).__name__}: "
    return kind + " ".join(str(error).split())[:300]
