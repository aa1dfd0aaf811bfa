"""A run folder that is a link out of the results is not written through."""

import pytest

from bench.errors import UserError
from bench.results.folder import choose_run, leads_out, remove_partial
from bench.suite.request import find_run


def test_a_run_that_leads_out_is_told_and_left_alone(tmp_path):
    results, elsewhere = tmp_path / "results", tmp_path / "elsewhere"
    first = choose_run(results, "s", {"id": "e"}, {}, "1")
    assert not first.resumed
    assert choose_run(results, "s", {"id": "e"}, {}, "1").resumed
    first.folder.rename(elsewhere)
    first.folder.symlink_to(elsewhere)
    before = {path: path.stat().st_mtime_ns for path in elsewhere.rglob("*")}
    found = choose_run(results, "s", {"id": "e"}, {}, "1")
    assert not found.resumed
    assert found.folder != first.folder
    assert (
        found.why
        == f"the newest run {first.folder.name} is a link that leads out of {results}, to {elsewhere}"
    )
    assert {path: path.stat().st_mtime_ns for path in elsewhere.rglob("*")} == before


def test_the_newest_run_is_named_if_it_leads_out(tmp_path):
    results, elsewhere = tmp_path / "results", tmp_path / "elsewhere"
    run = choose_run(results, "s", {"id": "e"}, {}, "1").folder
    run.rename(elsewhere)
    run.symlink_to(elsewhere)
    with pytest.raises(UserError, match="leads out of"):
        find_run("s", results)
    (elsewhere / "records.jsonl").touch()
    assert find_run(str(elsewhere), results) == elsewhere


def test_results_that_are_a_link_themselves_are_the_users_choice(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "results").symlink_to(tmp_path / "disk")
    run = choose_run(tmp_path / "results", "s", {"id": "e"}, {}, "1").folder
    assert leads_out(run) is None
    assert choose_run(tmp_path / "results", "s", {"id": "e"}, {}, "1").resumed


def test_half_written_files_of_the_dead_are_removed_and_no_others(tmp_path):
    kept = [".env.json.1", ".hidden.txt", ".README.md", "records.jsonl", ".x.99999999999999999999"]
    for name in (*kept, ".env.json.999999999"):
        (tmp_path / name).touch()
    remove_partial(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*kept}
