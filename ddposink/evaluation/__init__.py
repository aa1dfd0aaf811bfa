"""Scores on held-out prompts, how diverse pictures are, how far they drifted, and sheets of them."""
