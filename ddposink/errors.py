"""Errors of `ddposink` that a caller may want to tell apart."""


class Unavailable(RuntimeError):  # noqa: N818 - a state of the world, not a mistake
    """Something needed cannot be had here (offline weights, no apt, …); the message is one line."""
