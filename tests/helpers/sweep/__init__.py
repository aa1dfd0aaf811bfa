"""Every causal architecture of the model library, tiny and random, against an independent oracle."""
