"""What a cell of a `generate` suite may say."""

from __future__ import annotations

from pydantic import Field, field_validator

from ddposink.caches import parse_policy
from ddposink.models.language import ModelRef
from ddposink.workloads.common_params import Decode, Device, Dtype, Threads, UnderPolicy
from ddposink.workloads.generate_turns import QUESTIONS, TurnSource
from ddposink.workloads.policy_param import HELP


class GenerateParams(UnderPolicy):
    """One cell of a `generate` suite."""

    model: str = Field(
        description="smollm2-135m (embedded), bundled:NAME, path:DIR or ORG/NAME@REVISION (40 hex digits); "
        "it needs a tokenizer"
    )
    policy: str = Field(description=HELP)
    length: int = Field(ge=2, le=100_000_000, description="tokens written by the model, prompts not counted")
    turns: str = Field(
        default=QUESTIONS,
        description="what the user says: 'questions' (shipped, in an order of the seed) or the sentences of "
        "a corpus, from a place of the seed on: novel:NAME, novels, file:PATH, folder:DIR, pg19:test[/BOOK]",
    )
    turn_tokens: int = Field(
        default=64,
        ge=1,
        le=1_000_000,
        description="most tokens an answer may take before the next turn is put; the answer's own end comes "
        "before that",
    )
    temperature: float = Field(default=0.0, ge=0, le=100, description="0 writes the likeliest token")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="draw from the likeliest tokens that have this much probability"
    )
    fresh_window: int = Field(
        default=512,
        ge=4,
        le=65_536,
        multiple_of=2,
        description="tokens of a window in which the written text is scored afterwards, by dense attention",
    )
    dtype: Dtype = "float32"
    device: Device = "auto"
    decode: Decode = "auto"
    threads: Threads = None

    @field_validator("model")
    @classmethod
    def _model(cls, value: str) -> str:
        if ModelRef.parse(value).kind == "random":
            raise ValueError("random weights have no tokenizer and write nothing that could be read")
        return value

    @field_validator("policy")
    @classmethod
    def _policy(cls, value: str) -> str:
        policy = parse_policy(value)
        if policy.evict.by_turns:
            raise ValueError(
                f"evict={policy.evict} must know where a turn ends before it is fed, and nobody knows that "
                f"of an answer that is being written: use evict=token or evict=chunk:N"
            )
        return policy.label

    @field_validator("turns")
    @classmethod
    def _turns(cls, value: str) -> str:
        TurnSource.parse(value)
        return value
