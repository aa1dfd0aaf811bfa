"""What a cell of an `attention` suite may say."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from ddposink.workloads.common_params import RANDOM_TOKENS, AnyModel, Device, Number, OnText, Threads


class AttentionParams(OnText):
    """One cell of an `attention` suite."""

    model: AnyModel
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
    dtype: Number = Field(default="float32", description="weights")
    device: Device = "auto"
    chunk: int = Field(default=256, ge=1, le=65536, description="queries whose weights are held at once")
    bos: bool = Field(
        default=False,
        description="begin every piece, and the text, with the tokenizer's beginning-of-text token",
    )
    threads: Threads = None

    @model_validator(mode="before")
    @classmethod
    def _random_weights_read_random_tokens(cls, data: Any) -> Any:
        # Random weights have no tokenizer; a suite's defaults must not split their cells.
        if isinstance(data, dict) and str(data.get("model", "")).startswith("random:"):
            return {**data, "corpus": RANDOM_TOKENS, "bos": False}
        return data
