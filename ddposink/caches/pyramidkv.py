"""PyramidKV: SnapKV with more slots in lower layers (Cai et al. 2024, arXiv 2406.02069, section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ddposink.caches.snapkv import SnapKV

_MANY = 1 << 20  # layers: the last one's share no longer depends on their number


@dataclass(frozen=True)
class PyramidKV(SnapKV):
    """Scores of SnapKV; budgets fall linearly from the first layer to the last and average ``size``.

    Beside the observation window of w tokens the last layer keeps (size - w) / beta, the first twice the mean
    less that (equations 2 and 3; ``beta`` 20 is the authors' code's).
    """

    kind: ClassVar[str] = "pyramidkv"
    beta: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta < 1:
            raise ValueError(f"'{self.kind}': beta must be at least 1, got {self.beta}")

    def layer_budget(self, layer: int, layers: int) -> int:
        """Slots of ``layer``; over all layers the sum is ``layers`` times ``size``."""
        spare = self.size - self.sinks - self.window
        ends = [self._share(spare, one, layers) for one in (layer, layer + 1)]
        return self.sinks + self.window + ends[1] - ends[0]

    def _share(self, spare: int, layer: int, layers: int) -> int:
        """Slots of all layers before ``layer``: rounded as a sum, so that nothing is lost to rounding."""
        if layers == 1:
            return spare * layer
        least = spare / self.beta
        most = 2 * spare - least
        step = (most - least) / (layers - 1)
        return round(most * layer - step * layer * (layer - 1) / 2)

    @property
    def least_budget(self) -> int:
        """The last layer's, if there are many."""
        return self.layer_budget(_MANY - 1, _MANY)
