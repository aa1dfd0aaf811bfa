"""The commands of ``python -m bench``, a module per group: a signature for typer and a call, nothing else.

What a command does lies elsewhere and is imported when it runs; ``bench.cli`` puts the commands together.
"""
