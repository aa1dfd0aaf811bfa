"""Views of runs that tune something: a matrix of metrics, paths, kept arrays and pictures."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from bench.report import render
from bench.report.contents import contents
from bench.report.control import controls_metric, difference, over_control
from bench.report.frames import load
from bench.report.matrix import _paint, matrix_rows, matrix_table, members
from bench.report.panels import NothingToDraw, line_panels
from bench.report.paths import scatter_panels, trace_panels
from bench.report.plots import draw
from bench.report.web.charts import chart
from bench.results.record import Value
from bench.stats import t_interval
from bench.workload import View
from helpers import tuned
from helpers.synthetic import write_run
from helpers.tuning import REWARDS, STEPS, VIEWS, tuning_run, workload

VIEW = {view.name: view for view in VIEWS}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return load(tuning_run(tmp_path_factory.mktemp("tuning") / "synthetic" / "run"), workload())


def test_the_matrix_shows_the_last_step_and_which_effects_are_certain(data):
    figure = draw(VIEW["matrix"], data).figure
    texts = {
        (round(t.get_position()[1] - 0.5), round(t.get_position()[0] - 0.5)): t for t in figure.axes[0].texts
    }
    assert len(texts) == 9
    index = next(i for i, r in enumerate(data.records) if r.cell == f"ours-0-{STEPS[-1]}")
    shown = float(texts[0, 0].get_text().replace("−", "-"))
    assert shown == pytest.approx(data.records[index].metrics["effect_small_files"].value, abs=0.06)
    assert texts[0, 0].get_fontweight() == "bold"
    assert texts[1, 2].get_fontweight() == "normal"  # 0.02 ± 0.3/√12
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == list(REWARDS)


def test_the_matrix_table_has_every_step_count_with_intervals(data):
    table = matrix_table(data, VIEW["matrix"])
    assert len(table.rows) == len(REWARDS) * len(STEPS)
    last = next(r for r in table.rows if (r["reward"].value, r["steps"].value) == (REWARDS[0], STEPS[-1]))
    own = "effect_small_files"
    assert last[f"{own}.low"].value < last[own].value < last[f"{own}.high"].value
    assert "[" in last[own].text


def test_a_family_of_metrics_is_what_begins_with_its_name(data):
    assert members(data, VIEW["matrix"]) == [m.name for m in workload().metrics[2:]]


def test_a_fact_that_grows_with_the_prefix_axis_can_be_an_x_axis(data):
    panels = line_panels(data, VIEW["queries"])
    line = panels.panels[0].lines[REWARDS[0]]
    assert list(line.x) == [steps * 32 for steps in STEPS]
    assert line.low[-1] < line.y[-1] < line.high[-1]
    assert "Bars: 95 % interval of the mean over samples." in panels.notes


def test_a_path_follows_the_steps_and_not_its_x(data):
    line = scatter_panels(data, VIEW["path"]).panels[0].lines[REWARDS[0]]
    cells = [next(r for r in data.records if r.cell == f"ours-0-{steps}") for steps in STEPS]
    assert list(line.x) == pytest.approx([c.metrics["effect"].value for c in cells])
    assert list(line.y) == pytest.approx([c.metrics["others_effect"].value for c in cells])


def test_a_trace_draws_what_the_furthest_cell_has_kept(data):
    panels = trace_panels(data, VIEW["trace"]).panels
    assert [panel.title for panel in panels] == list(REWARDS)
    assert list(panels[0].lines) == ["ours", "peer"]
    assert list(panels[0].lines["ours"].x) == list(range(1, STEPS[-1] + 1))
    assert np.allclose(panels[1].lines["ours"].y, np.log(np.arange(1, 51)) + 1)


FAMILY = View("times", "trace", "Time", "step", "time *", "step", "seconds", "engine", series="times")


def test_a_family_of_arrays_is_a_line_each_and_a_panel_for_each_hue(tmp_path):
    folder = tuning_run(tmp_path / "synthetic" / "run")
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    for record in records:
        x = np.arange(1.0, 4.0)
        place = folder / "artifacts" / record["pass_id"] / f"times-{record['columns']['steps']}.npz"
        more = {"time reward": x * np.nan if record["pass_id"] == "ours-1" else x / 2}
        np.savez(place, step=x, **{"time sampling": x * 2, "timer": x}, **more)
        path = place.relative_to(folder).as_posix()
        record["artifacts"].append({"path": path, "bytes": place.stat().st_size, "sha256": ""})
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    data = load(folder, workload())
    panels = trace_panels(data, FAMILY).panels
    lines = {panel.title: {name: line.y.tolist() for name, line in panel.lines.items()} for panel in panels}
    both = {"sampling": [2, 4, 6], "reward": [0.5, 1, 1.5]}
    assert lines == {
        f"ours, {REWARDS[0]}": both, f"peer, {REWARDS[0]}": both,
        f"ours, {REWARDS[1]}": {"sampling": [2, 4, 6]}, f"ours, {REWARDS[2]}": both,
    }  # fmt: skip
    drawn = draw(FAMILY, data)
    assert drawn.alt.endswith(": sampling, reward")
    colours = [line.get_color() for line in drawn.figure.axes[0].lines[:2]]
    assert colours[0] != colours[1]
    pens = [line["pen"] for line in chart(FAMILY, data)["panels"][0]["lines"]]
    assert pens == [0, 1]
    nothing = dataclasses.replace(FAMILY, y="other *")
    assert draw(nothing, data).why == "no measured cell has kept other in times"


def test_pictures_of_all_before_and_after_and_of_one_in_between(data):
    one = dataclasses.replace(VIEW["pictures"], where={**VIEW["pictures"].where, "reward": REWARDS[0]})
    overview, first = (draw(view, data).figure for view in (VIEW["pictures"], one))
    assert [t.get_text().split("\n")[-1] for t in overview.texts if "steps" in t.get_text()] == [
        "steps 0",
        *["steps 50"] * 3,
    ]
    assert [t.get_text() for t in first.texts if t.get_text().startswith("steps")] == [
        "steps 0",
        "steps 10",
        "steps 50",
    ]
    shown = first.axes[2].images[0].get_array()
    assert np.allclose(shown[0, 0, :3] * 255, [60, 50, 120], atol=1)


def test_pictures_of_every_setting_and_what_they_began_with_once(data):
    both = dataclasses.replace(VIEW["pictures"], where={})
    labels = [t.get_text() for t in draw(both, data).figure.texts if "steps" in t.get_text()]
    settings = {(record.params["reward"], record.params["engine"]) for record in data.records}
    assert len({engine for _, engine in settings}) == 2
    assert len([text for text in labels if "steps 0" in text]) == 1
    assert len([text for text in labels if "steps 50" in text]) == len(settings)


def test_pictures_that_are_gone_are_a_reason_and_no_crash(tmp_path):
    folder = tuning_run(tmp_path / "synthetic" / "run")
    for path in folder.glob("artifacts/*/*"):
        path.unlink()
    data = load(folder, workload())
    assert draw(VIEW["pictures"], data).why == "no measured cell has kept pictures"
    assert draw(VIEW["trace"], data).why == "no measured cell has kept train"


def test_the_page_has_all_of_it(data):
    text = render(data.folder, workload()).read_text()
    for name in ("matrix.png", "pictures.webp", "steps.png", "path.png", "trace.png"):
        assert f"plots/{name}" in text
        assert (data.folder / "plots" / name).exists()
    assert sorted(p.stem for p in data.folder.glob("plots/*pictures*")) == ["pictures"]  # no SVG around it
    assert text.index("plots/pictures.webp") < text.index("plots/matrix.png")
    assert (data.folder / "tables" / "matrix-matrix.csv").exists()
    assert "## Trained on, scored on" in text


def test_a_view_of_a_metric_nobody_has_is_no_error(data):
    view = dataclasses.replace(VIEW["matrix"], y="cost_")
    assert draw(view, data).why == "no cell has a metric cost_…"
    assert matrix_table(data, view) is None


def test_values_below_zero_are_drawn_where_they_are(data, monkeypatch):
    array = type(data).array
    lowered = lambda self, i, series, name: array(self, i, series, name) - 9 * (name == "reward")  # noqa: E731
    monkeypatch.setattr(type(data), "array", lowered)
    axes = draw(VIEW["trace"], data).figure.axes[0]
    drawn = next(line for line in axes.lines if line.get_label() == "ours")
    assert np.allclose(drawn.get_ydata(), np.log(np.arange(1, 51)) - 9)


def test_a_control_is_subtracted_sample_by_sample(data):
    view = dataclasses.replace(VIEW["matrix"], control=("reward", REWARDS[-1]))
    table = matrix_table(data, view)
    assert {row["reward"].value for row in table.rows} == set(REWARDS[:-1])
    cells = {r.cell: r.metrics["effect_small_files"] for r in data.records}
    own, control = (cells[f"ours-{place}-{STEPS[-1]}"] for place in (0, len(REWARDS) - 1))
    last = next(r for r in table.rows if (r["reward"].value, r["steps"].value) == (REWARDS[0], STEPS[-1]))
    gaps = np.subtract(own.samples, control.samples)
    assert last["effect_small_files"].value == pytest.approx(gaps.mean())
    limits = t_interval(gaps)
    assert last["effect_small_files.low"].value == pytest.approx(limits.low)
    figure = draw(view, data).figure
    drawn = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert drawn == list(REWARDS[:-1])
    said = "Each number is the difference to the run with reward = likeness and the same seed"
    assert said in " ".join(t.get_text() for t in figure.texts)
    assert table.notes[0].startswith(said)


def test_lines_are_drawn_beyond_a_control(data):
    view = dataclasses.replace(VIEW["steps"], control=("reward", REWARDS[-1]))
    found = contents(view, data)
    lines = found.panels[0].lines
    assert set(lines) == set(REWARDS[:-1])
    cells = {r.cell: r.metrics[view.y] for r in data.records}
    for place, name in enumerate(REWARDS[:-1]):
        gaps = [
            np.subtract(
                cells[f"ours-{place}-{n}"].samples, cells[f"ours-{len(REWARDS) - 1}-{n}"].samples
            ).mean()
            for n in STEPS
        ]
        assert lines[name].y == pytest.approx(gaps)
    assert any("the difference to the run with reward = likeness" in note for note in found.notes)


def test_a_control_may_have_another_metric(data):
    """What training on nothing does to the reward that a cell was trained on is not its own effect."""
    view = dataclasses.replace(VIEW["steps"], control=("reward", REWARDS[-1]), against="effect_{reward}")
    assert controls_metric(view, "effect", {"reward": "brisque"}) == "effect_brisque"
    assert controls_metric(view, "vendi", {"reward": "brisque"}) == "vendi"
    other = dataclasses.replace(view, against="effect_small_files")
    line = contents(other, data).panels[0].lines[REWARDS[0]]
    cells = {r.cell: r.metrics for r in data.records}
    last = f"-{STEPS[-1]}"
    gap = np.subtract(
        cells["ours-0" + last]["effect"].samples,
        cells[f"ours-{len(REWARDS) - 1}{last}"]["effect_small_files"].samples,
    )
    assert line.y[-1] == pytest.approx(gap.mean())
    with pytest.raises(NothingToDraw, match="the control has no value"):
        contents(view, data)  # no metric is called "effect_small files"


def test_a_comparison_of_one_is_not_drawn(data):
    view = dataclasses.replace(VIEW["steps"], compares=True)
    assert contents(view, data).panels
    alone = dataclasses.replace(view, where={"reward": REWARDS[0]})
    with pytest.raises(NothingToDraw, match="there is only one reward"):
        contents(alone, data)


def test_a_control_that_was_not_measured_is_said(data):
    view = dataclasses.replace(VIEW["matrix"], control=("reward", "absent"))
    assert matrix_table(data, view) is None
    with pytest.raises(NothingToDraw, match="no measured cell has a partner with reward = absent"):
        over_control(view, data)


def test_without_paired_samples_there_is_no_difference():
    one, other = Value(value=1.0, unit="SD", samples=[1.0, 1.0]), Value(value=0.0, unit="SD", samples=[0.0])
    assert difference(one, other).reason == "cell and control have no samples to pair"
    assert difference(one, None).reason == "the control has no value"


def trainings(folder, seeds):
    """Two rewards, their effects +1 and 0.1 with 0.4 between seeds and 0.2 between prompts."""
    rng, records = np.random.default_rng(0), []
    for reward, mean in (("red", 2.0), ("blue", 0.1)):
        for seed in range(seeds):
            made = tuned._record(reward, 50, 0, [])
            samples = (mean + [0.4, -0.4, 0.1][seed] + rng.normal(0, 0.2, 40)).tolist()
            made |= {"seed": seed, "cell": f"{reward}-{seed}", "pass_id": f"{reward}-{seed}"}
            made["metrics"] = {
                "effect_red": {"value": float(np.mean(samples)), "unit": "SD", "samples": samples}
            }
            records.append(made)
    words = tuned.Tuned()
    words.replicate, words.sample = "training", "prompt"
    return load(write_run(folder, records, suite={"workload": "tuned", "compare": None}), words)


MATRIX = View("m", "matrix", "t", "steps", "effect_", "scored on", "effect", hue="reward")


def test_one_training_claims_nothing_and_says_so(tmp_path):
    figure = draw(MATRIX, trainings(tmp_path, 1)).figure
    assert [text.get_fontweight() for text in figure.axes[0].texts] == ["normal"] * 2
    words = " ".join(text.get_text() for text in figure.texts).replace("\n", " ")
    assert "Each row is one training, and what it says is about this training" in words
    (table,) = [matrix_table(trainings(tmp_path / "again", 1), MATRIX)]
    assert table.notes == ["Limits: 95 % interval over prompts of this training."]


def test_an_interval_of_several_trainings_covers_trainings(tmp_path):
    data = trainings(tmp_path, 3)
    figure = draw(MATRIX, data).figure
    assert [text.get_fontweight() for text in figure.axes[0].texts] == ["bold", "normal"]
    words = " ".join(text.get_text() for text in figure.texts).replace("\n", " ")
    assert "Means of 3 trainings (seeds)." in words
    assert "Bold: the 95 % interval over trainings and prompts excludes zero." in words
    table = matrix_table(data, MATRIX)
    assert [row["seeds"].value for row in table.rows] == [3, 3]
    blue = table.rows[1]
    assert blue["effect_red.low"].value < 0 < blue["effect_red.high"].value
    prompts = t_interval(np.mean([r.metrics["effect_red"].samples for r in data.records[3:]], axis=0))
    assert prompts.low > 0  # what prompts alone would have claimed
    assert table.notes == ["Limits: 95 % interval over 3 trainings and their prompts."]


def test_repeats_of_a_seed_are_no_trainings(tmp_path):
    data = trainings(tmp_path, 2)
    twice = [
        r.model_copy(update={"cell": f"{r.cell}r", "pass_id": f"{r.pass_id}r", "repeat": 1})
        for r in data.records
    ]
    lines = [record.model_dump(mode="json") for record in [*data.records, *twice]]
    again = load(
        write_run(tmp_path / "b", lines, suite={"workload": "tuned", "compare": None}), data_words(data)
    )
    one, two = (matrix_table(found, MATRIX).rows[0] for found in (data, again))
    assert one["effect_red.high"].value == pytest.approx(two["effect_red.high"].value)


def test_captions_say_how_many_trainings_are_behind_a_line_a_mark_and_a_row(tmp_path):
    line = View("l", "line", "t", "steps", "effect_red", "x", "y", hue="reward", marks=("over_optimised_at",))
    for seeds, said, mark in (
        (1, "Each line is one training: another seed may say otherwise.", "8 (this training)"),
        (3, "Each line is the mean of 3 trainings (seeds).", "8 (3 of 3 trainings)"),
    ):
        data = trainings(tmp_path / str(seeds), seeds)
        data.frame["over_optimised_at"] = 8
        notes = line_panels(data, line).notes
        assert said in notes
        assert f"Over optimised: red at {mark}, blue at {mark}." in notes
        path = View("s", "scatter", "t", "effect_red", "effect_red", "x", "y", hue="reward")
        assert said in scatter_panels(data, path).notes
    lost = trainings(tmp_path / "lost", 3)
    lost.frame = lost.frame.iloc[:-2]
    assert [name for name, _ in matrix_rows(lost, MATRIX, lost.frame)] == [
        "red · 3 trainings",
        "blue · 1 training",
    ]


def test_panels_of_a_matrix_share_their_rows(tmp_path):
    """Axes are shared: a panel with fewer rows would put its names on the rows of the others."""
    data = trainings(tmp_path, 1)
    lines = [r.model_dump(mode="json") for r in data.records]
    half = json.loads(json.dumps(lines[1]))  # blue alone, at another learning rate
    half |= {"cell": "half", "pass_id": "half", "params": half["params"] | {"rate": 0.5}}
    lines = [line | {"params": line["params"] | {"rate": 1.0}} for line in lines]
    folder = write_run(tmp_path / "b", [*lines, half], suite={"workload": "tuned", "compare": None})
    data = load(folder, data_words(data))
    panels = draw(MATRIX, data).figure.axes
    assert [axes.get_title(loc="left") for axes in panels] == ["rate 1.000", "rate 0.5000"]
    for axes, found in zip(panels, ({"red": lines[0], "blue": lines[1]}, {"blue": half}), strict=True):
        rows = {tick.get_text(): i for i, tick in enumerate(panels[0].get_yticklabels())}
        texts = {int(t.get_position()[1]): float(t.get_text().replace("−", "-")) for t in axes.texts}
        wanted = {rows[name]: line["metrics"]["effect_red"]["value"] for name, line in found.items()}
        assert texts == pytest.approx(wanted, abs=0.06)


def data_words(data):
    words = tuned.Tuned()
    words.replicate, words.sample = data.words.replicate, data.words.sample
    return words


def test_a_panel_of_a_matrix_without_any_number_is_blank_and_nothing_more(recwarn):
    """Where the only training of a panel was killed, seaborn warned on the terminal."""
    figure = Figure()
    axes = figure.subplots()
    _paint(axes, np.full((2, 2), np.nan), np.zeros((2, 2), bool), Normalize(-1, 1))
    assert [text.get_text() for text in axes.texts] == []
    assert not recwarn.list


def test_every_link_of_the_page_leads_to_a_file(data):
    text = render(data.folder, workload()).read_text()
    links = set(re.findall(r"\((plots/[^)]+)\)", text))
    assert any(link.endswith(".svg") for link in links)
    assert [link for link in sorted(links) if not (data.folder / link).exists()] == []
