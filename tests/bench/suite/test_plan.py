from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import CombinedError, UserError
from bench.suite import conditions
from bench.suite.model import Suite, parse_suite
from bench.suite.plan import Plan, make_plan
from bench.workload import Cost, Skip
from helpers.streamlike import Params, Streamlike, raw_suite


def plan(workload: Any = None, identity: Any = None, **keys: Any) -> Plan:
    return make_plan(Suite.model_validate(raw_suite(**keys)), workload or Streamlike(), identity)


def table(planned: Plan) -> list[tuple[Any, ...]]:
    return [(cell.params["policy"], cell.params["length"], cell.seed, cell.repeat) for cell in planned.cells]


def refusal(text: str) -> str:
    head = "suite: toy\nworkload: streamlike\n"
    with pytest.raises(UserError) as caught:
        make_plan(parse_suite((head + text).encode(), "s.yaml"), Streamlike())
    return str(caught.value)


# Which cells --------------------------------------------------------------------------------------


def test_the_product_varies_the_last_axis_fastest():
    assert table(plan(grid={"policy": ["dense", "window 8"], "length": [64, 16]})) == [
        ("dense", 64, 0, 0),
        ("dense", 16, 0, 0),
        ("window 8", 64, 0, 0),
        ("window 8", 16, 0, 0),
    ]


def test_seeds_and_repeats_multiply_every_cell():
    planned = plan(grid={"policy": "dense", "length": 8}, seed=[3, 1], repeat=2)
    assert [row[2:] for row in table(planned)] == [(3, 0), (3, 1), (1, 0), (1, 1)]
    assert len({cell.id for cell in planned.cells}) == len(planned.passes) == 4


def test_passes_of_a_first_repetition_run_before_those_of_a_second():
    planned = plan(repeat=2)
    assert [work.cells[0].repeat for work in planned.passes] == [0, 0, 0, 1, 1, 1]
    assert [work.cells[0].params["policy"] for work in planned.passes[:3]] == [
        "dense",
        "window 8",
        "sink 2+6",
    ]


def test_zipped_axes_vary_together_at_the_place_of_the_first():
    planned = plan(
        grid={"policy": ["dense", "window 8"], "length": [1, 2, 3], "model": ["a", "b"]},
        zip=[["policy", "model"]],
    )
    found = [(cell.params["policy"], cell.params["model"], cell.params["length"]) for cell in planned.cells]
    assert found == [(p, m, n) for p, m in (("dense", "a"), ("window 8", "b")) for n in (1, 2, 3)]


def test_include_lies_over_defaults_and_expands_lists():
    planned = plan(
        defaults={"model": "small", "length": 5},
        grid={"policy": ["dense"], "length": [1, 2]},
        include=[{"policy": ["sink 1+2", "sink 2+2"]}, {"policy": "window 3", "length": [7, 8]}],
    )
    assert [row[:2] for row in table(planned)] == [
        ("dense", 1),
        ("dense", 2),
        ("sink 1+2", 5),
        ("sink 2+2", 5),
        ("window 3", 7),
        ("window 3", 8),
    ]


def test_without_a_grid_only_included_cells_are_measured_and_without_those_the_defaults():
    everything = {"model": "small", "policy": "dense", "length": 4}
    assert len(plan(defaults=everything, grid={}).cells) == 1
    assert table(plan(defaults=everything, grid={}, include=[{"length": 9}])) == [("dense", 9, 0, 0)]


def test_a_grid_axis_overrides_a_default():
    assert table(plan(defaults={"model": "m", "length": 4, "policy": "dense"}, grid={"length": [5]})) == [
        ("dense", 5, 0, 0)
    ]


def test_lists_and_mappings_are_values_in_defaults_and_one_level_down_in_the_grid():
    assert plan(defaults={"model": "m", "layers": [1, 2]}).cells[0].params["layers"] == [1, 2]
    planned = plan(grid={"policy": "dense", "length": 4, "layers": [[1], [2, 3], None]})
    assert [cell.params["layers"] for cell in planned.cells] == [[1], [2, 3], None]


