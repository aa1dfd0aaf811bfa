"""Pictures of a fine-tuned pipeline for any prompt, the base model beside it, with the same noise.

The tuned weights are loaded the way any user of a stock pipeline would load them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from bench.errors import UserError, did_you_mean
from bench.results.record import Record, Status
from bench.results.store import PLAN, RECORDS, read_records
from bench.suite.request import find_run
from ddposink.ddpo.config import DDPOConfig
from ddposink.ddpo.lora import WEIGHTS, check_lora, freeze
from ddposink.ddpo.preflight.run import quiet
from ddposink.ddpo.window import DDIM
from ddposink.devices import check_device
from ddposink.errors import Unavailable
from ddposink.evaluation.scores import Evaluator
from ddposink.evaluation.sheet import save_sheet, to_image
from ddposink.models.denoiser import denoiser, denoiser_name
from ddposink.models.diffusion import PipelineRef, load_pipeline
from ddposink.workloads.ddpo_prepare import AUTOCAST

NAMES = ("base", "tuned")


@quiet()
def main(
    cell: str,
    prompts: Sequence[str],
    *,
    results: Path,
    out: Path,
    seeds: int = 4,
    denoising_steps: int | None = None,
    guidance: float | None = None,
    device: str = "auto",
) -> list[Path]:
    """Draw ``prompts`` with the base and the tuned model of ``cell`` (RUN/CELL).

    Writes ``out/PROMPT-SEED-base.png`` and ``…-tuned.png`` for every picture and ``out/sheet.webp``, whose
    columns are base and tuned in turn. Raises UserError for whatever is wrong with the request.
    """
    folder, record = find_cell(cell, results)
    weights = weights_of(folder, record)
    params = record.params
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        check_device(device)
        pipeline = load_pipeline(PipelineRef.parse(params["pipeline"]), device=device)
    except (Unavailable, ValueError) as error:
        raise UserError(f"pipeline {params['pipeline']}: {error}") from error
    config = _as_trained(params)
    half = AUTOCAST[config.precision_on(pipeline.device.type)]
    freeze(pipeline, half or torch.float32, config.use_lora)
    scale = params["sample_guidance_scale"] if guidance is None else guidance
    evaluator = Evaluator(
        pipeline,
        tuple(prompts),
        seeds,
        scale,
        params["sample_eta"],
        autocast=half,
        negatives=tuple(config.negatives),
        kernel=params.get("sample_kernel", DDIM),
        shift=params.get("sample_shift"),
        length=params.get("max_sequence_length"),
    )
    steps = denoising_steps or params["sample_num_steps"]
    base = evaluator.draw(steps)
    try:
        load_tuned(pipeline, weights)
    except ValueError as error:
        raise UserError(f"{cell}: {error}") from error
    tuned = evaluator.draw(steps)
    out.mkdir(parents=True, exist_ok=True)
    return list(_write(out, prompts, seeds, (base.images, tuned.images)))


def _as_trained(params: Mapping[str, Any]) -> DDPOConfig:
    """What the training says of how its pictures are drawn: negative prompts and precision."""
    names = ("negative_prompts", "split_negative_prompts", "mixed_precision", "use_lora")
    return DDPOConfig(**{name: params[name] for name in names if name in params})


def load_tuned(pipeline: Any, weights: Path) -> None:
    """Load what a training has exported: LoRA weights, or a whole network. ValueError: of another base."""
    part, network = denoiser_name(pipeline), denoiser(pipeline)
    if (weights / part).is_dir():
        whole = type(network).from_pretrained(weights / part, use_safetensors=True)
        setattr(pipeline, part, whole.to(pipeline.device, network.dtype))
    else:
        check_lora(pipeline, weights / WEIGHTS)
        pipeline.load_lora_weights(weights, weight_name=WEIGHTS)


def find_cell(text: str, results: Path) -> tuple[Path, Record]:
    """Run folder and record of RUN/CELL, where CELL is an id, a label or a pattern of labels."""
    folder, wanted = _run_and_cell(text, results)
    planned = planned_cells(folder)
    read = read_records(folder / RECORDS)[0]
    records = {r.cell: r for r in read if planned is None or r.cell in planned}
    found = [r for r in records.values() if wanted in (r.cell, r.cell[:8], r.label)]
    found = found or [r for r in records.values() if fnmatchcase(r.label.casefold(), wanted.casefold())]
    if len(found) == 1:
        return folder, found[0]
    labels = [record.label for record in found or records.values()]
    if found:
        named = [f"{record.label} (seed {record.seed}, id {record.cell[:8]})" for record in found[:6]]
        what = f"{wanted!r} means {len(found)} cells"
        raise UserError(f"{what}: {'; '.join(named)}", hint="name one, or its id")
    raise UserError(f"no cell {wanted!r} in {folder}", hint=did_you_mean(wanted, labels))


def _run_and_cell(text: str, results: Path) -> tuple[Path, str]:
    """Both may hold slashes (a path; the label of a reward server): the longest beginning that is a run."""
    places = [i for i, letter in enumerate(text) if letter == "/" and i]
    if not places:
        raise UserError(f"{text!r} is not of the form RUN/CELL", hint="for example 'ddpo/*brisque*50'")
    missing: UserError | None = None
    for place in reversed(places):
        try:
            return find_run(text[:place], results), text[place + 1 :]
        except UserError as error:
            missing = error
    assert missing is not None
    raise missing


def planned_cells(folder: Path) -> set[str] | None:
    """Cells that the suite still has; None where the run has kept no plan."""
    try:
        plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        return {cell["id"] for work in plan["passes"] for cell in work["cells"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def weights_of(folder: Path, record: Record) -> Path:
    """Where the tuned weights of a cell lie. Raises UserError where there are none."""
    steps = record.params.get("steps")
    if record.status is not Status.OK:
        raise UserError(f"{record.label} was not measured ({record.status}): it has no weights")
    if not steps:
        raise UserError(f"{record.label} is the base model: name a cell with more than 0 steps")
    for artifact in record.artifacts:
        parts = Path(artifact.path).parts
        if f"weights-{steps}" in parts:
            place = folder.joinpath(*parts[: parts.index(f"weights-{steps}") + 1])
            if place.resolve().is_relative_to(folder.resolve()) and place.is_dir():
                return place
    raise UserError(f"{record.label} has kept no weights in {folder}")


def _write(
    out: Path, prompts: Sequence[str], seeds: int, pictures: tuple[torch.Tensor, torch.Tensor]
) -> Iterator[Path]:
    columns, labels = [], []
    names = _file_names(prompts)
    for number, prompt in enumerate(prompts):
        for name, images in zip(NAMES, pictures, strict=True):
            own = [images[number * seeds + seed] for seed in range(seeds)]
            columns.append(own)
            labels.append(f"{name}: {prompt}")
            for seed, picture in enumerate(own):
                path = out / f"{names[number]}-{seed}-{name}.png"
                to_image(picture).save(path)
                yield path
    yield save_sheet(columns, labels, out / "sheet.webp")


def _file_names(prompts: Sequence[str]) -> list[str]:
    """One for each; prompts of one name are told apart by their place, counted from 1."""
    names = [_file_name(prompt) for prompt in prompts]
    return [f"{name}-prompt{i}" if names.count(name) > 1 else name for i, name in enumerate(names, 1)]


def _file_name(prompt: str) -> str:
    kept = "".join(c if c.isalnum() and c.isascii() else "-" for c in prompt.lower())
    return "-".join(filter(None, kept.split("-")))[:60] or "prompt"
