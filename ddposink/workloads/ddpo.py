"""The `ddpo` workload, declared: a diffusion pipeline fine-tuned on a reward, scored on all of them.

Everything here is data: which metrics a cell yields, which pictures are drawn; what it may say is in
`ddposink.workloads.ddpo_params`. No torch; what runs in the child is `ddposink.workloads.ddpo_run`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.version import code_version, source_hash
from bench.workload import Context, Cost, Pass, Scalar, Skip
from ddposink import plugins
from ddposink.ddpo import rules
from ddposink.ddpo.costs import forwards_of_a_step, samples_measured
from ddposink.errors import Unavailable
from ddposink.models.contrastive import encoder_sha256
from ddposink.models.diffusion import PipelineRef, embeds_guidance
from ddposink.prompts import evaluation_prompts, load_prompts
from ddposink.rewards.weighted import HARDLY, SPREADS, in_words, shares, weighted
from ddposink.workloads.ddpo_params import DdpoParams, reward_ref
from ddposink.workloads.ddpo_tables import METRICS, VIEWS

TABLES = "ddposink.workloads.ddpo_tables"  # how metrics are shown: no number changes with it
PAIRS = "pairs.sha256"  # of an identity
HAVE_NO_PART = "have no part in it: cells that differ in nothing else are one training under several names"
NEEDED = ("diffusers", "peft", "trl")


def _shared(params: Any) -> list[str]:
    """Prompts of the evaluation that are trained on, in their order."""
    trained = set(params.trained_prompts)
    return [prompt for prompt in evaluation_prompts(params.eval_prompts).prompts if prompt in trained]


def _trained_on(params: Any) -> str:
    """What the prompts trained on are called."""
    return Path(params.pairs.file).name if params.pairs else load_prompts(params.prompts).name


def _shares(argument: str, pipeline: str) -> str:
    """What the parts of a weighted sum will weigh in training, as far as it is known before the run."""
    spread = {ref.name: factor * SPREADS.get(ref.name, math.nan) for factor, ref in weighted.parts(argument)}
    if pipeline != "emoji-sd" or any(map(math.isnan, spread.values())):
        return f"weighted:{argument}: what each part makes of its variance is measured in the run"
    parts = shares({name: sd**2 for name, sd in spread.items()})
    hardly = "; a part below 1 % has hardly a say" if min(parts.values()) < HARDLY else ""
    return f"weighted:{argument}: of its variance about {in_words(parts)}{hardly}"


def _measured(params: Any) -> str:
    """What it takes to measure KL from the base, of all that a training step takes."""
    config, embeds = params.config(seed=0), embeds_guidance(PipelineRef.parse(params.pipeline))
    whole = forwards_of_a_step(config, embeds)
    more = whole - forwards_of_a_step(replace(config, measure_kl=0.0), embeds)
    return (
        f"measure_kl {params.measure_kl:g}: the base model is asked on {samples_measured(config)} of "
        f"{config.samples_per_epoch} samples of a training step, {more:,} of {whole:,} forwards"
    )


def _options(params: Any) -> list[str]:
    """What a label says of the options of `ddposink.ddpo.grpo` that are used."""
    high, by = params.train_clip_range_high, params.advantage_deviation
    said = {
        f"kl {params.kl_beta:g}": params.kl_beta,
        f"clip to +{high or 0:g}": high is not None,
        "ratio norm": params.ratio_norm,
        {"batch": "batch deviation", "none": "no deviation"}.get(by, ""): by != "own",
        f"pairs {Path(params.dpo_pairs or '').name}": params.dpo_pairs is not None,
        params.combine_rewards: params.combine_rewards != "sum",
        f"ema {params.ema_decay:g}": params.ema_decay,
    }
    return [words for words, used in said.items() if used]


def _short(pipeline: str) -> str:
    """A pipeline's name for tables: of a path its last part."""
    ref = PipelineRef.parse(pipeline)
    return Path(ref.name).name if ref.kind == "path" else ref.name


