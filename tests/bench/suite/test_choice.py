"""``--only``: what the tool has printed names a cell, whatever characters it holds."""

import pytest

from bench.errors import UserError
from bench.suite.choice import choose
from bench.workload import Cell, Cost, Pass

LABELS = ['a (measure=["quality"])', "a (measure=[1])", "b * 4", "b x 4", "c? 8"]
CELLS = tuple(Cell(f"{i:016x}", {}, label, seed=i % 2, repeat=0) for i, label in enumerate(LABELS))
PASSES = (Pass("p", "toy", CELLS[:2], Cost(1, "")), Pass("q", "toy", CELLS[2:], Cost(1, "")))


def chosen(*wanted, passes=PASSES):
    return [cell.label for work in choose(passes, wanted) for cell in work.cells]


@pytest.mark.parametrize("cell", CELLS, ids=LABELS)
def test_a_label_or_an_id_names_its_cell_and_no_other(cell):
    assert chosen(cell.label) == [cell.label]
    assert chosen(cell.id) == [cell.label]
    assert chosen(f"{cell.label.upper()}, seed {cell.seed}") == [cell.label]


def test_only_stars_and_question_marks_are_special_in_a_pattern():
    assert chosen("*measure=[*]*") == LABELS[:2]
    assert chosen("b ? 4") == LABELS[2:4]
    assert chosen() == LABELS


def test_the_end_of_a_label_names_it_if_it_is_the_end_of_no_other():
    assert chosen("* 4") == ["b * 4", "b x 4"]  # a pattern first
    assert chosen("x 4") == ["b x 4"]
    with pytest.raises(UserError, match="'4' matches no cell"):
        chosen("4")


def test_a_slip_is_answered_with_the_nearest_label():
    with pytest.raises(UserError, match=r"matches no cell\n  hint: did you mean 'a \(measure=\[1\]\)'"):
        chosen("a (measure=1)")


def test_several_wishes_are_all_granted_and_each_must_name_a_cell():
    """The last one alone was, without a word."""
    assert chosen("c*", "b x 4") == ["b x 4", "c? 8"]
    with pytest.raises(UserError, match="--only 'd' matches no cell"):
        chosen("c*", "d")


def test_a_pattern_may_begin_where_labels_begin_to_differ():
    """Help said --only 'sink*', and every label begins with the model."""
    labels = ["tiny · dense · 8", "tiny · sink 4+4 · 8", "tiny · h2o 8 sinks=4 · 8"]
    cells = tuple(Cell(f"{i:016x}", {}, label, seed=0, repeat=0) for i, label in enumerate(labels))
    passes = (Pass("p", "toy", cells, Cost(1, "")),)
    assert chosen("sink*", passes=passes) == labels[1:2]
    assert chosen("SINK 4+4 * 8", "dense*", passes=passes) == labels[:2]
    assert chosen("*sink*", passes=passes) == labels[1:]
