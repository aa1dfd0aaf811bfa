"""Experiment trackers (wandb, tensorboard, …) as accelerate starts them, without the rest of accelerate."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, filter_trackers

from ddposink.ddpo.config import DDPOConfig


class NoTracker(GeneralTracker):
    """Takes what a hook logs and keeps nothing."""

    name = "none"
    requires_logging_directory = False
    tracker = None

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Do nothing."""

    def log_images(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Do nothing."""


def start_trackers(config: DDPOConfig, cpu: bool) -> list[Any]:
    """The trackers ``config.log_with`` names, started; at least one, which may be a `NoTracker`.

    As for accelerate it may be a list, and hold trackers of the caller's own, which are started already.

    Warns if the tracker's package is not installed. Raises ValueError for one that accelerate does not know.
    """
    if not config.log_with:
        return [NoTracker()]
    state = PartialState(cpu=cpu)
    folder = config.project_kwargs.get("logging_dir") or config.logdir
    found = filter_trackers(config.log_with, folder)
    if not found:
        warnings.warn(
            f"log_with '{config.log_with}': the package is not installed, nothing is tracked", stacklevel=3
        )
    if not found or not state.is_main_process:
        return [NoTracker()]
    started = []
    for named in found:
        tracker = named if isinstance(named, GeneralTracker) else _started(str(named), folder, config)
        plain = {key: _plain(value) for key, value in config.to_dict().items()}
        tracker.store_init_configuration(plain)
        started.append(tracker)
    return started


def _started(name: str, folder: str, config: DDPOConfig) -> Any:
    kind = LOGGER_TYPE_TO_CLASS[name]
    where = (folder,) if kind.requires_logging_directory else ()
    tracker = kind(config.tracker_project_name, *where, **config.tracker_kwargs.get(name, {}))
    tracker.start()
    return tracker


def log(trackers: list[Any], values: dict[str, Any], step: int) -> None:
    """Log plain numbers: the TensorBoard tracker takes ``float`` and passes over numpy's without a word."""
    plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in values.items()}
    for tracker in trackers:
        tracker.log(plain, step=step)


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else str(value)
