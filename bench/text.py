"""Words and numbers of a report: Markdown that hostile names cannot break, and numbers people can read.

Labels, reasons and parameter values come from suites, file names and exception messages. They are
text, never markup: whatever they contain, a page shows the characters and nothing else.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

MISSING = "–"
_BYTE_UNITS = {"b", "byte", "bytes"}
_PREFIXES = ("B", "KiB", "MiB", "GiB", "TiB")
_HEAD, _BEFORE = 10, 4  # characters kept of what long names share: at the beginning, and where they part
_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}  # control, direction marks, lone surrogates, breaks

_MARKUP = re.compile(r"[\\`*\[\]|~$&<>_@]|://|^[-+=#]|^\d+[.)]|www|mailto|xmpp", re.IGNORECASE)  # perhaps


class Md(str):
    """Text that is Markdown already and must not be escaped again."""

    __slots__ = ()


class Scale(NamedTuple):
    """Divide a value by ``divisor`` to express it in ``unit``."""

    divisor: float
    unit: str


def clean(value: object, limit: int = 300) -> str:
    """One line of visible characters, at most ``limit`` long."""
    text = str(value)
    if not text.isprintable():  # nearly all texts are: a page has hundreds of thousands of them
        text = "".join(" " if unicodedata.category(c) in _INVISIBLE else c for c in text)
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def shortened(texts: Sequence[str], limit: int) -> list[str]:
    """Names of different things, cut to ``limit`` characters around where they part; no two are equal."""
    found = [clean(one, limit) for one in texts]
    groups: dict[str, list[int]] = {}
    for place, short in enumerate(found):
        groups.setdefault(short, []).append(place)
    for places in (group for group in groups.values() if len(group) > 1):
        whole = [clean(texts[place], 10_000) for place in places]
        parts = (i for i, letters in enumerate(zip(*whole, strict=False)) if len(set(letters)) > 1)
        start = max(0, next(parts, min(map(len, whole))) - _BEFORE)
        for place, one in zip(places, whole, strict=True):
            found[place] = clean(f"{one[:_HEAD]}…{one[start:]}" if start > _HEAD + 1 else one, limit)
    count = Counter(found)
    return [f"{one} #{place}" if count[one] > 1 else one for place, one in enumerate(found, start=1)]


def md(value: object, limit: int = 300) -> Md:
    """Escape any text for Markdown, also inside a table cell; no markup, link or mention survives."""
    if isinstance(value, Md):
        return value
    text = clean(value, limit)
    if not _MARKUP.search(text):
        return Md(text)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*\[\]|~$])", r"\\\1", text)
    text = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)
    text = re.sub(r"^([-+=#])", r"\\\1", text)
    text = re.sub(r"^(\d+)([.)])(?= |$)", r"\1\\\2", text)
    text = text.replace("@", "&#64;").replace("://", "&#58;//")
    return Md(re.sub(r"(?i)\b(www|mailto|xmpp)([.:])", lambda m: f"{m[1]}&#{ord(m[2])};", text))


def code(value: object, limit: int = 300) -> Md:
    """A code span holding any text; its fence is longer than any run of backticks inside."""
    text = clean(value, limit).replace("|", "¦")
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if text.startswith("`") or text.endswith("`") or not text else ""
    return Md(f"{fence}{pad}{text}{pad}{fence}")


def slug(value: object) -> str:
    """A file name part: lower case letters, digits, dot and dash."""
    return re.sub(r"[^a-z0-9.]+", "-", clean(value, 80).lower()).strip("-.") or "unnamed"


def number(value: Any) -> str:
    """A number with about four significant digits and thousands separators; text stays text."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return clean(value)
    if math.isnan(value):
        return MISSING
    size = abs(value)
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if size >= 1e12:
        return f"{value:.4g}"
    if value == 0:
        return "0"
    if size < 1e-4:
        return f"{value:.2e}"
    decimals = max(0, 3 - math.floor(math.log10(size)))
    return f"{value:,.{decimals}f}"


def given(value: Any) -> str:
    """A setting as `number` writes it, but for one that would be rounded: two settings never read alike."""
    text = number(value)
    if not isinstance(value, float) or not math.isfinite(value):
        return text
    return text if float(text.replace(",", "")) == value else repr(float(value))


def interval(estimate: float, low: float, high: float) -> Md:
    """``+0.026 [+0.014, +0.040]``: signed, with the decimals that the width of the interval justifies."""
    width = (high - low) / 2
    decimals = max(0, 1 - math.floor(math.log10(width))) if width > 0 else 4
    extreme = decimals > 6 or max(map(abs, (estimate, low, high))) >= 1e12
    form = "+.3g" if extreme else f"+,.{decimals}f"
    values = [f"{v:{form}}" for v in (estimate, low, high)]
    values = [f"−{text[1:]}" if text[0] == "-" else text for text in values]  # an exponent keeps its sign
    return Md(f"{values[0]} [{values[1]}, {values[2]}]")


def is_bytes(unit: str) -> bool:
    """Whether a unit is plain bytes, which readers want in KiB, MiB or GiB."""
    return unit.strip().lower() in _BYTE_UNITS


def scale_for(unit: str, values: Iterable[float]) -> Scale:
    """The unit in which to show these values: bytes get the binary prefix of their middle value."""
    if not is_bytes(unit):
        return Scale(1.0, "" if unit.strip() in ("", "1") else unit.strip())
    sizes = sorted(abs(v) for v in values if v and math.isfinite(v))
    middle = sizes[len(sizes) // 2] if sizes else 1.0
    power = min(len(_PREFIXES) - 1, max(0, int(math.log(middle, 1024)))) if middle > 1 else 0
    return Scale(1024.0**power, _PREFIXES[power])


def with_unit(label: str, unit: str, declared: str = "") -> str:
    """A label followed by its unit. A unit that the label brings along is replaced, not repeated."""
    base, bracket, own = label.rpartition(" (")
    brings = bracket and own.endswith(")")
    if brings and (own[:-1] in (unit, declared) or is_bytes(own[:-1]) or own[:-1] in _PREFIXES):
        label, brings = base, ""
    if not unit or (brings and own[:-1].replace(" per ", "/").startswith(unit)):
        return label  # "effect (SD within a prompt)" says of itself that it is in SD
    return f"{label}, {unit}" if brings else f"{label} ({unit})"


def duration(seconds: float) -> str:
    """``4 h 05 min``, ``3 min 20 s``, ``12 s``."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def plural(count: int, word: str) -> str:
    """``1 cell``, ``2 cells``, ``3 passes``."""
    return f"{count:,} {word}" + ("" if count == 1 else "es" if word.endswith("s") else "s")
