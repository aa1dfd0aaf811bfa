"""What a cell of a `recall` suite may say."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ddposink.corpora import CorpusRef
from ddposink.models.language import ModelRef
from ddposink.workloads.common_params import Bos, Chunk, Device, Dtype, Evaluator, Threads, UnderPolicy
from ddposink.workloads.policy_param import HELP

Task = Literal["passkey", "needles", "stream"]
FACT, QUESTION = 28, 20  # tokens of each, about
# What some tasks only ask for; of the others it is no parameter, and must not split their cells.
ONLY = {"needles": ("needles",), "lead": ("passkey", "needles"), "corpus": ("passkey", "needles"),
        "interval": ("stream",)}  # fmt: skip


class RecallParams(UnderPolicy):
    """One cell of a `recall` suite."""

    model: str = Field(
        description="smollm2-135m (embedded), bundled:NAME, path:DIR or ORG/NAME@REVISION (40 hex digits)"
    )
    policy: str = Field(description=HELP)
    distance: int = Field(ge=1, le=100_000_000, description="tokens between a fact and the question about it")
    task: Task = Field(
        default="passkey",
        description="passkey: one fact · needles: several, one asked about · stream: nothing but facts, a "
        "question every few lines, as StreamEval has it",
    )
    questions: int = Field(default=32, ge=1, le=100_000, description="questions asked at each distance")
    needles: int = Field(default=4, ge=2, le=64, description="facts of the task needles")
    digits: int = Field(default=5, ge=1, le=12, description="digits of a number to be remembered")
    lead: int = Field(
        default=64, ge=0, le=1_000_000, description="tokens of the text read before the facts (about)"
    )
    interval: int = Field(
        default=10, ge=1, le=10_000, description="lines from one question to the next, of the task stream"
    )
    corpus: str = Field(
        default="novel:persuasion",
        description="whose sentences stand between fact and question: novel:NAME, novels, file:PATH, "
        "folder:DIR, pg19:test[/BOOK]; the first book is taken",
    )
    dtype: Dtype = "float32"
    device: Device = "auto"
    evaluator: Evaluator = "auto"
    chunk: Chunk = 1024
    bos: Bos = False
    threads: Threads = None

    @field_validator("model")
    @classmethod
    def _model(cls, value: str) -> str:
        if ModelRef.parse(value).kind == "random":
            raise ValueError(f"'{value}' has no tokenizer and remembers nothing: name a trained model")
        return value

    @field_validator("corpus")
    @classmethod
    def _corpus(cls, value: str) -> str:
        CorpusRef.parse(value)
        return value

    @model_validator(mode="before")
    @classmethod
    def _only_what_the_task_asks_for(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        task = data.get("task", cls.model_fields["task"].default)
        return {name: value for name, value in data.items() if task in ONLY.get(name, (task,))}

    @property
    def tokens(self) -> int:
        """Tokens fed for all questions, about."""
        if self.task == "stream":
            return self.distance + self.questions * (self.interval * FACT + QUESTION)
        told = FACT * (self.needles if self.task == "needles" else 1)
        return self.lead + self.questions * (told + self.distance + QUESTION)

    @property
    def longest(self) -> int:
        """Tokens of the longest text, about."""
        return self.tokens if self.task == "stream" else self.lead + self.tokens // self.questions