def test_cells_given_twice_are_measured_once():
    planned = plan(
        grid={"policy": ["dense"], "length": [4]},
        include=[{"policy": "dense", "length": 4}, {"policy": " dense ", "length": "4", "dtype": "float32"}],
    )
    assert table(planned) == [("dense", 4, 0, 0)]
    assert [len(work.cells) for work in planned.passes] == [1]
    assert planned.naive_cost == Cost(4, "tokens")
    assert planned.notes == ("cells given more than once are measured once: 2 left out",)


def test_parameters_are_canonical_and_complete():
    planned = plan(grid={"policy": "sink  2+6", "length": 16.0})
    assert planned.cells[0].params == {
        "model": "small",
        "policy": "sink 2+6",
        "length": 16,
        "dtype": "float32",
        "scale": 1.0,
        "layers": None,
    }
    assert planned.cells[0].label == "sink 2+6 @16"


# Exclude ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "left"),
    [
        ({"policy": "dense"}, 4),
        ({"policy": "dense", "length": ">16"}, 5),
        ({"length": ">=16"}, 0),
        ({"length": "<16"}, 6),
        ({"length": " <= 16 "}, 3),
        ({"length": "!=16"}, 3),
        ({"length": 16.0}, 3),
        ({"length": "16"}, 3),
        ({"length": [16, ">60"]}, 0),
        ({"policy": ["dense", "window *"]}, 2),
        ({"policy": "*i*"}, 2),
        ({"policy": "*"}, 0),
        ({"policy": "*ens"}, 6),
        ({"policy": "!=sink*"}, 2),
        ({"kind": "window"}, 4),
        ({"sinks": 2}, 4),
        ({"sinks": None}, 2),
        ({"sinks": "!=2"}, 2),
        ({"policy": ">5"}, 6),
        ({"dtype": "float32", "kind": "dense"}, 4),
        ({"seed": 0}, 0),
        ({"seed": 1}, 6),
        ({"repeat": ">=1"}, 6),
        ({"scale": True}, 6),
    ],
)
def test_exclude(rule: dict[str, Any], left: int):
    if left:
        planned = plan(exclude=[rule])
        assert len(planned.cells) == left
        assert bool(planned.notes) == (left == 6)
    else:
        with pytest.raises(UserError, match="the suite has no cells: exclude drops them all"):
            plan(exclude=[rule])


def test_exclude_can_drop_one_seed():
    planned = plan(seed=[0, 1, 2], exclude=[{"seed": [1, 2], "policy": "dense"}])
    assert sum(row[0] == "dense" for row in table(planned)) == 2
    assert len(planned.cells) == 2 + 2 * 2 * 3


def test_rules_are_alternatives_and_useless_ones_are_noted():
    planned = plan(exclude=[{"policy": "dense"}, {"length": 16}, {"policy": "dnse"}])
    assert len(planned.cells) == 2
    assert planned.notes == ("exclude.2: this exclude drops no cell",)


def test_exclude_understands_the_spelling_of_the_grid():
    assert (
        len(
            plan(
                grid={"policy": ["sink  2+6", "dense"], "length": 4}, exclude=[{"policy": "sink  2+6"}]
            ).cells
        )
        == 1
    )
    assert (
        len(
            plan(grid={"policy": ["sink  2+6", "dense"], "length": 4}, exclude=[{"policy": "sink 2+6"}]).cells
        )
        == 1
    )


def test_exclude_may_drop_a_combination_that_the_workload_refuses():
    grid = {"policy": ["dense", "window 8"], "length": [8, 2_000_000]}
    with pytest.raises(UserError, match="dense cannot hold 2000000 tokens"):
        plan(grid=grid)
    planned = plan(grid=grid, exclude=[{"policy": "dense", "length": ">1_000_000"}])
    assert len(planned.cells) == 3
    assert planned.notes == ()


