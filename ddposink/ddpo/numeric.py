"""What counts as a number in a configuration. No torch."""

from __future__ import annotations

import math
from typing import Any, TypeGuard


def is_real(value: Any) -> TypeGuard[float]:
    """Whether ``value`` is a finite number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
