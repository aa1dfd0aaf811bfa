"""What the embedded pipeline's card tells a reader to type works as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import ddposink
from ddposink.embedded.pipeline import flow_card
from ddposink.embedded.pipeline.card import CARD
from ddposink.models.diffusion import EMBEDDED


def snippet(card: str) -> str:
    found = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert found
    return found[1]


@pytest.mark.parametrize(("name", "card"), [("emoji-sd", CARD), ("emoji-sd3", flow_card.CARD)])
def test_the_cards_snippet_runs(name: str, card: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code = snippet((EMBEDDED[name] / "README.md").read_text(encoding="utf-8"))
    assert code == snippet(card)
    monkeypatch.chdir(Path(ddposink.__file__).parents[1])
    *lines, last = code.strip().splitlines()
    names: dict[str, Any] = {}
    exec("\n".join(lines), names)
    assert eval(last.removeprefix("picture = "), names).size == (64, 64)
