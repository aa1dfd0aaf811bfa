"""What TRL's trainer writes: checkpoints to go on from, and models to draw with."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from ddposink.ddpo import config as configuration
from ddposink.ddpo.names.card import model_card
from ddposink.ddpo.names.pipeline import save_pipeline
from ddposink.errors import Unavailable


class Saving:
    """To be mixed into a trainer. Checkpoints are the engine's, and beside it what TRL's hooks write."""

    _tag_names = ("ddposink", "ddpo")
    _card_folder: Path | None = None
    _saved_step = 0
    _inside: bool  # whether an epoch is being trained
    config: Any
    engine: Any
    sd_pipeline: Any
    first_epoch: int

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        config: Any = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        **push_to_hub_kwargs: Any,
    ) -> None:
        """Write what `DefaultDDPOStableDiffusionPipeline` loads, and a card. Some arguments are only TRL's.

        With ``push_to_hub`` raises Unavailable afterwards: see `push_to_hub`.
        """
        if _first():
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            self._save_pretrained(Path(save_directory))
        if push_to_hub:
            self.push_to_hub(repo_id or Path(save_directory).name, **push_to_hub_kwargs)

    def _save_pretrained(self, save_directory: Path) -> None:
        with self.engine.evaluated():  # the average of the weights, with ema_decay
            if self._pipeline_overrides("save_pretrained"):
                self.sd_pipeline.save_pretrained(save_directory)
            else:  # TRL's own writes a UNet that does not load again
                save_pipeline(self.engine.pipeline, self.engine.config.use_lora, save_directory)
        self._card_folder = Path(save_directory)
        self.create_model_card()

    def push_to_hub(self, repo_id: str = "ORG/NAME", **_: Any) -> None:
        """Save to ``logdir``/pretrained, then raise Unavailable: nothing is uploaded from here."""
        folder = Path(self.config.logdir) / "pretrained"
        self.save_pretrained(folder)
        raise Unavailable(f"nothing is uploaded from here; saved instead: hf upload {repo_id} {folder}")

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
    ) -> None:
        """Write README.md to the folder saved to last, or to ``logdir``."""
        folder = self._card_folder or Path(self.config.logdir)
        folder.mkdir(parents=True, exist_ok=True)
        base = str(getattr(self.sd_pipeline, "pretrained_model", ""))
        of_hub = base.count("/") == 1 and not Path(base).exists()
        given = [tags] if isinstance(tags, str) else list(tags or ())
        name = model_name or folder.resolve().name
        card = model_card(name, base if of_hub else None, dataset_name, {*given, *self._tag_names})
        (folder / "README.md").write_text(card, encoding="utf-8")

    def _save_model_hook(self, models: list[Any], weights: list[Any], output_dir: str) -> None:
        self.sd_pipeline.save_checkpoint(models, weights, output_dir)
        weights.pop()  # as in TRL: nobody is to save them again

    def _load_model_hook(self, models: list[Any], input_dir: str) -> None:
        self.sd_pipeline.load_checkpoint(models, input_dir)
        models.pop()

    def _resume(self, folder: str) -> None:
        self._load_from(_newest(Path(folder).expanduser()))
        self.first_epoch = self.engine.step

    def _load_from(self, folder: Any) -> None:
        self.engine.load(Path(folder))
        if self._overridden("_load_model_hook") or self._pipeline_overrides("load_checkpoint"):
            self._load_model_hook([self.engine.pipeline.unet], str(folder))

    def _finish(self, epoch: int, last: bool) -> None:
        """Save after ``epoch`` if it is due."""
        config = self._checked()
        if not self._inside and (last or (epoch and epoch % config.save_freq == 0)):
            self._save_to(None)

    def _save_to(self, folder: Any) -> None:
        """Write a checkpoint, by default ``checkpoint_<epoch>``, of which the oldest are removed."""
        step, config = self.engine.step, self._checked()
        if self._inside:
            return  # a script's own step is not over, and uses the random state; `train` saves after it
        where = Path(config.project_kwargs.get("project_dir") or config.logdir) / "checkpoints"
        usual = where / f"checkpoint_{max(0, step - 1)}"
        if folder is None and self._saved_step == step:
            return
        self._write(Path(folder or usual))
        if folder is None:
            self._saved_step = step
            keep = config.project_kwargs.get("total_limit") or config.num_checkpoint_limit
            for old in sorted(where.glob("checkpoint_*"), key=_epoch)[:-keep] if _first() else ():
                shutil.rmtree(old)

    def _write(self, folder: Path) -> None:
        self.engine.save(folder)
        if _first() and self.engine.config.engine == "native":  # TRL's engine calls its own hook
            unet = self.engine.pipeline.unet
            self._save_model_hook([unet], [dict(unet.named_parameters())], str(folder))

    def _checked(self) -> configuration.DDPOConfig:
        raise NotImplementedError

    def _overridden(self, *names: str) -> bool:
        raise NotImplementedError

    def _pipeline_overrides(self, *names: str) -> bool:
        raise NotImplementedError


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
