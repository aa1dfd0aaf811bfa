"""Names of rewards, and that training never learns from a number that is not one."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from ddposink.rewards import REWARDS, RewardError, RewardInfo, checked, load_reward, parse_reward

INFO = RewardInfo((0, 1), "", "nothing", "none", "test")
IMAGES, PROMPTS = torch.rand(3, 3, 16, 16), ["a", "b", "c"]


@pytest.mark.parametrize("name", [n for n in REWARDS if n not in ("weighted", "python", "http", "https")])
def test_every_registered_reward_has_facts_and_an_identity(name):
    ref = parse_reward(name)
    assert (ref.name, parse_reward(ref.name)) == (name, ref)
    assert ref.info.direction == "higher"
    assert ref.info.range[0] < ref.info.range[1]
    assert all((ref.info.needs, ref.info.licence, ref.info.source))
    assert all(isinstance(value, str) and value for value in ref.identity().values())


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown reward 'brisk'.*did you mean 'brisque'.*jpeg_compress"):
        parse_reward("brisk")
    with pytest.raises(ValueError, match="unknown reward ''"):
        parse_reward("")
    with pytest.raises(ValueError, match="reward 'brisque:7': it takes nothing after its name"):
        parse_reward("brisque:7")


def test_names_are_read_without_torch():
    code = (
        "import sys; from ddposink.rewards import *; "
        "names = set(REWARDS) - {'weighted', 'python', 'preference', 'http', 'https'}; "
        "[parse_reward(n).identity() for n in names]; "
        "parse_reward('weighted:1*brisque+-2*aesthetic').identity(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("function", "words", "nan"),
    [
        (lambda i, p: 1 / 0, "raised ZeroDivisionError: division by zero", False),
        (lambda i, p: [1.0, 2.0, 3.0], "returned list, not a tensor", False),
        (lambda i, p: torch.zeros(3, 1), r"returned shape \(3, 1\) for 3 pictures, not \(3,\)", False),
        (lambda i, p: torch.zeros(3, dtype=torch.float64), "returned float64, not float32", False),
        (lambda i, p: None, "returned NoneType, not a tensor", False),
        (lambda i, p: torch.zeros(3, requires_grad=True), "returned a tensor with gradients", False),
        (
            lambda i, p: torch.tensor([0.0, torch.nan, torch.inf]),
            "returned 2 of 3 values that are not finite",
            True,
        ),
    ],
)
def test_a_reward_that_fails_brings_its_batch(tmp_path, function, words, nan):
    reward = checked("mine", INFO, function)
    with pytest.raises(RewardError, match=f"reward 'mine' {words}") as caught:
        reward(IMAGES, PROMPTS)
    assert caught.value.nan is nan
    (path,) = caught.value.save(tmp_path / "new")
    with np.load(path, allow_pickle=False) as saved:
        assert np.array_equal(saved["images"], IMAGES.numpy())
        assert saved["prompts"].tolist() == PROMPTS
        assert ("rewards" in saved) is nan


def test_a_reward_may_write_into_what_it_gets():
    def rude(images, prompts):
        prompts.clear()
        return images.zero_().sum((1, 2, 3))

    images, prompts = IMAGES.clone(), list(PROMPTS)
    assert checked("mine", INFO, rude)(images, prompts).tolist() == [0, 0, 0]
    assert torch.equal(images, IMAGES)
    assert prompts == PROMPTS


def test_memory_running_out_is_no_fault_of_the_reward():
    def hungry(images, prompts):
        raise torch.OutOfMemoryError("no more")

    with pytest.raises(torch.OutOfMemoryError):
        checked("mine", INFO, hungry)(IMAGES, PROMPTS)


def test_a_reward_is_computed_without_gradients():
    images = IMAGES.clone().requires_grad_()
    reward = checked("mine", INFO, lambda i, p: i.mean((1, 2, 3)))
    assert not reward(images, PROMPTS).requires_grad


MODULE = '''
import torch
def bright(images, prompts):
    return images.mean((1, 2, 3))
'''  # fmt: skip


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage" / "__init__.py").write_text("raise SystemExit('imported')")
    (tmp_path / "mypackage" / "inner.py").write_text("")
    (tmp_path / "myreward.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_code_runs_only_where_it_is_allowed(module):
    with pytest.raises(ValueError, match=r"runs code that the suite names.*--allow-code"):
        parse_reward("python:myreward:bright")
    with pytest.raises(ValueError, match="--allow-code"):
        parse_reward("weighted:1*brisque+1*python:myreward:bright")
    reward = load_reward(parse_reward("python:myreward:bright", allow_python=True))
    assert torch.allclose(reward(IMAGES, PROMPTS), IMAGES.mean((1, 2, 3)))


def test_naming_a_module_does_not_import_it(module):
    ref = parse_reward("python:mypackage.inner:f", allow_python=True)
    assert len(ref.identity()["sha256"]) == 64
    assert "mypackage" not in sys.modules


def test_a_module_is_identified_with_all_that_it_imports_from_beside_it(module, tmp_path):
    def identity():
        return parse_reward("python:myreward:bright", allow_python=True).identity()

    (tmp_path / "myreward.py").write_text(f"import mypackage.inner, scipy, helpers\n{MODULE}")
    (tmp_path / "helpers.py").write_text("from mypackage import deeper")
    (tmp_path / "mypackage" / "deeper.py").write_text("x = 1")
    before = identity()
    assert before == identity()
    for name in (
        "myreward.py",
        "helpers.py",
        "mypackage/__init__.py",
        "mypackage/inner.py",
        "mypackage/deeper.py",
    ):
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text + "\n# nothing else\n")
        assert identity() == before
        (tmp_path / name).write_text(text + "\ny = 2\n")
        assert identity() != before
        (tmp_path / name).write_text(text)
    assert "mypackage" not in sys.modules


def test_misspelt_code_is_told(module):
    for text, words in [
        ("python:", "write python:package.module:function"),
        ("python:os;x:y", "write python:package.module:function"),
        ("python:nosuchmodule.x:f", "no module 'nosuchmodule.x'"),
        ("python:myreward.x:f", "no module 'myreward.x'"),
    ]:
        with pytest.raises(ValueError, match=words):
            parse_reward(text, allow_python=True)
    with pytest.raises(ValueError, match="module 'myreward' has no function 'dark'"):
        load_reward(parse_reward("python:myreward:dark", allow_python=True))
