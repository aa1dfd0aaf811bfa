"""What the parameters of several workloads share: one place for a field's limits and its description."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ddposink.caches import Policy, parse_policy
from ddposink.corpora import CorpusRef
from ddposink.models.language import ModelRef
from ddposink.workloads.policy_param import bytes_become_tokens

RANDOM_TOKENS = "random-tokens"

Number = Literal["float32", "bfloat16", "float16"]
Dtype = Annotated[Number, Field(description="weights and cache")]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N")]
Threads = Annotated[int | None, Field(ge=1, description="CPU threads; default: torch's choice")]
Evaluator = Annotated[
    Literal["auto", "exact", "decode", "reference"],
    Field(description="auto takes exact parallel evaluation wherever it is exact"),
]
Chunk = Annotated[int, Field(ge=1, le=65536, description="tokens per forward in parallel evaluation")]
Bos = Annotated[bool, Field(description="feed the tokenizer's beginning-of-text token first")]
Decode = Annotated[
    Literal["auto", "eager", "graph", "compile"],
    Field(
        description="how decode of a bounded policy runs: auto is a CUDA graph where there is CUDA; compile "
        "also fuses its kernels; eager starts each from Python"
    ),
]
AnyModel = Annotated[
    str,
    Field(
        description="smollm2-135m (embedded), bundled:NAME, path:DIR, random:ARCHITECTURE, "
        "or ORG/NAME@REVISION (40 hex digits)"
    ),
]


class UnderPolicy(BaseModel):
    """Parameters with a ``policy``: its text in canonical form, a budget in bytes written in tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    if TYPE_CHECKING:
        policy: str

    @model_validator(mode="before")
    @classmethod
    def _bytes_become_tokens(cls, data: Any) -> Any:
        return bytes_become_tokens(data)

    @field_validator("policy", check_fields=False)
    @classmethod
    def _policy(cls, value: str) -> str:
        return parse_policy(value).label

    @property
    def parsed_policy(self) -> Policy:
        """The policy as an object."""
        return parse_policy(self.policy)


class OnText(BaseModel):
    """Parameters with a ``model`` and a ``corpus``; only random weights read random tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    if TYPE_CHECKING:
        model: str
        corpus: str

    @field_validator("model", check_fields=False)
    @classmethod
    def _model(cls, value: str) -> str:
        ModelRef.parse(value)
        return value

    @field_validator("corpus", check_fields=False)
    @classmethod
    def _corpus(cls, value: str) -> str:
        if value != RANDOM_TOKENS:
            CorpusRef.parse(value)
        return value

    @model_validator(mode="after")
    def _needs_a_corpus(self) -> Self:
        if self.corpus == RANDOM_TOKENS and not self.model.startswith("random:"):
            raise ValueError("a corpus is required, e.g. corpus: novel:persuasion")
        return self
