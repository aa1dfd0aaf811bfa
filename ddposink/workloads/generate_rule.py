"""When a written text counts as collapsed: the rule, in numbers and in words."""

from __future__ import annotations

SPAN = 256  # written tokens that decide whether the text has collapsed at the first of them
LEAST_PAIRS = 0.4  # of their pairs distinct, or they repeat themselves
MOST_PERPLEXITY = 20.0  # of them in fresh windows, or they are no text
RULE = (
    f"first token from which the {SPAN} tokens written next have less than {LEAST_PAIRS:.0%} of their pairs "
    f"of neighbours distinct, or a fresh perplexity above {MOST_PERPLEXITY:g}"
)
