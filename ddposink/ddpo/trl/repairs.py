"""What TRL 0.23.1's DDPO needs to run with today's libraries: one small repair for each thing broken.

TRL dropped DDPO after 0.23.1, so nobody will mend it there. A repair is a subclass that overrides the
method at fault; `repaired` stacks them on TRL's own trainer and pipeline. Nothing in the installed
package changes, and each repair can be left out, so that a test can show what it is for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any

from ddposink.errors import Unavailable, suggest

TRL_VERSION = "0.23.1"  # the last release with DDPOTrainer; what the repairs were written against
OVERRIDES = {  # where overrides are, in full: the version of a workload follows names of modules
    "trainer": "ddposink.ddpo.trl.repairs_trainer",
    "pipeline": "ddposink.ddpo.trl.repairs_pipeline",
    "scorer": "ddposink.ddpo.trl.repairs_scorer",
}


@dataclass(frozen=True)
class Repair:
    """``breakage`` is what an unrepaired TRL does; the classes are written ``module:attribute``."""

    name: str
    breakage: str
    trainer: str | None = None
    pipeline: str | None = None
    scorer: str | None = None


REPAIRS: dict[str, Repair] = {
    repair.name: repair
    for repair in (
        Repair(
            "process-state",
            "starting fails unless accelerate's PartialState happens to exist",
            trainer="trainer:StartsAccelerate",
            pipeline="pipeline:PipelineStartsAccelerate",
        ),
        Repair(
            "gradient-sync",
            "several processes never synchronise gradients: the forward goes round the DDP wrapper",
            trainer="trainer:ForwardsThroughWrapper",
            pipeline="pipeline:PipelineForwardsThroughWrapper",
        ),
        Repair(
            "lora-resume",
            "a resumed LoRA is loaded beside the one that the optimizer holds, and learning stops",
            pipeline="pipeline:ResumesLora",
        ),
        Repair(
            "lora-folder",
            "a folder's LoRA is ignored: a fresh adapter is put in front of it",
            pipeline="pipeline:TrainsFolderLora",
        ),
        Repair(
            "save-pretrained",
            "a UNet with LoRA is saved under wrapped names, and reloading fills it with random numbers",
            pipeline="pipeline:SavesPlainUnet",
        ),
        Repair(
            "model-card",
            "save_pretrained, create_model_card and save_model raise AttributeError",
            trainer="trainer:SavesModel",
        ),
        Repair(
            "async-rewards",
            "async_reward_computation raises AttributeError",
            trainer="trainer:ComputesRewardsInThreads",
        ),
        Repair(
            "plain-statistics",
            "TensorBoard drops the mean and the deviation of the reward, which are numpy numbers",
            trainer="trainer:LogsPlainNumbers",
        ),
        Repair(
            "image-features",
            "the aesthetic scorer divides an output object of transformers 5 by its norm",
            scorer="scorer:AestheticScorer",
        ),
        Repair(
            "fp16-on-cpu",
            "the default fp16 on a CPU is refused or, with newer accelerate, silently trains in halves",
            trainer="trainer:FullPrecisionOnCpu",
        ),
        Repair(
            "final-save",
            "the last epoch is not saved, without project_kwargs saving fails, and folders are misnumbered",
            trainer="trainer:SavesEpochs",
        ),
        Repair(
            "negative-prompts",
            "negative_prompts is documented as comma-separated but never split",
            trainer="trainer:SplitsNegativePrompts",
        ),
        Repair(
            "advantages",
            "a reward that is the same for all samples trains at the full rate: what float32 rounds off its "
            "mean becomes the advantage; mended by the engine",
        ),
        Repair(
            "image-hook",
            "image_samples_hook without log_with indexes an empty list of trackers",
            trainer="trainer:CallsHookWithoutTracker",
        ),
    )
}


@dataclass(frozen=True)
class TrlClasses:
    """TRL's classes under the repairs asked for."""

    trainer: Any  # a subclass of trl.DDPOTrainer
    pipeline: Any  # a subclass of trl.DefaultDDPOStableDiffusionPipeline
    config: Any  # trl.DDPOConfig itself
    scorer: Any  # the aesthetic scorer mended; None if left out


def repaired(disabled: Iterable[str] = ()) -> TrlClasses:
    """TRL's trainer and pipeline with every repair but the ``disabled``.

    Raises ValueError for a repair that does not exist, Unavailable if TRL 0.23.1 is not installed.
    """
    left_out = set(disabled)
    for name in left_out - set(REPAIRS):
        raise ValueError(f"TRL has no repair '{name}'{suggest(name, REPAIRS)}; known: {', '.join(REPAIRS)}")
    trl = require_trl()
    applied = [repair for name, repair in REPAIRS.items() if name not in left_out]
    scorers = [_override(repair.scorer) for repair in applied if repair.scorer]
    return TrlClasses(
        trainer=_stack(trl.DDPOTrainer, [r.trainer for r in applied]),
        pipeline=_stack(trl.DefaultDDPOStableDiffusionPipeline, [r.pipeline for r in applied]),
        config=trl.DDPOConfig,
        scorer=scorers[0] if scorers else None,
    )


def require_trl() -> Any:
    """The module ``trl``. Raises Unavailable, naming the version that is needed, if it is another one."""
    needed = f"the reference engine needs trl=={TRL_VERSION}, the last release with DDPO"
    try:
        version = metadata.version("trl")
    except metadata.PackageNotFoundError:
        raise Unavailable(f"{needed}; it is not installed: pip install 'ddposink[ddpo]'") from None
    if version != TRL_VERSION:
        raise Unavailable(f"{needed}; {version} is installed: pip install trl=={TRL_VERSION}")
    try:
        trl = import_module("trl")
        _ = trl.DDPOTrainer, trl.DefaultDDPOStableDiffusionPipeline  # imported when first asked for
    except (ImportError, RuntimeError) as error:  # one of the libraries that TRL itself needs
        raise Unavailable(f"trl {version} cannot be imported: {error}") from error
    return trl


def _stack(base: type, targets: list[str | None]) -> type:
    """One class of ``base`` with all overrides; each calls on to the next through ``super()``."""
    overrides = [_override(target) for target in targets if target]
    return type(f"Repaired{base.__name__}", (*overrides, base), {"__doc__": base.__doc__})


def _override(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(import_module(OVERRIDES[module]), attribute)
