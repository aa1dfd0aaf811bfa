"""Train a small Llama from scratch, with or without a dedicated sink token: where do sinks come from?

StreamingLLM (Xiao et al. 2023, section 3.3) pre-trains with one learnable token in front of every sample:
that token then is the only sink needed. This script does the same at a size a CPU can train, on nine of the
embedded novels with one held out. The sink token is the tokenizer's BOS token, so a suite says ``bos: true``.
While it trains it looks for sinks (see `ddposink.embedded.sink_training`); a run that was cut off goes on.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import Progress, TextColumn
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ddposink.assets.catalogue import write_atomic
from ddposink.corpora import CorpusRef, load_stream, read_books
from ddposink.embedded.sink_training import (
    SINKS_KEPT,
    Pace,
    SinkRecipe,
    SinkState,
    load_checkpoint,
    new_state,
    train,
)
from ddposink.errors import Unavailable
from ddposink.models.packed import pack_bytes, packed_name, unpack_bytes

HELD_OUT = "war-of-the-worlds"
SINK_TOKEN = "<|sink|>"


def make_tokenizer(texts: list[str], recipe: SinkRecipe) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on ``texts``. Both models have the same ids; only one has a BOS token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[SINK_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator((line for text in texts for line in text.splitlines(keepends=True)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=SINK_TOKEN if recipe.sink_token else None
    )


def read_data(
    recipe: SinkRecipe, out: Path, corpus: str, held_out: str, tokens: int
) -> tuple[Any, Tensor, Tensor]:
    """Tokenizer, training ids (N,) and held-out ids (tokens,), BOS first where the recipe has one."""
    apart = CorpusRef.parse(held_out)
    books = read_books(CorpusRef.parse(corpus))
    texts = [book.whole() for book in books if book.name != Path(apart.name).name]
    folder = out / "tokenizer"
    if not (folder / "tokenizer.json").is_file():
        make_tokenizer(texts, recipe).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    ids = [i for text in texts for i in tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]
    stream = load_stream(apart, tokenizer, tokens, bos=recipe.sink_token)
    return tokenizer, torch.tensor(ids), torch.from_numpy(stream.ids)


def export(state: SinkState, tokenizer: Any, folder: Path, corpus: str, held_out: str) -> None:
    """The model with its tokenizer, training history and model card: ``folder`` to use, "packed" beside it.

    The second is what the package ships; the weights of the first are those, unpacked to float32.
    """
    state.model.save_pretrained(folder)
    whole = folder / "model.safetensors"
    packed = pack_bytes(whole.read_bytes())
    write_atomic(whole, unpack_bytes(packed))
    tokenizer.save_pretrained(folder)
    recipe = asdict(replace(state.recipe, steps=state.step))
    notes = {"recipe": recipe, "seconds": round(state.seconds), "history": state.history}
    (folder / "training.json").write_text(json.dumps(notes, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card(state, corpus, held_out), encoding="utf-8")
    shipped = folder.with_name("packed")
    shutil.copytree(folder, shipped, ignore=shutil.ignore_patterns(whole.name), dirs_exist_ok=True)
    write_atomic(shipped / packed_name(whole.name), packed)


def card(state: SinkState, corpus: str, held_out: str) -> str:
    """The model card: what it is, what it was trained on and at what cost, and the curve of its looks."""
    recipe = replace(state.recipe, steps=state.step)
    size = sum(p.numel() for p in state.model.parameters())
    seen = state.step * recipe.batch * recipe.context
    command = "python -m ddposink.train_sinks --out DIR" + _options(recipe)
    token = "a learnable sink token before every sample" if recipe.sink_token else "no sink token"
    kept = " | ".join(f"NLL, {n} kept" for n in SINKS_KEPT)
    shown = state.history[:: max(1, len(state.history) // 8)]
    rows = shown if shown[-1] is state.history[-1] else [*shown, state.history[-1]]
    table = "\n".join(
        f"| {row['step']:,} | {row['seconds'] / 60:.0f} | {row['loss']:.3f} | "
        + " | ".join(f"{row['nll'][str(n)]:.4f}" for n in SINKS_KEPT)
        + f" | {100 * max(row['mass']['strongest_head']):.1f} % |"
        for row in rows
    )
    return f"""# A small Llama, {token}

Made to study where attention sinks come from; it writes no sensible text.

- Architecture: Llama, {size:,} parameters: {recipe.layers} layers, width {recipe.width},
  {recipe.heads} heads, context {recipe.context}, byte-level BPE vocabulary of {recipe.vocabulary:,}.
- Weights: trained in float32, then packed: matrices as 8-bit integers with a float16 scale for each row, the
  rest float16 (`ddposink.models.packed`).
