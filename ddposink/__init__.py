"""What is measured: cache policies and exact streaming evaluation of language models."""
