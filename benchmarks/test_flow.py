"""One training step of a flow model, ours against the same step written plainly: samples per second, memory.

Run with ``python -m pytest benchmarks/test_flow.py -o addopts= --benchmark-only``. `emoji-sd3`, Flow-SDE at
ten denoising steps without guidance, LoRA of rank 16 on the attention projections, fp32, one thread. Plainly
means: every sample alone, a forward a denoising step, its text encoded by the pipeline. Plain code goes back
after each forward, or adds up its losses and goes back once: the same numbers, another memory.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from gpu_measures import brightness
from torch import Tensor

from ddposink.ddpo import DDPOConfig, make_engine
from ddposink.ddpo.table import flow_table, grid
from ddposink.models.diffusion import PipelineRef, load_pipeline

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPTS = ["red apple", "tiger face"]
TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]
SETTINGS: dict[str, tuple[int, int]] = {"8 samples": (8, 1), "32 samples": (32, 1), "2 groups of 8": (16, 8)}


def ours(samples: int, group: int, steps: int = 10) -> Any:
    """A training; each call of what is returned is one step."""
    config = DDPOConfig(
        sample_kernel="flow-sde", sample_eta=0.7, sample_num_steps=steps, sample_guidance_scale=1.0,
        sample_batch_size=samples, sample_num_batches_per_epoch=1, train_batch_size=samples,
        samples_per_prompt=group, share_initial_noise=group > 1, train_learning_rate=1e-3, lora_rank=16,
        lora_alpha=16, mixed_precision="no",
    )  # fmt: skip
    pipeline = load_pipeline(PipelineRef.parse("emoji-sd3"))
    logs = make_engine(config, pipeline, brightness, PROMPTS).run(1000)
    return lambda: next(logs)


def plain_once(samples: int, group: int, steps: int = 10) -> Any:
    """As `plain`, with one backward for the whole step."""
    return plain(samples, group, steps, once=True)


def plain(samples: int, group: int, steps: int = 10, once: bool = False) -> Any:
    """The same as `ours`, written plainly; a backward after each forward, or ``once``."""
    from peft import LoraConfig

    pipeline: Any = load_pipeline(PipelineRef.parse("emoji-sd3"))
    model = pipeline.transformer
    lora = LoraConfig(r=16, lora_alpha=16, init_lora_weights="gaussian", target_modules=TARGETS)
    model.add_adapter(lora)
    learnt = [p for name, p in model.named_parameters() if "lora_" in name]
    optimizer = torch.optim.AdamW(learnt, lr=1e-3, weight_decay=1e-4)
    table = flow_table("flow-sde", grid(steps), 0.7)

    def mean(i: int, x: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
        time = torch.tensor([1000 * float(table.times[i])])
        v = model(x, text, pooled, time, return_dict=False)[0]
        return float(table.a[i]) * x + float(table.b[i]) * v

    def log_prob(i: int, expected: Tensor, following: Tensor) -> Tensor:
        return -((following - expected) ** 2).mean() / (2 * float(table.s[i]) ** 2)

    def step() -> None:
        drawn, rewards = [], []
        start = torch.randn(samples // group, 8, 8, 8)
        for n in range(samples):
            with torch.no_grad():
                prompt = PROMPTS[n // group % len(PROMPTS)]
                text, _, pooled, _ = pipeline.encode_prompt(
                    prompt, None, None, do_classifier_free_guidance=False, max_sequence_length=0
                )
                path, before = [start[n // group : n // group + 1]], []
                for i in range(steps):
                    expected = mean(i, path[-1], text, pooled)
                    path.append(expected + float(table.s[i]) * torch.randn_like(expected))
                    before.append(log_prob(i, expected, path[-1]))
                picture = (pipeline.vae.decode(path[-1]).sample / 2 + 0.5).clamp(0, 1)
            drawn.append((path, text, pooled, before))
            rewards.append(float(picture.mean()))
        values = torch.tensor(rewards)
        advantages = (values - values.mean()) / (values.std() + 1e-8)
        losses = []
        for (path, text, pooled, before), advantage in zip(drawn, advantages, strict=True):
            for i in range(steps):
                ratio = (log_prob(i, mean(i, path[i], text, pooled), path[i + 1]) - before[i]).exp()
                clipped = ratio.clamp(1 - 1e-4, 1 + 1e-4)
                loss = torch.maximum(-advantage * ratio, -advantage * clipped)
                losses.append(loss / (samples * steps))
                if not once:
                    losses.pop().backward()
        if once:
            torch.stack(losses).sum().backward()
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_training_step_against_a_plain_one(duel: Any, setting: str) -> None:
    samples, group = SETTINGS[setting]
    ratio = duel(
        ours(samples, group), plain(samples, group), against="plain", work=samples, unit="samples/s", rounds=5
    )
    assert ratio > 2


# Not getrusage: its maximum outlives exec, and would be that of the parent.
MEASURED = """
import sys
from pathlib import Path
sys.path.insert(0, "benchmarks")
import torch, test_flow
torch.set_num_threads(1)
step = getattr(test_flow, sys.argv[1])(16, 1, int(sys.argv[2]))
step(), step()
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]) / 1024)
"""


def peak(kind: str, steps: int) -> float:
    """Peak resident memory (MiB) of a process that does two training steps of 16 samples."""
    command = [sys.executable, "-W", "ignore", "-c", MEASURED, kind, str(steps)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def test_memory_does_not_grow_with_the_steps_learnt_from(benchmark: Any) -> None:
    """Beyond the trajectories themselves: 2 KiB a latent."""
    few, plainly, once = peak("ours", 5), peak("plain", 5), peak("plain_once", 5)
    many = benchmark.pedantic(peak, args=("ours", 40), rounds=1)
    benchmark.extra_info |= {
        "mib_5_steps": few,
        "mib_40_steps": many,
        "plain_mib_5_steps": plainly,
        "plain_once_mib_5_steps": once,
    }
    print(
        f"\npeak memory {few:,.0f} MiB at 5 steps, {many:,.0f} at 40; plain at 5 {plainly:,.0f} with a "
        f"backward after each forward, {once:,.0f} with one"
    )
    assert many < 1.05 * few
    assert few < once