def test_exclude_does_not_hide_a_value_that_is_wrong_by_itself():
    with pytest.raises(UserError, match="unknown cache policy 'dnse'"):
        plan(grid={"policy": ["dnse", "window 8"], "length": 8}, exclude=[{"policy": "!=window 8"}])


def test_true_is_not_one_and_null_is_not_a_word_of_its_own():
    assert not conditions.same(True, 1)
    assert conditions.same(True, True)
    assert conditions.same(1, 1.0)
    assert not conditions.same(0, False)
    assert conditions.same(None, None)


# Names --------------------------------------------------------------------------------------------


def canonical_id(workload: Streamlike, cell: Any, **more: Any) -> str:
    content = {
        "workload": workload.name,
        "version": workload.version(),
        "params": dict(cell.params),
        "identity": {"model": f"sha256 of {cell.params['model']}"},
        "seed": cell.seed,
        "repeat": cell.repeat,
        **more,
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def test_ids_are_the_hash_of_the_canonical_content():
    workload = Streamlike('v"7 é')
    planned = plan(workload, defaults={"model": "sm\\all ü", "layers": [3]}, seed=[5], repeat=2)
    assert [cell.id for cell in planned.cells] == [canonical_id(workload, cell) for cell in planned.cells]
    for work in planned.passes:
        common = {name: value for name, value in work.cells[0].params.items() if name != "length"}
        assert work.id == canonical_id(workload, work.cells[0], params=common, prefix_axis="length")


def test_everything_that_changes_a_number_changes_the_id():
    one = {"grid": {"policy": "dense", "length": 4}}
    ids = [
        plan(**one).cells[0].id,
        plan(**one, seed=1).cells[0].id,
        plan(Streamlike("v2"), **one).cells[0].id,
        plan(identity=lambda params: {"model": "another revision"}, **one).cells[0].id,
        plan(grid={"policy": "dense", "length": 5}).cells[0].id,
        plan(grid={"policy": "dense", "length": 4, "dtype": "bfloat16"}).cells[0].id,
        plan(**one, repeat=2).cells[1].id,
    ]
    assert len(set(ids)) == len(ids)
    assert plan(**one, suite="renamed", description="other", timeout=3).cells[0].id == ids[0]


def test_identity_is_asked_once_for_all_lengths_and_seeds():
    workload = Streamlike()
    plan(
        workload, grid={"policy": ["dense", "window 8"], "length": list(range(1, 40))}, seed=[0, 1], repeat=3
    )
    assert set(workload.asked.values()) == {1}
    assert len(workload.asked) == 2


def test_a_pass_carries_what_its_names_referred_to():
    planned = plan(identity=lambda params: {"model": f"{params.model}@1"})
    for work in planned.passes:
        assert work.identity == {"model": f"{work.cells[0].params['model']}@1"}
    assert "identity" not in str(planned.to_json())


def test_a_skipped_identity_still_plans():
    def identity(params: Params) -> dict[str, str]:
        raise Skip("weights not available offline")

    planned = plan(identity=identity)
    assert len(planned.cells) == 6
    assert {work.identity for work in planned.passes} == {None}
    assert planned.cells[0].id != plan().cells[0].id


def test_an_identity_that_fails_is_placed_at_the_value_it_complains_about():
    def identity(params: Params) -> dict[str, str]:
        raise FileNotFoundError(2, "No such file", f"{params.model}/config.json")

    text = b"suite: toy\nworkload: w\ngrid:\n  policy: dense\n  length: [4, 5]\n  model: [here/a, gone/b]\n"
    with pytest.raises(CombinedError) as caught:
        make_plan(parse_suite(text, "s.yaml"), Streamlike(), identity)
    assert [error.where for error in caught.value.errors] == ["s.yaml:6:11", "s.yaml:6:19"]


def test_an_identity_that_fails_for_many_cells_is_told_once():
    def identity(params: Params) -> dict[str, str]:
        raise UserError(f"there is no model {params.model}", hint="look elsewhere")

    with pytest.raises(
        UserError, match=r"defaults\.model: there is no model small .*\n  hint: look"
    ) as caught:
        plan(identity=identity)
    assert not isinstance(caught.value, CombinedError)


# Passes -------------------------------------------------------------------------------------------


def test_lengths_share_a_pass_sorted_whose_cost_is_the_longest():
    planned = plan(grid={"policy": ["dense", "window 8"], "length": [64, 4, 16]})
    assert [[cell.params["length"] for cell in work.cells] for work in planned.passes] == [[4, 16, 64]] * 2
    assert [work.cost for work in planned.passes] == [Cost(64, "tokens")] * 2
    assert (planned.cost, planned.naive_cost) == (Cost(128, "tokens"), Cost(168, "tokens"))


def test_without_a_prefix_axis_every_cell_is_a_pass():
    workload = Streamlike()
    workload.prefix_axis = None
    planned = plan(workload)
    assert len(planned.passes) == len(planned.cells) == 6
    assert planned.cost == planned.naive_cost
    assert not {work.id for work in planned.passes} & {cell.id for cell in planned.cells}


def test_a_pass_keeps_its_id_when_lengths_are_added():
    before = {work.id for work in plan(grid={"policy": "dense", "length": [4]}).passes}
    assert {work.id for work in plan(grid={"policy": "dense", "length": [4, 2, 99]}).passes} == before


def test_the_plan_is_plain_json_from_which_cells_can_be_rebuilt():
    planned = plan(seed=[0, 1])
    data = json.loads(json.dumps(planned.to_json(), allow_nan=False))
    assert data["cost"] == {"amount": 64 * 6, "unit": "tokens"}
    cells = {cell["id"]: cell for work in data["passes"] for cell in work["cells"]}
    assert cells == {cell.id: {**vars(cell), "params": dict(cell.params)} for cell in planned.cells}


def test_costs_in_different_units_are_refused():
    class Confused(Streamlike):
        def cost(self, params: Params) -> Cost:
            return Cost(1, params.policy)

    with pytest.raises(ValueError, match="all its costs in one unit"):
        plan(Confused())


# Errors and their places --------------------------------------------------------------------------


def test_all_parameter_errors_are_told_at_once_where_they_were_written():
    message = refusal(
        "defaults: {model: small, dtype: flaot32, scale: wide}\n"  # line 3
        "grid:\n"
        "  policy:\n"
        "    - dense\n"
        "    - windw 8\n"  # 7
        "  length: [1, x, 0, -3]\n"  # 8
        "include:\n"
        "  - {policy: [sink 2+2, sink 2]}\n"  # 10
        "  - {polcy: dense}\n"  # 11
        "tolerances: {nl: 1}\n"  # 12
    )
    found = [line.split(": ", 1) for line in message.splitlines() if line.startswith("s.yaml:")]
    assert [(where.removeprefix("s.yaml:"), text) for where, text in found] == [
        ("3:33", "dtype: 'flaot32' is not one of its values"),
        ("3:49", "scale: should be a valid number, got 'wide'"),
        ("7:7", "policy: unknown cache policy 'windw' (did you mean 'window'?)"),
        ("8:15", "length: should be a valid integer, got 'x'"),
        ("8:18", "length: should be greater than 0, got 0"),
        ("8:21", "length: should be greater than 0, got -3"),
        ("10:5", "parameter 'length' is missing"),
        ("10:25", "policy: cannot read the size of 'sink 2'"),
        ("11:6", "workload 'streamlike' has no parameter 'polcy'"),
        ("12:14", "workload 'streamlike' has no metric 'nl'"),
    ]
    assert "did you mean 'float32'? valid: bfloat16, float32" in message
    assert "did you mean 'policy'? valid: dtype, layers, length, model, policy, scale" in message
    assert "did you mean 'nll'?" in message
    assert "add it to defaults or to this item" in message


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        (
            "defaults: {model: m, policy: dense, length: 4, layers: [1, two]}",
            "3:60",
            "layers: should be a valid integer",
        ),
        ("defaults: {model: m, policy: dense}\ngrid: {length: 0}", "4:16", "greater than 0"),
        (
            "defaults: {model: m, policy: dense}\ngrid: {dtype: [float32]}",
            "4:7",
            "parameter 'length' is missing",
        ),
        ("defaults: {policy: dense, length: 3}", "3:11", "parameter 'model' is missing"),
        ("defaults: {model: m, policy: dense, length: 3, scale: inf}", "3:55", "scale: not a finite number"),
        (
            "defaults: {model: m, policy: dense, length: [4, 8]}",
            "3:45",
            "got [4, 8]\n  hint: a list in defaults is one value; several values are an axis of grid",
        ),
        (
            "defaults: {model: m, policy: dense, length: 3}\ngrid: {seed: [0, 1]}",
            "4:8",
            "has no parameter 'seed'\n  hint: seed is a key of the suite itself",
        ),
        ("defaults: {model: m, policy: dense, length: true}", "3:45", "length: should be a number, got true"),
        ("defaults: {model: m, policy: dense, length: 3}\ngrid: {scale: [1, false]}", "4:19", "got false"),
        (
            "defaults: {model: m, policy: dense, length: 3, layers: [2, true]}",
            "3:56",
            "layers: should be a number",
        ),
        ("defaults: {model: '', policy: dense, length: 3}", "3:19", "at least 1 character"),
        ("defaults: {model: m, policy: dense, length: yes}", "3:45", "got 'yes'"),
        ("defaults: {model: m, policy: , length: 3}", "3:29", "policy: should be text, got nothing"),
        (
            "defaults: {model: m}\ngrid: {policy: [dense, window 200000], length: [4]}",
            "4:24",
            "policy window 200000 is wider than any model (cell policy: 'window 200000', length: 4)",
        ),
        (
            "defaults: {model: m, policy: dense}\ngrid: {length: [4, 2000000]}",
            "4:20",
            "dense cannot hold 2000000",
        ),
        ("grid: {length: [1], policy: [dense]}\nzip: [[length, polcy]]", "4:16", "did you mean 'policy'?"),
        (
            "grid: {length: [1, 2], policy: [dense]}\nzip: [[length, policy]]",
            "4:7",
            "length has 2, policy has 1",
        ),
        ("grid: {length: [1], policy: [dense]}\nzip: [[length, length]]", "4:16", "'length' is named twice"),
        ("defaults: {model: m, policy: dense}\ninclude: [{length: []}]", "4:20", "length: an empty list"),
        ("grid: {length: &n [" + "1," * 400 + "], scale: *n}", "3:7", "spans 160,000 cells; at most 100,000"),
    ],
)
def test_an_error_is_placed(text: str, where: str, words: str):
    message = refusal(text + "\n")
    assert message.startswith(f"s.yaml:{where}: ")
    assert words in message


