"""The preflight passes both engines on a sound pipeline, and catches TRL as it was released."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl")
from rich.console import Console

from ddposink.ddpo import DDPOConfig
from ddposink.ddpo.preflight import checks, ranks
from ddposink.ddpo.preflight.checks import CHECKS
from ddposink.ddpo.preflight.run import Check, main, preflight, show
from ddposink.ddpo.preflight.subject import NotPossible, Subject, reduced
from ddposink.ddpo.trl.repairs import REPAIRS
from ddposink.errors import Unavailable
from helpers.tiny import tiny_pipeline

CONFIG = DDPOConfig(sample_num_steps=4, mixed_precision="no")
PROCESSES = "processes agree"


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the check that starts processes; they are tested by themselves."""
    only(monkeypatch, *(name for name in CHECKS if name != PROCESSES))


def only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Put these questions only."""
    monkeypatch.setattr("ddposink.ddpo.preflight.run.CHECKS", {name: CHECKS[name] for name in names})


def failed(found: list[Check]) -> set[str]:
    return {check.name for check in found if check.ok is False}


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("engine", ["native", "trl"])
def test_both_engines_pass(engine: str) -> None:
    heard: list[str] = []
    found = preflight(tiny_pipeline(), replace(CONFIG, engine=engine), started=heard.append)
    assert [check.name for check in found] == heard
    assert heard == ["batch arithmetic", "ratio before update", "resume", "save and reload"]
    assert all(check.ok for check in found), found
    assert all(check.seconds >= 0 for check in found)


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("algorithm", ["nft", "dpo", "draft"])
def test_every_algorithm_is_asked_what_must_hold_for_it(algorithm: str) -> None:
    config = replace(
        CONFIG, algorithm=algorithm, sample_batch_size=4, train_batch_size=4, samples_per_prompt=2
    )
    found = {check.name: check for check in preflight(tiny_pipeline(), config)}
    assert list(found) == ["batch arithmetic", "invariant before update", "resume", "save and reload"]
    assert all(check.ok for check in found.values()), found
    assert {"nft": "average to v_old", "dpo": "log 2", "draft": "finite differences"}[algorithm] in found[
        "invariant before update"
    ].note


def test_an_invariant_that_does_not_hold_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "invariant before update")
    monkeypatch.setattr(
        "ddposink.ddpo.algorithms.nft.mixtures",
        lambda new, old, beta: (beta * new, 2 * old - new * beta + 0.1),
    )
    found = preflight(tiny_pipeline(), replace(CONFIG, algorithm="nft"))
    assert failed(found) == {"invariant before update"}


def test_processes_share_gradients_unless_trl_is_unrepaired() -> None:
    """One pair of processes for three trainings."""
    few = replace(reduced(CONFIG), sample_num_steps=2)
    pipeline, trl = tiny_pipeline(), replace(few, engine="trl")
    subjects = [Subject(pipeline, few), Subject(pipeline, trl), Subject(pipeline, trl, ["gradient-sync"])]
    equal = []
    for first, second in ranks.weights_of_processes(subjects):
        assert len(first) > 0
        equal.append(all(torch.equal(first[name], second[name]) for name in first))
    assert equal == [True, True, False]


def test_a_failing_process_is_named() -> None:
    subject = Subject(tiny_pipeline(), replace(reduced(CONFIG), lora_targets=("to_nothing",)))
    with pytest.raises(RuntimeError, match=r"process \d failed: .*to_nothing"):
        ranks.weights_of_processes([subject])


@pytest.mark.parametrize(
    ("repair", "check", "settings"),
    [
        ("lora-resume", "resume", {}),
        ("save-pretrained", "save and reload", {}),
        ("final-save", "resume", {}),
        ("fp16-on-cpu", "ratio before update", {"mixed_precision": "fp16"}),
    ],
)
def test_each_missing_repair_is_caught(
    repair: str, check: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    only(monkeypatch, check)
    config = replace(CONFIG, engine="trl", **settings)
    assert failed(preflight(tiny_pipeline(), config, disabled=[repair])) == {check}


def test_unrepaired_trl_is_caught(saved_pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"path:{saved_pipeline}", unrepaired=True, settings={"sample_num_steps": 3}) == 3
    out = " ".join(capsys.readouterr().out.split())
    assert "engine trl, unrepaired" in out
    assert "do not train: ratio before update, processes agree, resume, save and reload failed" in out
    assert len(REPAIRS) >= 12


def test_halves_are_reported_against_the_clip_range() -> None:
    halves = replace(CONFIG, engine="trl", mixed_precision="bf16", sample_num_steps=2)
    found = checks.ratio_before_update(Subject(tiny_pipeline(), reduced(halves)))
    assert found.ok is None
    assert "bf16 clips where nothing was learnt" in found.note
    assert "× the clip range 0.0001" in found.note
    wide = replace(halves, train_clip_range=100.0)
    assert checks.ratio_before_update(Subject(tiny_pipeline(), reduced(wide))).ok is True


def test_batches_that_do_not_divide_end_the_preflight() -> None:
    settings = {"sample_batch_size": 3, "train_batch_size": 2}
    (check,) = preflight(tiny_pipeline(), settings)
    assert check.ok is False
    assert "train_batch_size 2 does not divide sample_batch_size 3" in check.note


def test_a_training_that_changes_nothing_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: None)
    only(monkeypatch, "save and reload")
    (_, found) = preflight(tiny_pipeline(), CONFIG)
    assert found.ok is False
    assert "nothing is learnt" in found.note


@pytest.mark.parametrize(
    ("weights", "ok", "note"),
    [
        ([{"a": torch.ones(2)}, {"a": torch.ones(2)}], True, "2 processes, one update, 1 tensors"),
        ([{"a": torch.ones(2)}, {"a": torch.zeros(2)}], False, "2 processes, one update, 1 tensors"),
        ([{"a": torch.ones(2)}, {"b": torch.ones(2)}], False, "one side only has e.g. a"),
    ],
)
def test_the_answer_of_the_processes(
    weights: list[dict[str, torch.Tensor]], ok: bool, note: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "weights_of_processes", lambda subjects: [weights])
    found = checks.same_weights_across_processes(Subject(tiny_pipeline(), reduced(CONFIG)))
    assert found.ok is ok
    assert note in found.note


def test_processes_that_cannot_be_had_are_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Subject(tiny_pipeline(), reduced(CONFIG))
    with monkeypatch.context() as patched:
        patched.setattr(ranks, "CPU_PARAMETERS", 10)
        with pytest.raises(NotPossible, match="needs 2 GPUs"):
            checks.same_weights_across_processes(subject)
    monkeypatch.setenv("WORLD_SIZE", "4")
    only(monkeypatch, PROCESSES)
    found = preflight(tiny_pipeline(), CONFIG)
    assert found[-1].ok is None
    assert "itself one of several" in found[-1].note
    console = Console(record=True, width=150)
    assert show(found, console, "title") == 0
    assert "not checked" in console.export_text()


def test_main_prints_a_table(
    saved_pipeline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    only(monkeypatch, "ratio before update")
    assert main(f"path:{saved_pipeline}", settings={"sample_num_steps": 2, "seed": 5}) == 0
    out = capsys.readouterr().out
    for word in ("preflight:", "engine native", "batch arithmetic", "ratio before update", "ready"):
        assert word in out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"pipeline": "emoji-ds"}, "did you mean 'emoji-sd'?"),
        ({"engine": "trll"}, "did you mean 'trl'?"),
        ({"precision": "bf"}, "did you mean 'bf16'?"),
        ({"settings": {"sample_batchsize": 2}}, "did you mean 'sample_batch_size'?"),
    ],
)
def test_a_wrong_request_is_one_line(
    arguments: dict[str, Any], complaint: str, saved_pipeline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"pipeline": f"path:{saved_pipeline}"} | arguments
    assert main(given.pop("pipeline"), **given) == 2
    out = capsys.readouterr().out
    assert out.startswith("error: ")
    assert complaint in " ".join(out.split())


def test_what_cannot_be_had_is_no_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: Any, **__: Any) -> Any:
        raise Unavailable("trl is not here")

    monkeypatch.setattr("ddposink.ddpo.preflight.subject.make_engine", lacking)
    with pytest.raises(Unavailable, match="trl is not here"):
        preflight(tiny_pipeline(), CONFIG)


def test_the_command_line_hands_everything_over(monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from bench.cli import app

    asked: list[Any] = []
    monkeypatch.setattr("ddposink.ddpo.preflight.run.main", lambda *args, **kw: asked.append((args, kw)) or 3)
    given = "doctor --ddpo emoji-sd --engine trl --precision bf16 --device cuda:1 --set sample_num_steps=7"
    assert CliRunner().invoke(app, given.split()).exit_code == 3
    expected = {
        "engine": "trl",
        "precision": "bf16",
        "device": "cuda:1",
        "settings": {"sample_num_steps": 7},
        "unrepaired": False,
    }
    assert asked == [(("emoji-sd",), expected)]
    monkeypatch.setattr("bench.doctor.find_spec", lambda name: None if name == "diffusers" else object())
    refused = CliRunner().invoke(app, ["doctor", "--ddpo", "emoji-sd"])
    assert refused.exit_code == 2
    assert len(asked) == 1


@pytest.mark.parametrize("device", ["cuda", "cuda:3", "gpu"])
def test_a_device_that_is_not_here_is_one_line(
    device: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main("emoji-sd", device=device) == 2
    assert f"device '{device}'" in capsys.readouterr().out


def test_a_summed_log_probability_has_the_limit_of_its_dimensions(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "ratio before update")
    summed = replace(CONFIG, log_prob_reduction="sum", steps_per_forward=2)
    found = preflight(tiny_pipeline(), summed)
    assert not failed(found), found
    assert checks.ratio_limit(summed, tiny_pipeline()) == pytest.approx(1e-5 * 4 * 8 * 8)
    assert checks.ratio_limit(CONFIG, tiny_pipeline()) == 1e-5
