"""What an `attention` cell yields and which pictures are drawn of it: the declarations, as tables."""

from __future__ import annotations

from bench.workload import Metric, View


def _share(name: str, label: str, text: str, *, headline: bool = False) -> Metric:
    """Parts of 1, for which neither side is the better one."""
    return Metric(name, label, "", "none", "near", 0.005, text, headline)


METRICS = (
    _share("sink_share", "heads with a sink", "part of all heads whose mean attention on the first token and on a learned sink logit, "
           "over the queries of a piece, is above the threshold (Gu et al. 2025); samples are pieces", headline=True),
    _share("attention_first", "attention on the first token", "mean over heads and queries; samples are pieces", headline=True),
    _share("attention_first_four", "attention on the first four tokens", "mean over heads and queries; samples are pieces", headline=True),
    _share("attention_learned", "attention on learned sink logits", "attention that goes to no token; samples are pieces", headline=True),
    _share("attention_strongest", "the strongest head's sink", "largest mean over queries and pieces among the heads", headline=True),
    _share("attention_first_far", "attention on the first token, far on", "mean over heads and the last queries of the text read once "
           "(the last of the bins along it)"),
    _share("attention_first_four_far", "attention on the first four tokens, far on", "the same of the first four"),
    Metric("heads", "attention heads", "", "none", "exact"),
)  # fmt: skip


def _along(name: str, title: str, y: str, label: str, *, headline: bool = False) -> View:
    return View(name, "trace", title, "position", y, "tokens read", label, hue="model", series="along", log_x=True,
                headline=headline)  # fmt: skip


VIEWS = (
    View("sink-map", "map", "Where the sinks are", "head", "sink", "head",
         "attention on the first token and on a learned sink logit", hue="layer", series="sinkmap", headline=True),
    _along("first-by-position", "Attention on the first token along the text", "first",
           "mean attention on the first token", headline=True),
    _along("first-four-by-position", "Attention on the first four tokens along the text", "few",
           "mean attention on the first four tokens"),
    _along("sink-share-by-position", "Heads with a sink along the text", "sink_share", "part of the heads"),
)  # fmt: skip