GRID = "defaults: {model: m}\ngrid: {policy: [dense, window 8], length: [4, 8]}\n"


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        ("exclude: [{polcy: dense}]", "5:12", "no cell has a column 'polcy'\n  hint: did you mean 'policy'?"),
        ("exclude: [{length: '>1'}]", "5:10", "exclude drops them all"),
        ("compare: {axis: polcy, reference: dense}", "5:17", "did you mean 'policy'?"),
        (
            "compare: {axis: policy, reference: dnse}",
            "5:36",
            "no cell has policy = 'dnse'\n  hint: did you mean 'dense'?",
        ),
        ("compare: {axis: length, reference: 5}", "5:36", "no cell has length = 5"),
        ("compare: {axis: dtype, reference: float32}", "5:17", "no cell has a column 'dtype'"),
        ("compare: {axis: kind, reference: dense}", "5:17", "the column 'kind' follows from parameters"),
        ("seed: [0, 1]\ncompare: {axis: seed, reference: 0}", "6:17", "cells are compared within one seed"),
        (
            "compare: {axis: policy, reference: dense}\nexclude: [{policy: dense}]",
            "5:36",
            "no cell has policy",
        ),
    ],
)
def test_exclude_and_compare_must_name_what_is_there(text: str, where: str, words: str):
    message = refusal(GRID + text + "\n")
    assert message.startswith(f"s.yaml:{where}: ")
    assert words in message


