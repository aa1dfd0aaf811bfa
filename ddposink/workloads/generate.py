"""The `generate` workload, declared: a model that answers turn after turn under a cache policy, without end.

Everything here is data: which metrics a cell yields, which pictures are drawn; what it may say is in
`ddposink.workloads.generate_params`. No torch; what runs in the child is `ddposink.workloads.generate_run`.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench.version import code_version
from bench.workload import Context, Cost, Pass, Scalar
from ddposink.models.language import ModelRef
from ddposink.workloads.generate_params import GenerateParams
from ddposink.workloads.generate_tables import METRICS, VIEWS
from ddposink.workloads.generate_turns import TurnSource
from ddposink.workloads.policy_param import identity_of, policy_columns
from ddposink.workloads.stream_notes import own_window_notes

# What is shown and said of cells: no number changes with it.
SAID = ("ddposink.workloads.generate_tables", "ddposink.workloads.stream_notes")


class GenerateWorkload:
    """See the module docstring; implements `bench.workload.Workload`."""

    name = "generate"
    Params = GenerateParams
    metrics = METRICS
    views = VIEWS
    prefix_axis = "length"
    preload = ("ddposink.workloads.generate_run",)

    def version(self) -> str:
        """Hash of the code that produces the numbers, a subclass's own included."""
        return code_version(__name__, type(self).__module__, shown=SAID, metrics=self.metrics)

    def label(self, params: GenerateParams) -> str:
        """``smollm2-135m · sink 4+252 · 768``; another temperature than 0 is named."""
        drawn = [f"temperature {params.temperature:g}"] if params.temperature else []
        return " · ".join([ModelRef.parse(params.model).name, params.policy, *drawn, f"{params.length:,}"])

    def seeded(self, params: GenerateParams) -> bool:
        """The seed says in which order the turns come, and draws tokens if any are drawn."""
        return True

    def columns(self, params: GenerateParams) -> dict[str, Scalar]:
        """Everything a table or an exclusion may ask for; sinks, window and budget are the policy's."""
        policy = params.parsed_policy
        return {
            "model": ModelRef.parse(params.model).name,
            **policy_columns(policy),
            "length": params.length,
            "turns": params.turns,
            "turn_tokens": params.turn_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "fresh_window": params.fresh_window,
            "dtype": params.dtype,
            "device": params.device,
            "decode": params.decode,
            "series_end": params.length,
        }

    def identity(self, params: GenerateParams) -> dict[str, str]:
        """Revision or sha256 of model and turns; raises Skip if they cannot be identified."""
        return identity_of(params.model, params.parsed_policy, turns=TurnSource.parse(params.turns))

    def notes(self, params: GenerateParams) -> Iterator[str]:
        """What is legal but probably not meant."""
        yield from own_window_notes(ModelRef.parse(params.model), params.parsed_policy)
        if params.temperature == 0 and params.top_p < 1:
            yield f"top_p {params.top_p:g} changes nothing at temperature 0: the likeliest token is written"

    def cost(self, params: GenerateParams) -> Cost:
        """Tokens written; prompts come on top."""
        return Cost(params.length, "tokens")

    def published(self) -> list[dict[str, Scalar]]:
        """None: nobody has published figures of these conversations."""
        return []

    def run(self, work: Pass, ctx: Context) -> None:
        """Write once, look at every length of the pass; child process only."""
        from ddposink.workloads.generate_run import run

        run([(cell, GenerateParams(**cell.params)) for cell in work.cells], ctx)
