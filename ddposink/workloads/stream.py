"""The `stream` workload, declared: an endless token stream through a model under a cache policy.

Everything here is data: which metrics a cell yields, which pictures are drawn; what it may say is in
`ddposink.workloads.stream_params`. No torch; what runs in the child is `ddposink.workloads.stream_run`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from importlib.resources import files

from bench.version import code_version
from bench.workload import Context, Control, Cost, Pass, Scalar
from ddposink.corpora import CorpusRef
from ddposink.models.language import ModelRef
from ddposink.workloads.common_params import RANDOM_TOKENS
from ddposink.workloads.policy_param import identity_of, policy_columns
from ddposink.workloads.stream_notes import bos_notes, own_window_notes
from ddposink.workloads.stream_params import StreamParams
from ddposink.workloads.stream_tables import METRICS, VIEWS

# What is shown and said of cells: no number changes with it.
SAID = ("ddposink.workloads.stream_tables", "ddposink.workloads.stream_notes")


class StreamWorkload:
    """See the module docstring; implements `bench.workload.Workload`."""

    name = "stream"
    Params = StreamParams
    metrics = METRICS
    views = VIEWS
    prefix_axis = "length"
    control = Control(
        "kind", "random", ("model", "corpus", "length", "budget", "bits"), ("kl_dense", "nll_half")
    )
    preload = ("ddposink.workloads.stream_run",)

    def version(self) -> str:
        """Hash of the code that produces the numbers, a subclass's own included."""
        return code_version(__name__, type(self).__module__, shown=SAID, metrics=self.metrics)

    def label(self, params: StreamParams) -> str:
        """``smollm2-135m · sink 4+1020 · 16,384``."""
        several = f" · {params.batch} streams" if params.batch > 1 else ""
        return f"{ModelRef.parse(params.model).name} · {params.policy}{several} · {params.length:,}"

    def seeded(self, params: StreamParams) -> bool:
        """Only random tokens are drawn; what is read from a text is the same under every seed."""
        return params.corpus == RANDOM_TOKENS

    def columns(self, params: StreamParams) -> dict[str, Scalar]:
        """Everything a table or an exclusion may ask for; sinks, window and budget are the policy's."""
        policy = params.parsed_policy
        return {
            "model": ModelRef.parse(params.model).name,
            "corpus": params.corpus,
            **policy_columns(policy),
            "length": params.length,
            "dtype": params.dtype,
            "device": params.device,
            "evaluator": params.evaluator,
            "chunk": params.chunk,
            "batch": params.batch,
            "decode": params.decode,
            "bos": params.bos,
            "series_end": params.length - 1,
            # Index of the first query that misses a token: NLLs before it are equal under all policies, but
            # for those that store fewer bits, which differ from the beginning.
            "series_start": policy.evicts_from if policy.bits is None else 0,
        }

    def identity(self, params: StreamParams) -> dict[str, str]:
        """Revision or sha256 of model and corpus; raises Skip if they cannot be identified."""
        read = {} if params.corpus == RANDOM_TOKENS else {"corpus": CorpusRef.parse(params.corpus)}
        return identity_of(params.model, params.parsed_policy, **read)

    def notes(self, params: StreamParams) -> Iterator[str]:
        """What is legal but probably not meant."""
        model = ModelRef.parse(params.model)
        yield from own_window_notes(model, params.parsed_policy)
        yield from bos_notes(model, params.bos)

    def cost(self, params: StreamParams) -> Cost:
        """Tokens fed."""
        return Cost(params.length, "tokens")

    def published(self) -> list[dict[str, Scalar]]:
        """Rows of ``data/published.csv``: model, policy, length, metric, value, source, note."""
        text = (files("ddposink") / "data" / "published.csv").read_text(encoding="utf-8")
        rows: list[dict[str, Scalar]] = []
        for raw in csv.DictReader(text.splitlines()):
            row: dict[str, Scalar] = {k: v for k, v in raw.items() if v}
            row["length"], row["value"] = int(raw["length"]), float(raw["value"])
            rows.append(row)
        return rows

    def run(self, work: Pass, ctx: Context) -> None:
        """Measure every length of one (model, policy, corpus); child process only."""
        from ddposink.workloads.stream_run import run

        run([(cell, StreamParams(**cell.params)) for cell in work.cells], ctx, work.stops)
