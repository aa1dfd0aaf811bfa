import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddposink.evaluation.diversity import frobenius_norm, gaussian_kl, pairwise_distance, vendi_score


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_the_effective_number_lies_between_one_and_the_number(n, d, seed):
    features = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    assert 1 - 1e-9 <= vendi_score(features) <= min(n, d) + 1e-9


def test_the_effective_number_of_alike_orthogonal_and_paired_pictures():
    assert vendi_score(torch.ones(5, 3)) == pytest.approx(1)
    assert vendi_score(torch.eye(4)) == pytest.approx(4)
    assert vendi_score(torch.eye(4).repeat(2, 1)) == pytest.approx(4)
    assert vendi_score(torch.eye(4).repeat(3, 1) * 7) == pytest.approx(4)


def test_the_effective_number_by_brute_force():
    x = torch.nn.functional.normalize(torch.randn(6, 9, dtype=torch.double), dim=-1)
    p = torch.linalg.eigvalsh(x @ x.T / 6)
    assert vendi_score(x) == pytest.approx(math.exp(-(p * p.log()).sum()))


def test_distances_are_taken_within_a_prompt_only():
    x, groups = torch.randn(6, 4, dtype=torch.double), ["a", "b", "a", "b", "a", "c"]
    pairs = [(i, j) for i, j in itertools.combinations(range(6), 2) if groups[i] == groups[j]]
    cosine = torch.nn.functional.cosine_similarity
    expected = sum(1 - float(cosine(x[i], x[j], dim=0)) for i, j in pairs) / len(pairs)
    assert pairwise_distance(x, groups) == pytest.approx(expected)
    with pytest.raises(ValueError, match="no prompt has two"):
        pairwise_distance(x, list("abcdef"))


def test_kl_of_gaussians_against_the_library():
    a, b = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(normal(a, 0.3), normal(b, 0.3)).flatten(1).sum(1)
    assert torch.allclose(gaussian_kl(a, b, 0.3), kl.double(), rtol=1e-5)


def test_the_norm_of_a_change():
    assert frobenius_norm([torch.full((2, 2), 1.0), torch.tensor([math.sqrt(5.0)])]) == pytest.approx(3)
    assert frobenius_norm([]) == 0
