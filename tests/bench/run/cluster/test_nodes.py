"""How nodes are shared out, without any cluster."""

import pytest

from bench.errors import UserError
from bench.run.cluster.agent import visible
from bench.run.cluster.nodes import Node, alike, alive, fitting, places_on, share
from bench.suite.model import Resources

GIB = 2**30


def node(name="a", **has):
    return Node(name, f"host-{name}", "10.0.0.1", {"CPU": 8.0, "memory": 32.0 * GIB} | has)


def needs(**values):
    return Resources.model_validate(values)


@pytest.mark.parametrize(
    ("jobs", "asked", "has", "places", "cpus"),
    [
        (1, {}, {}, 1, 8),  # alone on its node, whatever it asks for
        (1, {"cpus": 2}, {}, 1, 8),
        (2, {}, {}, 2, 4),
        (3, {"cpus": 4}, {}, 2, 4),  # as many as fit
        (16, {}, {}, 8, 1),
        (8, {"gpus": 1}, {"GPU": 2.0}, 2, 4),  # no two on one GPU
        (4, {"memory": "16GiB"}, {}, 2, 4),
        (1, {"custom": {"h100": 1}}, {"h100": 1.0}, 1, 8),
        (1, {"custom": {"h100": 1}}, {}, 0, None),
        (1, {"gpus": 1}, {}, 0, None),
        (1, {"cpus": 9}, {}, 0, None),
    ],
)
def test_how_many_passes_a_node_takes_and_what_each_takes_of_it(jobs, asked, has, places, cpus):
    one = node(**has)
    assert places_on(one, needs(**asked), jobs) == places
    if places:
        taken = share(one, needs(**asked), places)
        assert taken["CPU"] == cpus
        assert all(amount * places <= one.has[name] for name, amount in taken.items())
        # Nobody else's pass of a whole CPU gets in beside them.
        assert one.has["CPU"] - taken["CPU"] * places < 1 or places > 1


def test_a_node_without_cpus_takes_none():
    assert places_on(node(CPU=0.0), needs(), 1) == 0


def test_what_no_node_has_is_said_with_what_there_is():
    with pytest.raises(UserError) as caught:
        fitting([node(), node("b", GPU=1.0)], needs(gpus=2, memory="64GiB"), 1)
    assert str(caught.value) == (
        "no node of the cluster has what a pass needs (1 CPU, 2 GPU, 64.0 GiB memory); "
        "of 2 nodes none has more than 8 CPU, 1 GPU, 32.0 GiB memory\n"
        "  hint: ask for less under resources: in the suite, or add a node (ray start --address=…)"
    )


def test_dead_nodes_do_not_count():
    listed = [
        {
            "NodeID": id,
            "NodeManagerHostname": "h",
            "NodeManagerAddress": "1",
            "Resources": {"CPU": 1},
            "Alive": up,
        }
        for id, up in (("b", True), ("a", True), ("c", False))
    ]
    assert [found.id for found in alive(listed)] == ["a", "b"]


def test_nodes_that_differ_are_told_apart_and_never_mixed():
    big = {"cpu": {"model": "x", "cores": 8}, "gpus": [{"name": "H100", "driver": "1"}]}
    small = {"cpu": {"model": "x", "cores": 4}, "gpus": [{"name": "A100", "driver": "1"}]}
    chosen, others = alike({"a": small, "b": big, "c": big})
    assert chosen == ["b", "c"]
    assert others == {"a": ["cpu.cores", "gpus"]}
    assert alike({"a": small, "b": big})[0] == ["a"]  # of equally many the first


@pytest.mark.parametrize(
    ("setting", "seen"),
    [(None, ("u0", "u1", "u2")), ("", ()), ("2,0", ("u2", "u0")), ("GPU-x", ("GPU-x",))],
)
def test_devices_are_named_by_uuid(setting, seen):
    assert visible(["u0", "u1", "u2"], setting) == seen
