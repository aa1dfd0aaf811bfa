"""Training that was saved, killed and resumed is bit for bit the training that was not."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ddposink.ddpo import DDPOConfig, make_engine
from ddposink.ddpo.checkpoint import NAME
from helpers.tiny import PROMPTS, brightness, tiny_pipeline

VALUES: dict[str, Any] = {
    "sample_num_steps": 3,
    "sample_batch_size": 2,
    "sample_num_batches_per_epoch": 2,
    "train_batch_size": 2,
    "train_learning_rate": 3e-3,
    "per_prompt_stat_tracking": True,
    "per_prompt_stat_tracking_min_count": 2,
    "threads": 1,  # bits depend on their number
}


def engine(seed: int = 0, prompts: list[str] = PROMPTS, **values: Any) -> Any:
    return make_engine(DDPOConfig(**VALUES | values), tiny_pipeline(seed), brightness, prompts)


def weights(of: Any) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in of.pipeline.unet.named_parameters() if p.requires_grad}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def numbers(logs: Any) -> list[tuple[float, ...]]:
    return [(log.step, log.reward_mean, log.reward_std, log.loss, log.samples) for log in logs]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "checkpoint"
    trained = engine()
    list(trained.run(2))
    trained.save(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    target = tmp_path / "checkpoint"
    target.mkdir()
    for file in saved.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


@pytest.mark.parametrize(
    "values", [{}, {"use_lora": False, "train_learning_rate": 1e-4}], ids=["lora", "full"]
)
def test_resumed_is_uninterrupted(values: dict[str, Any], tmp_path: Path) -> None:
    whole = engine(**values)
    expected = numbers(whole.run(4))
    first = engine(**values)
    list(first.run(2))
    first.save(tmp_path / "checkpoint")
    list(first.run(3))  # what happens after saving is forgotten
    random.random(), np.random.random(), torch.rand(3)  # the global generators are not the training's
    second = engine(**values)
    second.load(tmp_path / "checkpoint")
    assert second.step == 2
    assert numbers(second.run(4)) == expected[2:]
    assert same(weights(second), weights(whole))
    first.load(tmp_path / "checkpoint")  # an engine may also go back
    assert numbers(first.run(4)) == expected[2:]


def test_training_and_callers_do_not_share_random_numbers() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    quiet, disturbed = engine(), engine()
    assert torch.equal(torch.get_rng_state(), before)
    undisturbed = numbers(quiet.run(2))
    logs = disturbed.run(2)
    first = next(logs)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert numbers([first, *logs]) == undisturbed


def test_saving_again_replaces_and_leaves_nothing_over(copy: Path) -> None:
    trained = engine()
    trained.load(copy)
    list(trained.run(3))
    trained.save(copy)
    assert len(list(copy.iterdir())) == 2
    again = engine()
    again.load(copy)
    assert again.step == 3


def damage_json(folder: Path) -> None:
    file = folder / NAME
    document = json.loads(file.read_text())
    document["content"]["step"] = 7
    file.write_text(json.dumps(document))


def halve(pattern: str) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        (file,) = folder.glob(pattern)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return cut


def flip_a_bit(folder: Path) -> None:
    (file,) = folder.glob("state-*.safetensors")
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)


def remove_tensors(folder: Path) -> None:
    for file in folder.glob("state-*.safetensors"):
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (halve("state-*.safetensors"), r"state-2-.*\.safetensors is not the file that was written"),
        (halve(NAME), r"checkpoint\.json cannot be read"),
        (flip_a_bit, r"state-2-.*\.safetensors is not the file"),
        (damage_json, r"checkpoint\.json cannot be read \(its content is not what was written\)"),
        (remove_tensors, r"state-2-.*\.safetensors is missing"),
        (lambda folder: (folder / NAME).unlink(), "holds no checkpoint: checkpoint.json is missing"),
    ],
)
def test_damage_is_named(damage: Callable[[Path], None], says: str, copy: Path) -> None:
    damage(copy)
    fresh = engine()
    before = weights(fresh)
    with pytest.raises(ValueError, match=says):
        fresh.load(copy)
    assert fresh.step == 0
    assert same(before, weights(fresh))


class Opened:
    """Unpickling this would leave a trace."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("unpickled",)


def test_a_pickle_is_never_opened(copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ddposink.ddpo import checkpoint

    monkeypatch.chdir(tmp_path)
    (file,) = copy.glob("state-*.safetensors")
    file.write_bytes(pickle.dumps(Opened()))
    document = json.loads((copy / NAME).read_text())  # even with checksums that agree
    document["content"]["sha256"] = checkpoint._sha256(file)
    document["sha256"] = checkpoint._of_content(document["content"])
    (copy / NAME).write_text(json.dumps(document))
    with pytest.raises(ValueError, match="holds no safetensors"):
        engine().load(copy)
    assert not Path("unpickled").exists()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"train_learning_rate": 1e-3}, r"trained with train_learning_rate 0\.003, this training has 0\.001"),
        ({"lora_rank": 8}, "lora_rank 4, this training has 8"),
        ({"use_lora": False}, "use_lora True, this training has False"),
        ({"prompts": ["cat"]}, "trained on other prompts"),
        ({"seed": 3}, "trained with base"),
    ],
)
def test_another_training_is_refused(values: dict[str, Any], says: str, saved: Path) -> None:
    with pytest.raises(ValueError, match=says):
        engine(**values).load(saved)


def test_layout_and_length_may_change(saved: Path) -> None:
    other = engine(rows_per_forward=1, num_epochs=7, exp_name="other", threads=1)
    other.load(saved)
    assert next(other.run(3)).step == 3


PATHS = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
KILLED = """
    import os, signal, sys
    sys.path[:0] = {paths!r}
    import test_checkpoint as here
    from ddposink.ddpo import checkpoint
    trained = here.engine()
    trained.load(checkpoint.Path({folder!r}))
    list(trained.run(3))
    if {moment!r} == "tensors":    # half of the new tensors are on the disk
        import safetensors.torch
        def save_file(tensors, file):
            file.write_bytes(safetensors.torch.save(tensors)[:20_000])
            os.kill(os.getpid(), signal.SIGKILL)
        safetensors.torch.save_file = save_file
    else:                          # all is there but the last rename
        def replace(*_):
            os.kill(os.getpid(), signal.SIGKILL)
        checkpoint.os.replace = replace
    trained.save(checkpoint.Path({folder!r}))
"""


@pytest.mark.parametrize("moment", ["tensors", "rename"])
def test_killed_while_writing(moment: str, copy: Path) -> None:
    script = textwrap.dedent(KILLED).format(paths=PATHS, folder=str(copy), moment=moment)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=False, timeout=300)
    assert done.returncode == -signal.SIGKILL
    assert len(list(copy.iterdir())) > 2  # something half-written was left
    resumed, whole = engine(), engine()
    resumed.load(copy)
    assert resumed.step == 2
    assert numbers(resumed.run(3)) == numbers(whole.run(3))[2:]
    resumed.save(copy)
    assert len(list(copy.iterdir())) == 2


def test_a_full_disk_keeps_the_old_one(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = engine()
    trained.load(copy)
    list(trained.run(3))
    import safetensors.torch

    def full(tensors: Any, file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(
        OSError, match="could not be written: No space left on device; the previous one is kept"
    ):
        trained.save(copy)
    monkeypatch.undo()
    assert len(list(copy.iterdir())) == 2
    again = engine()
    again.load(copy)
    assert again.step == 2
