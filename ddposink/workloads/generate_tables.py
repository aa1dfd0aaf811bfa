"""What a `generate` cell yields and which pictures are drawn of it: the declarations, as tables."""

from __future__ import annotations

from bench.workload import Metric, View
from ddposink.workloads.generate_rule import RULE, SPAN


def _bytes(name: str, label: str, text: str, klass: str = "near") -> Metric:
    return Metric(name, label, "B", "lower", klass, help=text)  # type: ignore[arg-type]


_FRESH = (
    "of the written tokens under dense attention: windows of fresh_window tokens of the conversation begin every "
    "half window, each goes through the untouched model alone, its second half is scored. Repetition is cheap, too"
)
_SHARE = "distinct ones among all {}; falls with the length of any text"

METRICS = (
    Metric("fresh_perplexity", "fresh perplexity", "", "lower", "near", 0.05, _FRESH, headline=True),
    Metric("nll", "NLL in fresh windows", "nats/token", "lower", "near", 0.001, "mean over the written tokens, as the fresh perplexity"),
    Metric("last_perplexity", "fresh perplexity of the end", "", "lower", "near", 0.05, f"the same, of the last {SPAN} written tokens"),
    Metric("distinct_1", "distinct tokens", "share", "higher", "near", 0.001, _SHARE.format("written tokens")),
    Metric("distinct_2", "distinct pairs", "share", "higher", "near", 0.001, _SHARE.format("pairs of neighbours written"), headline=True),
    Metric("distinct_3", "distinct triples", "share", "higher", "near", 0.001, _SHARE.format("triples of neighbours written")),
    Metric("longest_repeat", "longest repeat", "tokens", "lower", "near", help="the longest stretch that was written twice, exactly; the two may overlap", headline=True),
    Metric("compression", "compression", "", "lower", "near", 0.01, "UTF-8 bytes of the written text over those zlib (level 9) makes of them; repeats raise it, and so does length"),
    Metric("collapse_at", "first token of collapse", "tokens", "higher", "near", help=RULE + "; tokens written before it", headline=True),
    Metric("answers", "answers", "", "none", "near", help="turns that were answered, the last one perhaps in part"),
    Metric("answers_ended", "answers that end themselves", "share", "none", "near", 0.001, "before turn_tokens cuts them off"),
    Metric("prompt_tokens", "prompt tokens", "", "none", "near", help="fed beside the written ones: the turns, and what the chat template puts around them"),
    Metric("kv_bytes", "KV cache", "B", "lower", "near", help="measured bytes of the keys and values held", headline=True),
    _bytes("kv_bytes_analytic", "KV cache, predicted", "what one token takes in each layer, times the tokens kept there"),
    _bytes("kv_bytes_allocated", "KV cache buffers", "with empty and scratch slots; a dense buffer grows by doubling"),
    _bytes("state_bytes", "recurrent state", "measured bytes of recurrent and convolution states, beside keys and values"),
    _bytes("alloc_peak_bytes", "allocator peak", "torch's allocator while writing, since the length before"),
    _bytes("reserved_peak_bytes", "allocator peak reserved", "torch's allocator, since the length before"),
    _bytes("nvml_process_bytes", "VRAM of the process (NVML)", "driver's figure for this process", "noisy"),
    _bytes("nvml_device_bytes", "VRAM of the device (NVML)", "growth of used memory, driver-reserved excluded", "noisy"),
    Metric("rss_peak_bytes", "peak RSS (host)", "B", "lower", "noisy", 0.05, "host memory while writing, since the length before", headline=True),
    Metric("tokens_per_s", "writing speed", "tok/s", "higher", "noisy", 0.05, "tokens fed one at a time, prompts included, and chosen, since the length before", headline=True),
)  # fmt: skip

VIEWS = (
    View("fluency", "curve", "Fluency along the text", "position", "fresh_perplexity", "tokens written",
         "fresh perplexity of the neighbourhood", series="nll", transform="exp", log_y=True,
         marks=("collapse_at",), headline=True, paired=False),
    View("kv-cache-by-length", "line", "KV cache along the way", "length", "kv_bytes", "tokens written", "KV cache"),
    View("host-memory-by-length", "line", "Peak host memory along the way", "length", "rss_peak_bytes",
         "tokens written", "peak RSS (host)"),
    View("vram-by-length", "line", "VRAM of the process (NVML) along the way", "length", "nvml_process_bytes",
         "tokens written", "VRAM of the process (NVML)"),
    View("repeats-by-length", "line", "Distinct pairs along the way", "length", "distinct_2", "tokens written",
         "distinct pairs so far"),
    View("speed-by-length", "line", "Writing speed along the way", "length", "tokens_per_s", "tokens written",
         "writing speed"),
    View("texts", "texts", "What was written", "length", "length", "tokens written", "text", series="text"),
)  # fmt: skip
