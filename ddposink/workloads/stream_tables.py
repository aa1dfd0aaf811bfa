"""What a `stream` cell yields and which pictures are drawn of it: the declarations, as tables."""

from __future__ import annotations

from bench.workload import Metric, View


def _bytes(name: str, label: str, text: str, klass: str = "near", *, headline: bool = False) -> Metric:
    return Metric(name, label, "B", "lower", klass, help=text, headline=headline)  # type: ignore[arg-type]


METRICS = (
    Metric("perplexity", "perplexity", "", "lower", "near", 0.05, "exp of the mean NLL over all tokens", headline=True),
    Metric("nll", "NLL", "nats/token", "lower", "near", 0.001, "mean over all scored tokens"),
    Metric(
        "perplexity_post", "perplexity after eviction starts", "", "lower", "near", 0.05,
        "over the tokens whose query misses at least one earlier token", headline=True,
    ),
    Metric("nll_post", "NLL after eviction starts", "nats/token", "lower", "near", 0.001),
    Metric("nll_half", "NLL of the second half", "nats/token", "lower", "near", 0.001,
           "the same tokens for every policy; samples are blocks of 128 tokens"),
    Metric("bits_per_byte", "bits per byte", "bit/B", "lower", "near", 0.001, "comparable across tokenizers", headline=True),
    Metric("word_perplexity", "word perplexity", "", "lower", "near", 0.5, "exp of the NLL per whitespace word"),
    Metric("kl_dense", "KL from dense", "nats/token", "lower", "near", 0.001,
           "KL(dense ‖ policy) over the vocabulary, second half of the text; samples are blocks of 128 tokens", headline=True),
    Metric("top1_agreement", "same first choice as dense", "", "higher", "near", 0.002,
           "share of tokens in the second half of the text at which dense and the policy rank the same token first"),
    Metric("lost_tokens", "tokens that lost more than a nat", "", "lower", "near", 0.002,
           "share of tokens in the second half of the text whose NLL is more than 1 nat above dense's"),
    Metric("longppl", "LongPPL", "", "lower", "near", 0.05, "perplexity over the key tokens alone: those that the whole text "
           "makes much likelier than a short context does, under dense (Fang et al. 2025)"),
    Metric("nll_key", "NLL of key tokens", "nats/token", "lower", "near", 0.005, "samples are means of 16 key tokens in a row"),
    Metric("key_tokens", "key tokens", "", "none", "near", 1, "of the tokens scored"),
    Metric("scored_tokens", "tokens scored", "", "none", "exact"),
    Metric("nonfinite_tokens", "tokens with NaN or infinite NLL", "", "lower", "exact"),
    Metric("kv_bytes", "KV cache", "B", "lower", "exact", help="measured bytes of the keys and values held", headline=True),
    _bytes("kv_bytes_analytic", "KV cache, predicted", "what one token takes in each layer, times the tokens kept there", "exact"),
    _bytes("state_bytes", "state beside keys and values", "measured bytes of recurrent and convolution states, "
           "and of what a policy remembers to choose by (positions, queries, attention received)", "exact"),
    _bytes("kv_bytes_allocated", "KV cache buffers", "with empty and scratch slots", "exact"),
    _bytes("alloc_peak_bytes", "allocator peak", "torch's allocator while decoding at this length"),
    _bytes("reserved_peak_bytes", "allocator peak reserved", "torch's allocator"),
    _bytes("nvml_process_bytes", "VRAM of the process (NVML)", "driver's figure for this process", "noisy", headline=True),
    _bytes("nvml_device_bytes", "VRAM of the device (NVML)", "growth of used memory, driver-reserved excluded", "noisy"),
    Metric("rss_peak_bytes", "peak RSS (host)", "B", "lower", "noisy", 0.05, "host memory while decoding at this length", headline=True),
    Metric("latency_median_ms", "latency per token", "ms", "lower", "noisy", 0.05, "median, decode at this length", headline=True),
    Metric("latency_p90_ms", "latency p90", "ms", "lower", "noisy", 0.1),
    Metric("latency_p99_ms", "latency p99", "ms", "lower", "noisy", 0.2),
    Metric("tokens_per_s", "decode speed", "tok/s", "higher", "noisy", 0.05),
    Metric("ttft_ms", "time to first token", "ms", "lower", "noisy", 0.05, "a text of this length read as a prompt, median of three readings"),
    Metric("prefill_tokens_per_s", "prompt speed", "tok/s", "higher", "noisy", 0.05, "tokens of a prompt of this length read in a second"),
    Metric("eval_tokens_per_s", "evaluation speed", "tok/s", "higher", "noisy", 0.05, "scoring the text, this evaluator", headline=True),
    Metric("energy_per_token_j", "energy per token", "J", "lower", "noisy", 0.1),
    Metric("flops_per_token", "FLOPs per decoded token", "FLOP", "lower", "exact", help="torch's flop counter"),
    Metric("calls_per_token", "operator calls per decoded token", "", "lower", "exact"),
    Metric("cats_per_token", "concatenations per decoded token", "", "lower", "exact"),
    Metric("allocated_per_token", "bytes allocated per decoded token", "B", "lower", "exact"),
)  # fmt: skip

# The headline pictures compare no sinks with four; other counts belong to the ablation.
_MAIN = {"sinks": (None, 0, 4)}
VIEWS = (
    View("perplexity-by-position", "curve", "Perplexity along the text", "position", "perplexity", "tokens read",
         "perplexity of the neighbourhood", series="nll", transform="exp", log_x=True, log_y=True,
         marks=("train_length", "collapse_at"), where=_MAIN, headline=True),
    View("kv-cache-by-length", "line", "KV cache against length", "length", "kv_bytes", "tokens read", "KV cache",
         log_x=True, log_y=True, marks=("train_length",), where=_MAIN, headline=True),
    View("latency-by-length", "line", "Latency per token against length", "length", "latency_median_ms",
         "tokens read", "latency per token", log_x=True, marks=("train_length",), where=_MAIN),
    View("host-memory-by-length", "line", "Peak host memory while decoding", "length", "rss_peak_bytes",
         "tokens read", "peak RSS (host)", log_x=True, where=_MAIN),
    View("kl-by-bytes", "line", "What a policy loses, at the bytes it holds", "kv_bytes", "kl_dense", "KV cache (MiB)",
         "KL(dense ‖ policy)", hue="family", log_y=True, front=True, headline=True),
    View("kl-by-position", "curve", "KL from dense along the text", "position", "kl_dense", "tokens read",
         "KL(dense ‖ policy) of the neighbourhood", series="kl", log_x=True, log_y=True, marks=("train_length",)),
    View("vram-by-length", "line", "VRAM of the process (NVML)", "length", "nvml_process_bytes",
         "tokens read", "VRAM of the process (NVML)", log_x=True, where=_MAIN),
    View("sink-count", "line", "How many sinks does it take?", "sinks", "perplexity_post", "initial tokens kept",
         "perplexity after eviction starts", hue="budget", log_x=True, log_y=True),
    View("policy-by-length", "heatmap", "Perplexity by policy and length", "length", "perplexity", "tokens read",
         "perplexity"),
)  # fmt: skip
