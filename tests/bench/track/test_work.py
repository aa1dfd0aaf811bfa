"""Counts of small functions, worked out by hand."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
F = torch.nn.functional

from bench.track.work import WorkCounts, count_work  # noqa: E402

X = torch.ones(8, 64)
W = torch.ones(64, 32)
FLOAT = 4


def test_matrix_product_and_cat():
    def work():
        y = X @ W
        return torch.cat([y, y])

    assert count_work(work) == WorkCounts(
        flops=2 * 8 * 64 * 32, calls=2, cat_calls=1, allocated_bytes=(8 * 32 + 16 * 32) * FLOAT
    )


def test_cat_under_its_other_names():
    out = torch.empty(16, 64)
    counts = count_work(lambda: (torch.concat([X, X]), torch.hstack([X, X]), torch.cat([X, X], out=out)))
    assert counts.cat_calls == 3


def test_views_and_in_place_results_allocate_nothing():
    target = torch.ones(8, 64)
    counts = count_work(lambda: (target.add_(1), target.t(), target[2:4], target.view(-1).mul_(2)))
    assert counts.allocated_bytes == 0
    assert counts.calls >= 5
    assert counts.flops == 0


def test_pieces_of_one_storage_count_once():
    assert count_work(lambda: torch.ones(10, 4).chunk(5)).allocated_bytes == 10 * 4 * FLOAT


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_counts_do_not_depend_on_gradient_mode(mode):
    layer = torch.nn.Linear(64, 32)
    q, kv = torch.ones(1, 4, 16, 8), torch.ones(1, 2, 16, 8)

    def work():
        layer(X)
        F.scaled_dot_product_attention(q, kv, kv, is_causal=True, enable_gqa=True)

    with mode():
        counts = count_work(work)
    assert counts.flops == 2 * 8 * 64 * 32 + 4 * 4 * 16 * 16 * 8
    assert counts.calls == 3  # transpose, addmm, attention


def test_attention_kernel_called_by_its_own_name():
    """The CPU kernel that returns log-sum-exps; torch's own counter would call it free."""
    if not hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu"):
        pytest.skip("this torch has no such kernel")
    q, k, v = torch.ones(2, 3, 5, 8), torch.ones(2, 3, 7, 8), torch.ones(2, 3, 7, 8)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    assert count_work(lambda: kernel(q, k, v)).flops == 2 * 2 * 3 * 5 * 7 * (8 + 8)


def test_backward_is_counted():
    weight = W.clone().requires_grad_()
    counts = count_work(lambda: (X @ weight).sum().backward())
    assert counts.flops == 2 * (2 * 8 * 64 * 32), "forward, and one product for the weight's gradient"


def test_a_second_forward_doubles_every_count():
    layer = torch.nn.Linear(64, 64)
    once = count_work(lambda: layer(X))
    twice = count_work(lambda: (layer(X), layer(X)))
    assert once.flops > 0
    for name in ("flops", "calls", "allocated_bytes"):
        assert getattr(twice, name) == 2 * getattr(once, name)


def test_compiled_functions_are_counted_as_written():
    """An optimised graph would hide its operators: it must not be what runs during the count."""
    ran = []

    def backend(graph, example_inputs):
        def optimised(*args):
            ran.append(graph)
            return graph(*args)

        return optimised

    def work(x):
        return torch.cat([x @ W, x @ W])

    compiled = torch.compile(work, backend=backend)
    compiled(X)
    before = len(ran)
    assert before > 0
    assert count_work(lambda: compiled(X)) == count_work(lambda: work(X))
    assert len(ran) == before


def test_errors_pass_through_and_leave_no_mode_behind():
    with pytest.raises(ZeroDivisionError):
        count_work(lambda: 1 // 0)
    assert count_work(lambda: None) == WorkCounts(0, 0, 0, 0)
    assert (X + 1).sum() == 2 * 8 * 64
