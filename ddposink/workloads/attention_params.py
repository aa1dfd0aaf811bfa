"""What a cell of an `attention` suite may say."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ddposink.corpora import CorpusRef
from ddposink.models.language import ModelRef
from ddposink.workloads.stream_params import RANDOM_TOKENS


class AttentionParams(BaseModel):
    """One cell of an `attention` suite."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(
        description="smollm2-135m (embedded), bundled:NAME, path:DIR, random:ARCHITECTURE, "
        "or ORG/NAME@REVISION (40 hex digits)"
    )
    length: int = Field(
        default=2048, ge=2, le=1_000_000, description="tokens of the text read once, for shares along it"
    )
    corpus: str = Field(
        default=RANDOM_TOKENS,
        description="novel:NAME, novels, file:PATH, folder:DIR, pg19:test[/BOOK]; "
        "'?separator=…&books=N' may follow",
    )
    pieces: int = Field(
        default=16, ge=1, le=10_000, description="pieces of the text, each read as a text of its own"
    )
    span: int = Field(default=64, ge=2, le=65536, description="tokens of a piece")
    threshold: float = Field(
        default=0.3, gt=0, lt=1, description="mean attention above which a head has a sink"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(default="float32", description="weights")
    device: str = Field(
        default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N"
    )
    chunk: int = Field(default=256, ge=1, le=65536, description="queries whose weights are held at once")
    bos: bool = Field(
        default=False,
        description="begin every piece, and the text, with the tokenizer's beginning-of-text token",
    )
    threads: int | None = Field(default=None, ge=1, description="CPU threads; default: torch's choice")

    @field_validator("model")
    @classmethod
    def _model(cls, value: str) -> str:
        ModelRef.parse(value)
        return value

    @field_validator("corpus")
    @classmethod
    def _corpus(cls, value: str) -> str:
        if value != RANDOM_TOKENS:
            CorpusRef.parse(value)
        return value

    @model_validator(mode="before")
    @classmethod
    def _random_weights_read_random_tokens(cls, data: Any) -> Any:
        # Random weights have no tokenizer; a suite's defaults must not split their cells.
        if isinstance(data, dict) and str(data.get("model", "")).startswith("random:"):
            return {**data, "corpus": RANDOM_TOKENS, "bos": False}
        return data

    @model_validator(mode="after")
    def _needs_a_corpus(self) -> AttentionParams:
        if self.corpus == RANDOM_TOKENS and not self.model.startswith("random:"):
            raise ValueError("a corpus is required, e.g. corpus: novel:persuasion")
        return self
