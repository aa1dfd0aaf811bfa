"""A conversation as token ids, turn by turn: what the model's chat template puts around the words.

A template renders whole conversations; an endless one cannot be rendered anew for every turn. So what stands
between an answer and the next one is cut out of a rendered conversation of three messages, once a turn.
Without a template a turn is a paragraph of its own.
"""

from __future__ import annotations

from typing import Any

from ddposink.turns import PROBE, end_tokens


class Chat:
    """Token ids that put a turn, for one tokenizer.

    ``ends`` are the ids that end an answer. ``kind`` says in one line what stands around the words.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.ends = end_tokens(tokenizer)
        if tokenizer.eos_token_id is not None:
            self.ends.add(int(tokenizer.eos_token_id))
        self.template = bool(getattr(tokenizer, "chat_template", None))
        self.kind = "the tokenizer's chat template" if self.template else "paragraphs: no chat template"

    def first(self, words: str) -> list[int]:
        """Ids of the first turn, up to where the answer begins."""
        if self.template:
            return self._ids(self._render([_user(words)]))
        return [int(i) for i in self.tokenizer(f"{words}\n\n")["input_ids"]]

    def next(self, words: str, ended: int | None) -> list[int]:
        """Ids of a later turn, from the end of the answer before it.

        ``ended`` is the token with which that answer ended itself (it is not put again), or None if it was
        cut off: then the template's own end is put first.
        """
        if not self.template:
            return self._ids(f"\n\n{words}\n\n")
        answer = {"role": "assistant", "content": PROBE}
        _, found, behind = self._render([_user("-"), answer, _user(words)]).partition(PROBE)
        if not found:
            raise ValueError("the chat template leaves earlier answers out: no conversation goes on with it")
        ids = self._ids(behind)
        return ids[1:] if ended is not None and ids[:1] == [ended] else ids

    def _render(self, messages: list[dict[str, str]]) -> str:
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def _ids(self, text: str) -> list[int]:
        """Ids of ``text``, whose special tokens the template has written out."""
        return [int(i) for i in self.tokenizer(text, add_special_tokens=False)["input_ids"]]


def _user(words: str) -> dict[str, str]:
    return {"role": "user", "content": words}
