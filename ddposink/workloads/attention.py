"""The `attention` workload, declared: how much of a model's attention falls on the first tokens, by head.

A head has a sink if its mean attention on the first token of a short text exceeds a threshold (Gu et al.
2025, "When Attention Sink Emerges in Language Models", arXiv 2410.10781: 64 tokens, 0.3). Attention is dense:
no cache policy is at work. Everything here is data; what runs in the child is
`ddposink.workloads.attention_run`.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench.version import code_version
from bench.workload import Context, Cost, Pass, Scalar
from ddposink.corpora import CorpusRef
from ddposink.models.language import ModelRef
from ddposink.workloads.attention_params import AttentionParams
from ddposink.workloads.attention_tables import METRICS, VIEWS
from ddposink.workloads.common_params import RANDOM_TOKENS
from ddposink.workloads.policy_param import identity_of
from ddposink.workloads.stream_notes import bos_notes

# What is shown and said of cells: no number changes with it.
SAID = ("ddposink.workloads.attention_tables", "ddposink.workloads.stream_notes")


class AttentionWorkload:
    """See the module docstring; implements `bench.workload.Workload`."""

    name = "attention"
    Params = AttentionParams
    metrics = METRICS
    views = VIEWS
    prefix_axis = None  # a longer text is read anew
    preload = ("ddposink.workloads.attention_run",)

    def version(self) -> str:
        """Hash of the code that produces the numbers, a subclass's own included."""
        return code_version(__name__, type(self).__module__, shown=SAID, metrics=self.metrics)

    def label(self, params: AttentionParams) -> str:
        """``smollm2-135m · 2,048``; of random weights also that they are random."""
        return f"{_name(params.model)} · {params.length:,}"

    def seeded(self, params: AttentionParams) -> bool:
        """Only random tokens are drawn; what is read from a text is the same under every seed."""
        return params.corpus == RANDOM_TOKENS

    def columns(self, params: AttentionParams) -> dict[str, Scalar]:
        """Everything a table or an exclusion may ask for."""
        return params.model_dump(exclude={"threads"}) | {"model": _name(params.model)}

    def identity(self, params: AttentionParams) -> dict[str, str]:
        """Revision or sha256 of model and corpus; raises Skip if they cannot be identified."""
        read = {} if params.corpus == RANDOM_TOKENS else {"corpus": CorpusRef.parse(params.corpus)}
        return identity_of(params.model, None, **read)

    def notes(self, params: AttentionParams) -> Iterator[str]:
        """What is legal but probably not meant."""
        yield from bos_notes(ModelRef.parse(params.model), params.bos)

    def cost(self, params: AttentionParams) -> Cost:
        """Tokens fed: the text read once, and its pieces."""
        return Cost(params.length + params.pieces * params.span, "tokens")

    def published(self) -> list[dict[str, Scalar]]:
        """None: those of the paper are of other models and texts than can be had without a hub."""
        return []

    def run(self, work: Pass, ctx: Context) -> None:
        """Measure every cell; child process only."""
        from ddposink.workloads.attention_run import run

        run([(cell, AttentionParams(**cell.params)) for cell in work.cells], ctx)


def _name(model: str) -> str:
    """A model's name; one of random weights must not be taken for the trained model of that shape."""
    ref = ModelRef.parse(model)
    return f"{ref.name} (random weights)" if ref.kind == "random" else ref.name