def test_a_bad_value_in_many_cells_is_told_once():
    lengths = ", ".join(map(str, range(1, 200)))
    message = refusal(f"defaults: {{model: m}}\ngrid: {{policy: [dnse], length: [{lengths}]}}\n")
    assert message.startswith("s.yaml:4:17: policy: unknown cache policy 'dnse'")
    assert len(message.splitlines()) == 1


# Properties ---------------------------------------------------------------------------------------

policies = st.sampled_from(["dense", "window 4", "window 8", "sink 1+3", "sink 2+2"])
axes = st.fixed_dictionaries(
    {
        "policy": st.lists(policies, min_size=1, max_size=4, unique=True),
        "length": st.lists(st.integers(1, 10_000), min_size=1, max_size=5, unique=True),
        "dtype": st.lists(st.sampled_from(["float32", "bfloat16"]), min_size=1, max_size=2, unique=True),
    }
)
seeds = st.lists(st.integers(0, 9), min_size=1, max_size=2, unique=True)


def places(action: Callable[[], Any]) -> list[str | None]:
    """Where the user errors of ``action`` are; no other exception may come out of it."""
    try:
        action()
    except CombinedError as several:
        return [error.where for error in several.errors]
    except UserError as error:
        return [error.where]
    return []


def ids(planned: Plan) -> set[str]:
    return {cell.id for cell in planned.cells}


