"""What the command line may ask of a gate, and which wishes contradict each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import UserError
from bench.gate.rule import Rule
from bench.suite.request import Options

_PAIRED_ONLY = ("pairs", "max_pairs", "extras")  # of base and head in one session
_STORED_ONLY = ("allowance", "accept")  # of sessions, which may be of other machines


@dataclass(frozen=True)
class GateOptions:
    """What the command line may ask of a gate."""

    run: Options
    baseline: str | None = None
    against: str | None = None
    tip: bool = False  # compare with the tip of ``against``, not with the merge base
    head: str | None = None  # a stored run to judge instead of measuring
    pairs: int = 6
    until_decided: bool = False
    max_pairs: int = 24
    alpha: float = Rule.alpha
    allowance: float = Rule.allowance
    accept: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    noise: Path | None = None  # a calibration.json

    def rule(self, looks: int = 1) -> Rule:
        """The rule these options ask for. Raises UserError for what is none."""
        return Rule.asked(self.alpha, self.allowance, looks)

    def check(self) -> None:
        """Raises UserError for wishes that contradict each other, or that nothing would come of."""
        if not self.baseline and not self.against:
            raise UserError("nothing to compare with", hint="give --against REF or --baseline RUN")
        if self.baseline and self.against:
            raise UserError("--baseline and --against exclude each other", hint="give one of them")
        if self.head == "":
            raise UserError("--head is empty", hint="give a run, or leave --head out to measure one")
        if self.against and self.head:
            raise UserError(
                "--head is for stored runs; --against measures both sides", hint="give one of them"
            )
        if self.until_decided and not self.against:
            raise UserError(
                "--until-decided adds pairs, which --baseline has none of", hint="use --against REF"
            )
        if self.noise and not self.against:
            raise UserError(
                "--noise is that of pairs in one session, and --baseline compares sessions",
                hint="use --against REF, or --allowance",
            )
        self.rule()
        self._check_idle()
        if self.until_decided and self.max_pairs < self.pairs:
            raise UserError(f"--max-pairs {self.max_pairs} is less than --pairs {self.pairs}")

    def _check_idle(self) -> None:
        """Raises UserError for a wish that this kind of gate never looks at: it would seem to be granted."""
        way, idle = ("--against", _STORED_ONLY) if self.against else ("--baseline", _PAIRED_ONLY)
        for name in idle:
            if getattr(self, name) != getattr(GateOptions, name):
                flag = f"--{name.replace('_', '-')}"
                raise UserError(f"{flag} does nothing with {way}", hint=f"leave {flag} out")
        if self.against and not self.until_decided and self.max_pairs != GateOptions.max_pairs:
            raise UserError("--max-pairs is the limit of --until-decided", hint="give both, or --pairs alone")
        if self.head and self.run.wait:
            raise UserError("--wait does nothing with --head, which measures nothing", hint="leave it out")


def one_ref(against: str | None, against_tip: str | None) -> str | None:
    """The ref, if one was given. Raises UserError for two."""
    if against and against_tip:
        raise UserError("--against and --against-tip exclude each other", hint="give one of them")
    return against or against_tip


def one_baseline(names: Sequence[str]) -> str | None:
    """The baseline, if one was given. Raises UserError for two."""
    if len(names) > 1:
        raise UserError(
            f"{len(names)} baselines were given", hint="a gate has one; run it once for each baseline"
        )
    return names[0] if names else None