- Data: `{corpus}` less `{held_out}`; the embedded novels are in the public domain.
- Training: {state.step:,} steps of {recipe.batch} samples, {seen:,} tokens; AdamW,
  learning rate {recipe.learning_rate:g}, weight decay {recipe.weight_decay:g}, seed {recipe.seed};
  {state.seconds / 60:.0f} minutes on one CPU thread of a busy machine.
- Licence: Apache-2.0, like the project. Repeat: `{command}`.

On held-out text, budget {recipe.context} tokens, after eviction has started: NLL in nats per token by
number of first tokens kept, and the attention on position 0 of the head that pays most.

| step | minutes | training loss | {kept} | attention on position 0 |
|---|---|---|{"---|" * (len(SINKS_KEPT) + 1)}
{table}
"""


def _options(recipe: SinkRecipe) -> str:
    """The options that differ from their defaults, as typed."""
    default = asdict(SinkRecipe())
    changed = {name: value for name, value in asdict(recipe).items() if value != default[name]}
    flags = {name.replace("_", "-"): value for name, value in changed.items()}
    return "".join(
        f" --{'' if value else 'no-'}{name}" if isinstance(value, bool) else f" --{name} {value}"
        for name, value in flags.items()
    )


def main(
    out: Annotated[Path, typer.Option(help="checkpoint, tokenizer and final model go here")],
    sink_token: Annotated[bool, typer.Option(help="put a learnable token in front of every sample")] = False,
    steps: Annotated[int, typer.Option(min=1)] = SinkRecipe.steps,
    layers: Annotated[int, typer.Option(min=1)] = SinkRecipe.layers,
    width: Annotated[int, typer.Option(min=8)] = SinkRecipe.width,
    heads: Annotated[int, typer.Option(min=1)] = SinkRecipe.heads,
    context: Annotated[int, typer.Option(min=16, help="tokens per sample")] = SinkRecipe.context,
    batch: Annotated[int, typer.Option(min=1, help="samples per step")] = SinkRecipe.batch,
    vocabulary: Annotated[int, typer.Option(min=300)] = SinkRecipe.vocabulary,
    learning_rate: Annotated[float, typer.Option(min=0.0)] = SinkRecipe.learning_rate,
    bfloat16: Annotated[bool, typer.Option(help="bfloat16 autocast")] = SinkRecipe.bfloat16,
    seed: Annotated[int, typer.Option()] = SinkRecipe.seed,
    corpus: Annotated[str, typer.Option(help="what to train on, less the held-out book")] = "novels",
    held_out: Annotated[str, typer.Option(help="what to look for sinks on")] = f"novel:{HELD_OUT}",
    look_every: Annotated[int, typer.Option(min=1, help="steps between looks for sinks")] = 500,
    look_tokens: Annotated[int, typer.Option(min=64, help="held-out tokens per look")] = 4096,
    save_every: Annotated[float, typer.Option(help="least seconds between checkpoints")] = 120.0,
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Train a small Llama, with or without a sink token, or go on with a training that was cut off."""
    torch.set_num_threads(threads)
    recipe = SinkRecipe(
        sink_token=sink_token, steps=steps, layers=layers, width=width, heads=heads, context=context,
        batch=batch, vocabulary=vocabulary, learning_rate=learning_rate, bfloat16=bfloat16,
        seed=seed,
    )  # fmt: skip
    file = out / "checkpoint.safetensors"
    try:
        state = load_checkpoint(file, recipe) if file.is_file() else new_state(recipe)
        tokenizer, ids, look_ids = read_data(recipe, out, corpus, held_out, look_tokens)
    except (ValueError, Unavailable) as error:
        raise typer.BadParameter(str(error)) from error
    console = Console()
    console.print(f"{len(ids):,} tokens to train on; step {state.step:,} of {steps:,}", highlight=False)
    with Progress(*Progress.get_default_columns(), TextColumn("{task.fields[note]}"), console=console) as bar:
        task = bar.add_task("training", total=steps, completed=state.step, note="")
        for loss in train(state, ids, look_ids, file, Pace(look_every, save_every)):
            bar.update(task, completed=state.step, note=f"loss {loss:.3f}")
            if state.history and state.history[-1]["step"] == state.step:
                console.print(_line(state.history[-1]), highlight=False, soft_wrap=True)
    export(state, tokenizer, out / "model", corpus, held_out)


def _line(entry: dict[str, Any]) -> str:
    nll = " ".join(f"{kept}:{value:.4f}" for kept, value in entry["nll"].items())
    mass = " ".join(f"{100 * x:.0f}" for x in entry["mass"]["strongest_head"])
    return (
        f"step {entry['step']:>6}  {entry['seconds']:>5.0f} s  loss {entry['loss']:.3f}  "
        f"NLL by sinks kept {nll}  % on position 0 {mass}"
    )