@given(axes, seeds, st.randoms(use_true_random=False))
def test_ids_do_not_depend_on_any_order(grid: dict[str, list[Any]], seed: list[int], random: Any):
    shuffled = {
        name: random.sample(values, len(values)) for name, values in random.sample([*grid.items()], 3)
    }
    assert ids(plan(grid=grid, seed=seed)) == ids(plan(grid=shuffled, seed=seed[::-1]))


@given(axes, seeds, st.integers(1, 3), policies, st.integers(1, 10_000))
def test_the_plan_is_the_product_less_what_is_excluded(
    grid: dict[str, list[Any]], seed: list[int], repeat: int, policy: str, limit: int
):
    expected = [
        (p, n)
        for p in grid["policy"]
        for n in grid["length"]
        for _ in grid["dtype"]
        if not (p == policy and n > limit)
    ] * (len(seed) * repeat)
    keys = {
        "grid": grid,
        "seed": seed,
        "repeat": repeat,
        "exclude": [{"policy": policy, "length": f">{limit}"}],
    }
    if not expected:
        with pytest.raises(UserError, match="no cells"):
            plan(**keys)
        return
    assert sorted(row[:2] for row in table(plan(**keys))) == sorted(expected)


@given(axes, seeds, st.integers(1, 2))
def test_passes_partition_the_cells_and_never_cost_more(
    grid: dict[str, list[Any]], seed: list[int], repeat: int
):
    planned = plan(grid=grid, seed=seed, repeat=repeat)
    members = [cell for work in planned.passes for cell in work.cells]
    assert len(members) == len(planned.cells) == len(ids(planned))
    assert {cell.id for cell in members} == ids(planned)
    assert len({work.id for work in planned.passes}) == len(planned.passes)
    for work in planned.passes:
        assert len({json.dumps({**cell.params, "length": 0}) for cell in work.cells}) == 1
        assert len({(cell.seed, cell.repeat) for cell in work.cells}) == 1
        lengths = [cell.params["length"] for cell in work.cells]
        assert lengths == sorted(lengths)
    assert planned.cost.amount <= planned.naive_cost.amount
    if len(grid["length"]) == 1:
        assert planned.cost == planned.naive_cost


