"""Sums of rewards: their grammar and their values."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddposink.rewards import load_reward, parse_reward
from ddposink.rewards.weighted import in_words, shares, weighted

IMAGES, PROMPTS = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), ["a", "b"]


def test_the_sum_is_that_of_its_parts():
    reward = load_reward(parse_reward("weighted: 0.5 * jpeg_incompressibility - 2e-2*brisque"))
    parts = [load_reward(parse_reward(n))(IMAGES, PROMPTS) for n in ("jpeg_incompressibility", "brisque")]
    assert torch.allclose(reward(IMAGES, PROMPTS), 0.5 * parts[0] - 0.02 * parts[1])
    assert reward.name == "weighted:0.5*jpeg_incompressibility-0.02*brisque"


def test_shares_of_the_variance():
    assert shares({"a": 3.0, "b": 1.0}) == {"a": 0.75, "b": 0.25}
    assert shares({"a": 0.0}) == {}
    assert in_words(shares({"a": 69.9, "b": 0.005})) == "a 100 %, b 0.00715 %"


@given(
    st.lists(
        st.tuples(
            st.floats(-100, 100).filter(lambda x: abs(x) > 1e-3),
            st.sampled_from(["brisque", "aesthetic@" + "a1" * 20, "clip_score", "jpeg_compressibility"]),
        ),
        min_size=1,
        max_size=4,
        unique_by=lambda part: part[1],
    )
)
def test_what_is_written_is_read_back(parts):
    text = "weighted:" + "+".join(f"{factor:g}*{name}" for factor, name in parts)
    ref = parse_reward(text)
    assert parse_reward(ref.name) == ref
    read = weighted.parts(ref.argument)
    assert [r.name for _, r in read] == [name for _, name in parts]
    assert [f for f, _ in read] == pytest.approx([f for f, _ in parts], rel=1e-5)


def test_the_identity_is_that_of_the_parts():
    found = parse_reward("weighted:1*brisque-2*clip_score").identity()
    assert found == {
        "brisque.sha256": parse_reward("brisque").identity()["sha256"],
        "clip_score.openai/clip-vit-large-patch14": "32bd64288804d66eefd0ccbe215aa642df71cc41",
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("weighted", "it has no parts"),
        ("weighted:", "it has no parts"),
        ("weighted:brisque", "cannot read 'brisque'; write e.g."),
        ("weighted:0.5*brisque 0.5*alignment", "unknown reward"),
        ("weighted:0.5*brisque+", "unknown reward"),
        ("weighted:1*brisk", "did you mean 'brisque'"),
        ("weighted:0*brisque", "weight zero"),
        ("weighted:1e999*brisque", "a weight of inf is beyond what float32 rewards can be multiplied by"),
        ("weighted:1*alignment-1e-50*brisque", "a weight of -1e-50 is beyond"),
        ("weighted:1*brisque+2*brisque", "'brisque' stands in it twice"),
        ("weighted:1*weighted:1*brisque", "cannot be part of a weighted sum"),
    ],
)
def test_what_is_no_sum_is_told(text, words):
    with pytest.raises(ValueError, match=words):
        parse_reward(text)


@pytest.mark.parametrize("factor", ["1.0000004", "1234567", "0.12345678", "-1e-07", "3", "0.1"])
def test_a_factor_is_trained_with_as_it_is_written(factor):
    ref = parse_reward(f"weighted:{factor}*brisque+1*clip_score")
    assert weighted.parts(ref.argument)[0][0] == float(factor)
