"""Where the turns of a token stream end: at the chat template's end-of-turn tokens, else at blank lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

# What chat templates end a turn with, for tokenizers that carry no template of their own.
KNOWN_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<turn|>",
    "<|end|>",
    "<|end_of_turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|return|>",
)
PROBE = "zebra"  # a message that no template contains by itself


def turn_ends(ids: np.ndarray, tokenizer: Any, spoken: bool | None = None) -> np.ndarray:
    """(N,) bool: the last token of every turn of ``ids`` (N,).

    End-of-turn tokens of the tokenizer's chat template where the text has any; else the tokens that complete
    a blank line, i.e. end a paragraph. ``spoken``: whether the text that ``ids`` begin has any, so that turns
    do not depend on how much of it is read; None where ``ids`` are all of it.
    """
    import numpy as np

    marked = np.isin(ids, sorted(end_tokens(tokenizer)))
    return marked if (marked.any() if spoken is None else spoken) else _paragraph_ends(ids, tokenizer)


def end_words(tokenizer: Any) -> list[str]:
    """`end_tokens` as they stand in a text."""
    return tokenizer.convert_ids_to_tokens(sorted(end_tokens(tokenizer)))


def end_tokens(tokenizer: Any) -> set[int]:
    """Token ids that end a turn: what the template puts after a message, and well-known ones."""
    added = tokenizer.get_added_vocab()
    return {added[name] for name in KNOWN_ENDS if name in added} | _of_the_template(tokenizer, added)


def _of_the_template(tokenizer: Any, added: dict[str, int]) -> set[int]:
    """Added tokens that stand right behind the messages of a short conversation."""
    if not getattr(tokenizer, "chat_template", None):
        return set()
    messages = [{"role": role, "content": PROBE} for role in ("user", "assistant")]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception:  # templates are programs: whatever one raises, the well-known tokens must do
        return set()
    behind = [rest.lstrip() for rest in str(text).split(PROBE)[1:]]
    return {number for name, number in added.items() if any(rest.startswith(name) for rest in behind)}


def _paragraph_ends(ids: np.ndarray, tokenizer: Any) -> np.ndarray:
    import numpy as np

    numbers, place = np.unique(ids, return_inverse=True)
    unseen = str.maketrans("", "", " \t\r")  # a line of these alone is blank; CRLF ends a line
    texts = [tokenizer.decode([int(i)]).translate(unseen) for i in numbers]
    blank = np.array([text.endswith("\n\n") for text in texts], dtype=bool)[place]
    ends = np.array([text.endswith("\n") for text in texts], dtype=bool)[place]
    alone = np.array([text == "\n" for text in texts], dtype=bool)[place]
    seen = np.flatnonzero(np.array([bool(text) for text in texts], dtype=bool)[place])
    blank[seen[1:]] |= alone[seen[1:]] & ends[seen[:-1]]
    return blank
