"""The `recall` workload, declared: does a policy still find a fact that was read so many tokens ago?

Perplexity is of the next word, which the last few hundred tokens mostly tell. A policy may be as fluent as
dense attention and know nothing of what it has let go. No torch here; what runs in the child is
`ddposink.workloads.recall_run`.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench.version import code_version
from bench.workload import Context, Cost, Pass, Scalar
from ddposink.corpora import CorpusRef
from ddposink.models.language import ModelRef
from ddposink.workloads.policy_param import identity_of, policy_columns
from ddposink.workloads.recall_params import RecallParams
from ddposink.workloads.recall_tables import METRICS, VIEWS
from ddposink.workloads.stream_notes import bos_notes, own_window_notes

# What is shown and said of cells: no number changes with it.
SAID = ("ddposink.workloads.recall_tables", "ddposink.workloads.stream_notes")


class RecallWorkload:
    """See the module docstring; implements `bench.workload.Workload`."""

    name = "recall"
    Params = RecallParams
    metrics = METRICS
    views = VIEWS
    prefix_axis = "distance"
    preload = ("ddposink.workloads.recall_run",)

    def version(self) -> str:
        """Hash of the code that produces the numbers, a subclass's own included."""
        return code_version(__name__, type(self).__module__, shown=SAID, metrics=self.metrics)

    def label(self, params: RecallParams) -> str:
        """``smollm2-135m · sink 4+252 · passkey · 512``."""
        return f"{ModelRef.parse(params.model).name} · {params.policy} · {params.task} · {params.distance:,}"

    def seeded(self, params: RecallParams) -> bool:
        """Facts, and where in the book the text between is from, are drawn."""
        return True

    def columns(self, params: RecallParams) -> dict[str, Scalar]:
        """Everything a table or an exclusion may ask for; sinks, window and budget are the policy's."""
        policy, between = params.parsed_policy, params.task != "stream"
        return {
            "model": ModelRef.parse(params.model).name,
            "corpus": params.corpus if between else None,
            **policy_columns(policy),
            "task": params.task,
            "distance": params.distance,
            "questions": params.questions,
            "needles": params.needles if params.task == "needles" else None,
            "digits": params.digits,
            "lead": params.lead if between else None,
            "interval": None if between else params.interval,
            "dtype": params.dtype,
            "device": params.device,
            "evaluator": params.evaluator,
            "chunk": params.chunk,
            "bos": params.bos,
        }

    def identity(self, params: RecallParams) -> dict[str, str]:
        """Revision or sha256 of model and corpus; raises Skip if they cannot be identified."""
        read = {} if params.task == "stream" else {"corpus": CorpusRef.parse(params.corpus)}
        return identity_of(params.model, params.parsed_policy, **read)

    def notes(self, params: RecallParams) -> Iterator[str]:
        """What is legal but probably not meant."""
        model, policy = ModelRef.parse(params.model), params.parsed_policy
        yield from own_window_notes(model, policy)
        yield from bos_notes(model, params.bos)
        if params.task != "stream" and policy.bounded and policy.sinks > params.lead:
            yield (
                f"'{policy}': with a lead of {params.lead} tokens the facts stand among the {policy.sinks} "
                f"sinks, which are never evicted; write a longer `lead`"
            )

    def cost(self, params: RecallParams) -> Cost:
        """Tokens fed, about: how many tokens a fact takes is the tokenizer's affair."""
        return Cost(params.tokens, "tokens")

    def published(self) -> list[dict[str, Scalar]]:
        """Nobody has published this for a model that is embedded here."""
        return []

    def run(self, work: Pass, ctx: Context) -> None:
        """Measure every distance of one (model, policy, task); child process only."""
        from ddposink.workloads.recall_run import run

        run([(cell, RecallParams(**cell.params)) for cell in work.cells], ctx)
