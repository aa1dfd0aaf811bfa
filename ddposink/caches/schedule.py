"""When a bounded policy lets tokens go, as a function of the text: pure, one number in, one number out.

A text is fed in pieces (a token, a chunk, a turn). ``evict=turn`` makes room before a piece; all other
schedules cut the cache back to the budget after one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddposink.caches.base import Policy

if TYPE_CHECKING:
    import numpy as np


ENDLESS = 1 << 62  # tokens


class Schedule:
    """The pieces of a text under a bounded ``policy``.

    ``turn_ends`` (N,) bool marks the last token of every turn. A turn longer than the window is cut into
    pieces of at most ``window`` tokens when room is made for it beforehand, or it could not fit. The last
    such turn ends with the text; what is decoded past that comes in pieces of a window. A policy that ranks
    what it holds has in place of the window what it does not protect (`Policy.room`).
    """

    def __init__(
        self, policy: Policy, turn_ends: np.ndarray | None = None, budget: int | None = None
    ) -> None:
        """``budget`` of one layer, where layers differ; without it the policy's own."""
        self.policy = policy
        self._budget = ENDLESS if policy.budget is None else policy.budget if budget is None else budget
        import numpy as np  # here: policies are parsed where numpy need not be

        known = np.zeros(0, dtype=bool) if turn_ends is None else turn_ends
        last = [len(known)] if len(known) and policy.evict.per == "turn" else []
        self._ends = np.union1d(np.flatnonzero(known) + 1, last).astype(np.int64)

    def piece_start(self, seen: int) -> int:
        """Where the piece that token ``seen`` belongs to begins."""
        evict = self.policy.evict
        if evict.per == "once":
            return 0 if seen < evict.every else evict.every
        if not evict.by_turns:
            return seen - seen % evict.every
        turn = self._turn_start(seen)
        if evict.per == "turn":
            return seen - (seen - turn) % self.policy.room
        return turn

    def piece_end(self, seen: int) -> int:
        """Where the piece that token ``seen`` belongs to ends; past the known text, anywhere."""
        evict = self.policy.evict
        if evict.per == "once":
            return evict.every if seen < evict.every else ENDLESS
        if not evict.by_turns:
            return self.piece_start(seen) + evict.every
        index = int(self._ends.searchsorted(seen, side="right"))
        end = int(self._ends[index]) if index < len(self._ends) else seen + max(1, self.policy.room)
        if evict.per == "turn":
            return min(end, self.piece_start(seen) + self.policy.room)
        return end

    def kept_before(self, seen: int, held: int) -> int:
        """Tokens of the ``held`` ones to keep when token ``seen`` is about to be fed."""
        if self.policy.evict.per != "turn" or seen != self.piece_start(seen):
            return held
        coming = self.piece_end(seen) - seen
        return min(held, self._budget - coming)

    def kept_after(self, seen: int, held: int) -> int:
        """Tokens of the ``held`` ones to keep once ``seen`` tokens have been fed."""
        if self.policy.evict.per == "turn" or not self._complete(seen):
            return held
        return min(held, self._budget)

    def held(self, seen: int) -> int:
        """Tokens held after ``seen`` tokens: piece by piece, as they are fed."""
        held, at = 0, 0
        while at < seen:
            held = self.kept_before(at, held)
            step = min(self.piece_end(at), seen) - at
            held, at = held + step, at + step
            held = self.kept_after(at, held)
        return held

    def _turn_start(self, seen: int) -> int:
        index = int(self._ends.searchsorted(seen, side="right"))
        return int(self._ends[index - 1]) if index else 0

    def _complete(self, seen: int) -> bool:
        """Whether a piece ends with the token fed last."""
        if self.policy.evict.per == "once":
            return seen == self.policy.evict.every
        if not self.policy.evict.by_turns:
            return seen % self.policy.evict.every == 0
        index = int(self._ends.searchsorted(seen))
        return index < len(self._ends) and int(self._ends[index]) == seen


def slots_by_turns(policy: Policy, turn_ends: np.ndarray, seen: int, layers: int) -> list[int]:
    """Tokens that each of ``layers`` layers holds after ``seen``, where the text decides when they leave."""
    budgets = policy.layer_budgets(layers)
    held = {budget: Schedule(policy, turn_ends, budget).held(seen) for budget in set(budgets)}
    return [held[budget] for budget in budgets]