@given(axes, policies, st.integers(1, 10_000), st.integers(10, 12))
def test_adding_values_never_renames_cells(grid: dict[str, list[Any]], policy: str, length: int, seed: int):
    before = ids(plan(grid=grid))
    wider = {
        **grid,
        "policy": list(dict.fromkeys([policy, *grid["policy"]])),
        "length": list(dict.fromkeys([length, *grid["length"]])),
    }
    assert before <= ids(plan(grid=wider, seed=[seed, 0], repeat=2))


@given(axes)
def test_grid_and_include_name_the_same_cells(grid: dict[str, list[Any]]):
    assert ids(plan(grid=grid)) == ids(plan(grid={}, include=[grid]))


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=12,
    )
)
def test_whatever_a_parameter_is_given_ends_in_a_plan_or_a_user_error(value: Any):
    for keys in (
        {"defaults": {"model": value}},
        {"grid": {"policy": "dense", "length": value}},
        {"include": [{"policy": value, "length": 4}]},
        {"exclude": [{"length": value}]},
    ):
        try:
            suite = Suite.model_validate(raw_suite(**keys))
        except ValueError:
            continue
        assert None not in places(lambda suite=suite: make_plan(suite, Streamlike()))


@given(st.binary(max_size=80) | st.text(max_size=80).map(str.encode))
def test_whatever_a_file_holds_ends_in_a_suite_or_a_user_error(data: bytes):
    assert all(str(where).startswith("s.yaml") for where in places(lambda: parse_suite(data, "s.yaml")))


def test_a_seed_that_changes_nothing_is_measured_once_and_said():
    class Unseeded(Streamlike):
        def seeded(self, params: Params) -> bool:
            return params.policy != "dense"

    grid = {"policy": ["dense", "window 8"], "length": 16}
    plan = make_plan(Suite.model_validate(raw_suite(grid=grid, seed=[3, 4, 5])), Unseeded())
    assert [(cell.params["policy"], cell.seed) for cell in plan.cells] == [
        ("dense", 3),
        *(("window 8", seed) for seed in (3, 4, 5)),
    ]
    (note,) = [note for note in plan.notes if "seed" in note]
    assert "a seed changes nothing in 1 of the cells, which are measured once, with the first seed" in note
    assert not make_plan(Suite.model_validate(raw_suite(grid=grid, seed=[3])), Unseeded()).notes
    suite = raw_suite(grid=grid, seed=[3, 4, 5], exclude=[{"policy": "dense", "seed": 3}])
    (kept, *_) = make_plan(Suite.model_validate(suite), Unseeded()).cells
    assert (kept.params["policy"], kept.seed) == ("dense", 4), "the seed that is left measures it"


def test_streams_of_texts_do_not_depend_on_a_seed():
    from ddposink.workloads.stream import StreamParams, StreamWorkload

    text = StreamParams(model="smollm2-135m", policy="dense", length=64, corpus="novels")
    drawn = StreamParams(model="random:smollm2-135m", policy="dense", length=64)
    assert not StreamWorkload().seeded(text)
    assert StreamWorkload().seeded(drawn)


# Paths --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ('"file:~/x"', "policy: ~/ is not expanded in a suite"),
        ('"~me/x"', "policy: ~me/ is not expanded in a suite"),
        ('"file:${HOME}/x"', "policy: ${HOME} is not expanded in a suite"),
        ('"path:$HOME/x"', "policy: $HOME is not expanded in a suite"),
    ],
)
def test_what_a_shell_would_expand_is_refused_with_its_place_and_what_to_write(monkeypatch, value, told):
    monkeypatch.setenv("HOME", "/home/me")
    found = refusal(f"defaults: {{length: 8}}\ngrid:\n  policy: [dense, {value}]\n")
    assert found.startswith(f"s.yaml:5:19: {told}")
    assert "write the path in full" in found
    assert "~me" in value or "/home/me/x, or as seen from where you run" in found


@pytest.mark.parametrize("value", ["a~/b", "x$", "1 $ or 2 $"])
def test_what_no_shell_would_expand_is_left_alone(value):
    assert "expanded" not in refusal(f'defaults: {{policy: "{value}", length: 8}}\n')
