"""TRL's names for what is here: a script written for TRL's DDPO changes its import and nothing else.

    from ddposink.ddpo.trl_names import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline

The signatures are those of TRL 0.23.1, as the Hugging Face blog post on DDPO uses them. Which engine trains
is ``DDPOConfig.engine``; trackers, checkpoints and the image hook are served here for either.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddposink import hub
from ddposink.ddpo import config as configuration
from ddposink.ddpo import lora
from ddposink.ddpo.engine import StepLog, make_engine
from ddposink.ddpo.trackers import log, start_trackers
from ddposink.errors import Unavailable
from ddposink.pipelines import PipelineRef, load_pipeline


@dataclass
class DDPOConfig(configuration.DDPOConfig):
    """`ddposink.ddpo.DDPOConfig`, but as in TRL it is the pipeline that says whether LoRA is used.

    So scripts may have a command-line argument ``--use_lora`` of their own beside this one's.
    """

    use_lora: bool = field(default=True, init=False)


class DefaultDDPOStableDiffusionPipeline:
    """A Stable Diffusion pipeline, with its LoRA weights if the folder has some, which are then learnt on.

    ``pretrained_model_name`` is a folder, a repository of the hub, or what `PipelineRef.parse` knows. A
    branch (``pretrained_model_revision``) is looked up once and pinned to the commit it points to. Raises
    ValueError for what is no such pipeline, Unavailable for what cannot be had here.
    """

    def __init__(
        self, pretrained_model_name: str, *, pretrained_model_revision: str = "main", use_lora: bool = True
    ) -> None:
        name, self.pretrained_revision = str(pretrained_model_name), pretrained_model_revision
        if not Path(name).is_dir() and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            self.pretrained_revision = _commit(name, pretrained_model_revision)
            name = f"{name}@{self.pretrained_revision}"
        ref = PipelineRef.parse(name)
        self.pretrained_model = pretrained_model_name
        self.sd_pipeline: Any = load_pipeline(ref)
        self.use_lora = use_lora
        if ref.folder is not None and (ref.folder / lora.WEIGHTS).is_file():
            self.sd_pipeline.load_lora_weights(
                ref.folder, weight_name=lora.WEIGHTS, adapter_name=lora.ADAPTER, local_files_only=True
            )
            self.use_lora = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Draw pictures, as the pipeline itself does: ``.images`` of the answer holds them."""
        return self.sd_pipeline(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "sd_pipeline":  # not loaded yet
            raise AttributeError(name)
        return getattr(self.sd_pipeline, name)  # unet, vae, text_encoder, tokenizer, scheduler, to, …

    def save_pretrained(self, output_dir: str | Path) -> None:
        """Write the whole pipeline, LoRA weights beside the base's; the folder loads again."""
        save_pipeline(self.sd_pipeline, self.use_lora, Path(output_dir))


class DDPOTrainer:
    """TRL's trainer on either engine of `ddposink.ddpo.make_engine`.

    ``reward_function(images, prompts, prompt_metadata)`` is handed pictures (B, 3, H, W) in [0, 1] and two
    tuples; it answers with rewards (B,), or with a pair of these and anything. ``prompt_function()`` answers
    (prompt, metadata). ``image_samples_hook(batches, global_step, tracker)`` gets for each sampled batch
    [images, prompts, prompt_metadata, rewards, reward_metadata], after each epoch. The configuration is
    copied: what is assigned to it later changes nothing. The pipeline is moved to the GPU if there is one.
    """

    def __init__(
        self,
        config: Any,
        reward_function: Callable[..., Any],
        prompt_function: Callable[[], tuple[str, Any]],
        sd_pipeline: Any,
        image_samples_hook: Callable[[Any, Any, Any], Any] | None = None,
    ) -> None:
        self.config = _own(config, sd_pipeline)
        self.reward_fn, self.prompt_fn = reward_function, prompt_function
        self.image_samples_callback, self.sd_pipeline = image_samples_hook, sd_pipeline
        self._drawn: deque[Any] = deque()  # metadata of the prompts whose pictures are not finished
        self._batches: list[list[Any]] = []
        pipeline = getattr(sd_pipeline, "sd_pipeline", sd_pipeline)
        device = _device(self.config)
        pipeline.to(device)
        # The engine's own trackers, threads and checkpoints would be second ones.
        quiet = replace(self.config, log_with=None, async_reward_computation=False, resume_from="")
        self.engine = make_engine(quiet, pipeline, self._reward, self._prompt)
        if self.config.resume_from:
            self.engine.load(_newest(Path(self.config.resume_from).expanduser()))
        self.trackers = start_trackers(self.config, cpu=device == "cpu")

    def train(self, epochs: int | None = None) -> None:
        """Train to epoch ``epochs`` (default: ``num_epochs``), with checkpoints every ``save_freq``."""
        until = self.config.num_epochs if epochs is None else epochs
        while self.engine.step < until:
            self._drawn.clear()
            self._batches.clear()
            (finished,) = self.engine.run(self.engine.step + 1)
            self._tell(finished)
            epoch = finished.step - 1
            if finished.step == until or (epoch and epoch % self.config.save_freq == 0):
                self._save_epoch(epoch)

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write what `DefaultDDPOStableDiffusionPipeline` loads: the pipeline, LoRA weights beside it."""
        if _first():
            save_pipeline(self.engine.pipeline, self.config.use_lora, Path(save_directory))

    def push_to_hub(self, repo_id: str = "ORG/NAME", **_: Any) -> None:
        """Save to ``logdir``/pretrained, then raise Unavailable: nothing is uploaded from here."""
        folder = Path(self.config.logdir) / "pretrained"
        self.save_pretrained(folder)
        raise Unavailable(f"nothing is uploaded from here; saved instead: hf upload {repo_id} {folder}")

    def _prompt(self) -> str:
        answer = self.prompt_fn()
        if not (isinstance(answer, tuple | list) and len(answer) == 2):
            raise ValueError(f"prompt_function must answer (prompt, metadata), not {answer!r}")
        self._drawn.append(answer[1])
        return answer[0]

    def _reward(self, images: Tensor, prompts: list[str]) -> Tensor:
        metadata = tuple(self._drawn.popleft() for _ in prompts)
        answer = self.reward_fn(images, tuple(prompts), metadata)
        scores, about = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, {})
        scores = torch.as_tensor(scores, device=images.device)
        if self.image_samples_callback is not None:
            self._batches.append([images, tuple(prompts), metadata, scores, about])
        return scores

    def _tell(self, finished: StepLog) -> None:
        """Hook and trackers; steps are counted in updates, as TRL does."""
        epoch = finished.step - 1
        updates = epoch * self.config.updates_per_epoch
        if self.image_samples_callback is not None:
            self.image_samples_callback(self._batches, updates, self.trackers[0])
        values = {"epoch": epoch, "reward_mean": finished.reward_mean, "reward_std": finished.reward_std}
        values |= {"loss": finished.loss, "approx_kl": finished.approx_kl}
        log(self.trackers, values | {"clipfrac": finished.clip_fraction}, updates)

    def _save_epoch(self, epoch: int) -> None:
        project = self.config.project_kwargs
        folder = Path(project.get("project_dir") or self.config.logdir) / "checkpoints"
        self.engine.save(folder / f"checkpoint_{epoch}")
        keep = project.get("total_limit") or self.config.num_checkpoint_limit
        if _first():
            for old in sorted(folder.glob("checkpoint_*"), key=_epoch)[:-keep]:
                shutil.rmtree(old)


def save_pipeline(pipeline: Any, use_lora: bool, folder: Path) -> None:
    """Write a stock pipeline to ``folder``; LoRA layers go to a file beside it and not into the UNet."""
    if not use_lora or lora.ADAPTER not in getattr(pipeline.unet, "peft_config", {}):
        pipeline.save_pretrained(folder, safe_serialization=True)
        return
    parts = pipeline.components | {"unet": lora.without_lora(pipeline.unet)}
    type(pipeline)(**parts, requires_safety_checker=False).save_pretrained(folder, safe_serialization=True)
    lora.export_layers(pipeline, folder)


def _own(config: Any, sd_pipeline: Any) -> configuration.DDPOConfig:
    """A checked copy of ``config``, which may be TRL's own. The pipeline knows about LoRA, if it says so."""
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    told = isinstance(config, configuration.DDPOConfig) and not isinstance(config, DDPOConfig)
    use_lora = getattr(sd_pipeline, "use_lora", values.get("use_lora", True))
    if told and use_lora and not values["use_lora"]:
        raise ValueError(
            "the configuration has use_lora False, the pipeline True: give the pipeline False too"
        )
    return configuration.DDPOConfig.from_dict(values | {"use_lora": use_lora})


def _device(config: configuration.DDPOConfig) -> str:
    if config.accelerator_kwargs.get("cpu") or not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


def _first() -> bool:
    """Whether this process writes files."""
    return os.environ.get("RANK", "0") == "0"


def _newest(folder: Path) -> Path:
    """``folder`` itself if it is a checkpoint, else the one of the latest epoch in it. ValueError if none."""
    if folder.name.startswith("checkpoint_"):
        return folder
    found = sorted(folder.glob("checkpoint_*"), key=_epoch)
    if not found:
        raise ValueError(f"resume_from: there is no checkpoint_<epoch> in '{folder}'")
    return found[-1]


def _epoch(folder: Path) -> int:
    number = folder.name.removeprefix("checkpoint_")
    return int(number) if number.isdigit() else -1


def _commit(name: str, revision: str) -> str:
    """The 40 hex digits of a hub repository's ``revision``. Raises Unavailable in one line."""
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    if why := hub.unreachable():
        raise Unavailable(
            f"which commit of {name} '{revision}' is cannot be asked, {why}: give a folder, or a commit's 40 "
            f"hex digits as pretrained_model_revision"
        )
    from huggingface_hub import HfApi

    try:
        return HfApi().model_info(name, revision=revision).sha or ""
    except Exception as error:
        raise Unavailable(f"{name}@{revision} cannot be found: {hub.one_line(error)}") from error