class DdpoWorkload:
    """See the module docstring; implements `bench.workload.Workload`."""

    name = "ddpo"
    Params = DdpoParams
    metrics = METRICS
    views = VIEWS
    prefix_axis = "steps"
    replicate, sample = "training", "prompt"
    preload = ("ddposink.workloads.ddpo_run",)

    def version(self) -> str:
        """Hash of the code that produces the numbers, a subclass's own included."""
        return code_version(__name__, type(self).__module__, shown=[TABLES], metrics=self.metrics)

    def label(self, params: Any) -> str:
        """``emoji-sd · brisque · 25``; what differs from the defaults of an engine is named."""
        unusual = [params.engine] if params.engine != "native" else []
        unusual += [params.algorithm] if params.algorithm != rules.DDPO else []
        unusual += [params.loss] if params.loss != "is" else []
        if params.sample_kernel != "ddim":
            window = "" if params.sample_sde_window is None else f" in {params.sample_sde_window}"
            unusual.append(f"{params.sample_kernel}{window}")
        unusual += _options(params)
        return " · ".join([_short(params.pipeline), params.reward, *unusual, f"{params.steps:,}"])

    def columns(self, params: Any) -> dict[str, Scalar]:
        """Everything a table or an exclusion may ask for."""
        config = params.config(seed=0)
        return {
            "pipeline": _short(params.pipeline),
            "reward": params.reward,
            "steps": params.steps,
            "engine": params.engine,
            "algorithm": params.algorithm,
            "loss": params.loss,
            "prompts": _trained_on(params) if params.pairs else params.prompts,
            "eval_prompts": params.eval_prompts,
            "prompts_shared": len(_shared(params)),
            "learning_rate": params.train_learning_rate,
            "denoising_steps": params.sample_num_steps,
            "guidance": params.sample_guidance_scale,
            "eta": params.sample_eta,
            "kernel": params.sample_kernel,
            "sde_window": params.sample_sde_window,
            "window_moves": params.sample_sde_window_moves,
            "shift": params.sample_shift,
            "learnt_denoising_steps": config.num_train_timesteps,
            "samples_per_step": 0 if params.pairs else config.samples_per_epoch,
            "pairs": len(params.pairs) if params.pairs else None,
            "pairs_per_step": config.samples_per_epoch if params.pairs else None,
            "updates_per_step": config.updates_per_epoch,
            "clip_range": params.train_clip_range,
            "clip_range_high": params.train_clip_range_high,
            "ratio_norm": params.ratio_norm,
            "kl_beta": params.kl_beta,
            "measure_kl": params.measure_kl,
            "advantage_deviation": params.advantage_deviation,
            "combine_rewards": params.combine_rewards,
            "ema_decay": params.ema_decay,
            "tuned": f"LoRA r={params.lora_rank}" if params.use_lora else "full",
            "precision": params.mixed_precision,
            "device": params.device,
        }

    def identity(self, params: Any) -> dict[str, str]:
        """Revision or sha256 of pipeline, rewards, encoder and prompts; raises Skip if one is unknown."""
        try:
            found = {f"pipeline.{k}": v for k, v in PipelineRef.parse(params.pipeline).identity().items()}
            for text in dict.fromkeys((params.reward, *params.evaluate)):
                ref = reward_ref(text)
                found |= {f"reward.{text}.{k}": v for k, v in ref.identity().items()}
                if module := plugins.module_of(plugins.REWARDS, ref.kind):
                    found[f"reward.{text}.source"] = source_hash(module)
            found["encoder.sha256"] = encoder_sha256()  # tells the diversity of every cell's pictures
        except Unavailable as error:
            raise Skip(str(error)) from error
        if params.pairs:
            found[PAIRS] = params.pairs.sha256
        else:
            found["prompts.sha256"] = load_prompts(params.prompts).sha256
        found["eval_prompts.sha256"] = evaluation_prompts(params.eval_prompts).sha256
        return found

    def cost(self, params: Any) -> Cost:
        """UNet forwards of one sample, a backward counted as two: sampling, learning and evaluation."""
        config, embeds = params.config(seed=0), embeds_guidance(PipelineRef.parse(params.pipeline))
        per_step = forwards_of_a_step(config, embeds)
        rows = 2 if config.guided and not embeds else 1
        pictures = len(evaluation_prompts(params.eval_prompts).prompts) * params.eval_seeds
        evaluation = pictures * rows * config.sample_num_steps
        return Cost(params.steps * per_step + evaluation, "UNet forwards")

    def notes(self, params: Any) -> list[str]:
        """Whether evaluation prompts are trained on, and how many are left out because they repeat."""
        found = []
        if params.pairs:
            found.append(
                f"dpo learns from {params.pairs}; no sample is drawn and no reward asked while it trains: "
                f"'{params.reward}' only judges, and prompts '{params.prompts}' are not trained on"
            )
        given, once = load_prompts(params.eval_prompts), evaluation_prompts(params.eval_prompts)
        if shared := _shared(params):
            found.append(
                f"not held out: {len(shared)} of {len(once.prompts)} evaluation prompts ({once.name}) "
                f"are also trained on ({_trained_on(params)}), for example {shared[0]!r}"
            )
        if (ref := reward_ref(params.reward)).kind == "weighted":
            found.append(_shares(ref.argument, params.pipeline))
        if idle := rules.idle(params.config(seed=0)):
            found.append(f"algorithm '{params.algorithm}': {', '.join(idle)} {HAVE_NO_PART}")
        if params.measure_kl and not params.kl_beta:
            found.append(_measured(params))
        if left_out := len(given.prompts) - len(once.prompts):
            found.append(f"{once.name}: every prompt is evaluated once: {left_out} repeated left out")
        return found

    def published(self) -> list[dict[str, Scalar]]:
        """None that could stand beside: no paper reports these rewards on this pipeline."""
        return []

    def run(self, work: Pass, ctx: Context) -> None:
        """Train once, evaluate at every step count of the pass; child process only."""
        absent = [name for name in NEEDED if find_spec(name) is None]
        if absent:
            raise Skip(f"{', '.join(absent)} not installed: pip install 'ddposink[ddpo]'")
        from ddposink.workloads.ddpo_run import run

        cells = [(cell, DdpoParams(**cell.params)) for cell in work.cells]
        run(cells, ctx, (work.identity or {}).get(PAIRS), work.stops)
