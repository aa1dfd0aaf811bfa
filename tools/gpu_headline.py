"""What must be known of a GPU, as lines of JSON that are written as they are measured.

Called by ``tools/gpu_evidence.sh headline``, a step a process: ``rates``, ``exact``, ``ddpo``; ``summary`` puts
together what is there. On a CPU and with tiny shapes the same code is rehearsed; what only a GPU can tell is
null with its reason.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

SINKS, WINDOW = 4, 1020
ORDER = ("tests", "rates", "decode", "exact", "ddpo")  # most important first


class Lines:
    """A file of measurements; every line is on the disk before the next begins."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def say(self, name: str, value: float | None, unit: str, reason: str = "", **more: object) -> None:
        """Keep a value, or None with the reason."""
        line = {
            "name": name,
            "value": value,
            "unit": unit,
            **({"reason": reason} if value is None else {}),
            **more,
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    def measured(self, name: str, unit: str, run: Callable[[], float], **more: object) -> float | None:
        """Keep what ``run`` gives, or why it gave nothing: one failure must not take the rest along."""
        try:
            value = run()
        except Exception as error:
            self.say(
                name, None, unit, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", **more
            )
            return None
        self.say(name, value, unit, **more)
        return value


def rates(args: argparse.Namespace, lines: Lines) -> None:
    """What the device can move and multiply at best: the measure of all that follows."""
    import torch
    from gpu_measures import copy_rate, matmul_rate

    size, width = (2**32, 8192) if args.device == "cuda" else (2**22, 128)
    lines.measured("copy_rate", "B/s", lambda: copy_rate(args.device, size))
    for dtype in (torch.bfloat16, torch.float32):
        what = str(dtype).removeprefix("torch.")
        lines.measured(f"matmul_rate_{what}", "FLOP/s", lambda d=dtype: matmul_rate(d, args.device, width))
    size = 4 if args.device == "cpu" else 2
    lines.measured(
        "weight_bytes_read_per_token", "B", lambda: size * _parameters_read(args.model), model=args.model
    )


def _parameters_read(name: str) -> int:
    """Parameters that a decode step reads: all but an input embedding of its own. Nothing is allocated."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from ddposink.models.shapes import SHAPES

    shape = dict(SHAPES[name.removeprefix("random:")])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(shape.pop("model_type"), **shape))
    embedding = model.get_input_embeddings().weight
    tied = model.get_output_embeddings().weight is embedding
    return sum(p.numel() for p in model.parameters()) - (0 if tied else embedding.numel())


def exact(args: argparse.Namespace, lines: Lines) -> None:
    """Exact perplexity against token by token and against plain prefill; the library's eager dense decode."""
    import numpy as np
    import torch
    from gpu_measures import fill, library_step, per_step, ring_step, seconds

    from ddposink.caches import parse_policy
    from ddposink.models.language import ModelRef, load_model
    from ddposink.streaming import DecodeStream, ExactStream, evaluate, inspect

    small = args.device == "cpu"
    policy = parse_policy("sink 4+28" if small else f"sink {SINKS}+{WINDOW}")
    dtype, tokens, contexts = ("float32", 256, (64,)) if small else ("bfloat16", 16_384, (1024, 32_768))
    begun = time.perf_counter()
    model = load_model(ModelRef.parse(args.model), dtype, args.device).model
    lines.say("load_seconds", time.perf_counter() - begun, "s", model=args.model)
    ids = torch.randint(
        0, model.config.vocab_size, (max(contexts) + 1,), generator=torch.Generator().manual_seed(0)
    )
    ids = ids.to(args.device)
    positions = inspect(model).positions
    chunk = 2 * policy.window if small else 8 * policy.window

    def new(decode: str = "auto") -> ExactStream:
        return ExactStream(model, policy, positions, chunk, decode=decode)

    def stepwise() -> float:
        stream = new("eager")
        with stream.attached():
            fill(stream, ids, 2 * (policy.sinks + policy.window))
            with stream.decoder().attached() as decoder:
                return per_step(ring_step(decoder, ids), args.device, 16 if small else 64, rounds=2)

    def agreement() -> float:
        some = ids[: policy.sinks + policy.window + (40 if small else 200)]
        gap = evaluate(new(), some) - evaluate(DecodeStream(model, policy, positions), some)
        return float(np.abs(gap.mean()))

    def prefill() -> float:
        with torch.no_grad():
            hidden = model.base_model(ids[None, :tokens], use_cache=False).last_hidden_state[0]
            for piece in hidden.split(1024):  # logits, as exact evaluation makes them
                model.get_output_embeddings()(piece)
        return 0.0

    text, what = ids[:tokens], {"model": args.model, "policy": str(policy), "tokens": tokens}
    lines.measured("exact_mean_nll_difference_to_decode", "nats", agreement, **what)
    ours = lines.measured(
        "exact_seconds", "s", lambda: seconds(lambda: evaluate(new(), text), args.device, 2, 1), **what
    )
    one = lines.measured("stepwise_seconds_per_token", "s", stepwise, **what)
    plain = lines.measured("prefill_seconds", "s", lambda: seconds(prefill, args.device, 2, 1), **what)
    if ours and one:
        lines.say("exact_times_token_by_token", one * tokens / ours, "", **what)
    if ours and plain:
        lines.say("exact_of_plain_prefill", plain / ours, "", **what)
    for context in contexts:
        run = lambda c=context: 1e3 * per_step(library_step(model, ids, c), args.device, 16, rounds=2)  # noqa: E731
        lines.measured("library_dense_decode_ms", "ms", run, model=args.model, length=context)


def ddpo(args: argparse.Namespace, lines: Lines) -> None:
    """Both engines on one configuration: samples a second, memory, fraction of the measured matmul rate."""
    import torch
    from gpu_measures import ddpo_flops, matmul_rate, wait

    from ddposink.ddpo import DDPOConfig, make_engine
    from ddposink.models.diffusion import PipelineRef, load_pipeline

    small = args.device == "cpu"
    shape = {"sample_num_steps": 2, "sample_batch_size": 2, "train_batch_size": 2} if small else {
        "sample_num_steps": 10, "sample_batch_size": 8, "train_batch_size": 4, "train_gradient_accumulation_steps": 2}  # fmt: skip
    precision = "no" if small else "bf16"
    best = lines.measured("matmul_rate", "FLOP/s", lambda: matmul_rate(
        torch.float32 if small else torch.bfloat16, args.device, 128 if small else 8192))  # fmt: skip
    for kind in ("native", "trl"):

        def run(kind: str = kind) -> float:
            pipeline = load_pipeline(PipelineRef.parse(args.pipeline), device=args.device)
            flops = ddpo_flops(pipeline, 1, shape["sample_num_steps"])  # of one sample, without LoRA
            config = DDPOConfig(engine=kind, mixed_precision=precision, log_with=None, **shape)
            engine = make_engine(
                config, pipeline, lambda images, _: images.float().mean(dim=(1, 2, 3)), ["cat", "dog"]
            )
            list(engine.run(1))  # warm-up
            if args.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            wait(args.device)
            begun = time.perf_counter()
            list(engine.run(2))
            wait(args.device)
            taken, samples = time.perf_counter() - begun, config.samples_per_epoch
            what = {"engine": kind, "pipeline": args.pipeline, "denoising_steps": config.sample_num_steps}
            if best:
                lines.say("ddpo_fraction_of_matmul_rate", samples * flops / taken / best, "", **what)
            peak = torch.cuda.max_memory_allocated() if args.device == "cuda" else None
            lines.say("ddpo_peak_bytes", peak, "B", "no CUDA device: there is no allocator to ask", **what)
            return samples / taken

        lines.measured("ddpo_samples_per_s", "1/s", run, engine=kind, pipeline=args.pipeline)


def summary(args: argparse.Namespace, lines: Lines) -> None:
    """``summary.json`` and ``summary.md`` of whatever has been measured so far."""
    files = [file for step in ORDER for file in args.out.glob(f"headline-{step}.jsonl")]
    found = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    known = {one["name"]: one["value"] for one in found}
    known |= {f"{one['name']} {one['length']}": one["value"] for one in found if "length" in one}
    found += list(_records(args.out, known))
    (args.out / "summary.json").write_text(json.dumps(found, indent=1) + "\n")
    rows = ["| what | value | of |", "| --- | ---: | --- |"]
    for one in found:
        value = (
            f"{one['value']:.6g} {one['unit']}".strip()
            if one["value"] is not None
            else f"– ({one['reason']})"
        )
        rows.append(f"| {one['name']} | {value} | {_rest(one)} |")
    done = sorted(path.name.removeprefix("headline-") for path in (args.out / "done").glob("headline-*"))
    text = (
        f"# Headline\n\nSteps that ended well: {', '.join(done) or 'none yet'}.\n\n" + "\n".join(rows) + "\n"
    )
    (args.out / "summary.md").write_text(text)


def _rest(one: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in one.items() if k not in ("name", "value", "unit", "reason"))


def _records(out: Path, known: dict[str, Any]) -> Any:
    """Decode under each policy and length, from the suite's records, beside what the memory can move."""
    wanted = ("latency_median_ms", "kv_bytes", "kv_bytes_analytic", "alloc_peak_bytes", "nvml_process_bytes",
              "nvml_device_bytes", "energy_per_token_j")  # fmt: skip
    for file in sorted(out.glob("results/gpu-headline/*/records.jsonl")):
        for record in map(json.loads, file.read_text().splitlines()):
            what = {"cell": record["label"], "status": record["status"]}
            if record["status"] != "ok":
                yield {"name": "decode", "value": None, "unit": "", "reason": record["reason"], **what}
                continue
            metrics = record["metrics"]
            for name in wanted:
                yield {"name": name, **{k: metrics[name][k] for k in ("value", "unit", "reason")}, **what}
            weights, rate = known.get("weight_bytes_read_per_token"), known.get("copy_rate")
            taken = metrics["latency_median_ms"]["value"]
            share = (
                (weights + metrics["kv_bytes"]["value"]) / rate / (taken / 1e3)
                if weights and rate and taken
                else None
            )
            theirs = known.get(f"library_dense_decode_ms {record['params']['length']}")
            if theirs and taken:
                yield {
                    "name": "times_the_library's_dense_decode",
                    "value": theirs / taken,
                    "unit": "",
                    **what,
                }
            yield {"name": "fraction_of_copy_bandwidth", "value": share, "unit": "",
                   "reason": "copy rate, weights or latency not measured", **what}  # fmt: skip


STEPS = {"rates": rates, "exact": exact, "ddpo": ddpo, "summary": summary}


def main() -> None:
    """One step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--out", type=Path, required=True, help="folder of the evidence")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--model", default="random:llama-2-7b")
    parser.add_argument("--pipeline", default="random:sd15")
    args = parser.parse_args()
    STEPS[args.step](args, Lines(args.out / f"headline-{args.step}.jsonl"))


if __name__ == "__main__":
    main()
