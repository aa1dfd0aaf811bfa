"""What a `recall` cell yields and which pictures are drawn of it: the declarations, as tables."""

from __future__ import annotations

from bench.workload import Metric, View

METRICS = (
    Metric("accuracy", "right answers", "", "higher", "near", 0.05, "share of questions whose answer is right token by token; chance is 1 in 10 per digit, 1e-5 for five", headline=True),
    Metric("accuracy_low", "right answers, lower limit", "", "none", "near", 0.05, "Wilson's 95 % limits over the questions", headline=True),
    Metric("accuracy_high", "right answers, upper limit", "", "none", "near", 0.05, "Wilson's 95 % limits over the questions", headline=True),
    Metric("answer_nll", "NLL of the answer", "nats/token", "lower", "near", 0.01, "mean over the answer's tokens and the questions; even guesses at digits cost ln 10 = 2.3, being sure of something else more", headline=True),
    Metric("true_distance", "distance, true mean", "", "none", "exact", help="tokens between fact and question", headline=True),
    Metric("questions_asked", "questions", "", "none", "exact"),
    Metric("tokens_fed", "tokens fed", "", "none", "exact", help="tokens before the answers' last ones, all questions together, each from the beginning of its text"),
    Metric("kv_bytes", "KV cache", "B", "lower", "exact", help="measured bytes of the keys and values held when a question came; the most of all questions", headline=True),
)  # fmt: skip

VIEWS = (
    View("accuracy-by-distance", "line", "What is still known?", "distance", "accuracy", "tokens between fact and question",
         "right answers", log_x=True, marks=("cache_limit", "train_length"), headline=True),
    View("answer-nll-by-distance", "line", "How sure is the right answer?", "distance", "answer_nll", "tokens between fact and question",
         "NLL of the answer", log_x=True, marks=("cache_limit", "train_length")),
    View("policy-by-distance", "heatmap", "Right answers by policy and distance", "distance", "accuracy", "tokens between fact and question",
         "right answers"),
)  # fmt: skip
