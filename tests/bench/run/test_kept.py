"""What passes have kept is there for the next attempt, whatever measured before and measures now."""

from bench.run.context import SCRATCH
from bench.run.kept import JOBS, ROOT, gather


def put(folder, text):
    folder.mkdir(parents=True)
    (folder / "at").write_text(text)


def test_what_a_killed_driver_has_left_is_gathered(tmp_path):
    """Of jobs, and of copies from nodes between two renames."""
    put(tmp_path / SCRATCH / "a", "before the job")
    put(tmp_path / JOBS / "t1" / ROOT / SCRATCH / "a", "of the job")
    put(tmp_path / JOBS / "t2" / ROOT / SCRATCH / "b", "of another")
    put(tmp_path / SCRATCH / "c.old", "between two renames")
    put(tmp_path / SCRATCH / "c.part", "not whole")
    put(tmp_path / SCRATCH / "d", "new")
    put(tmp_path / SCRATCH / "d.old", "old")
    gather(tmp_path)
    found = {path.parent.name: path.read_text() for path in (tmp_path / SCRATCH).glob("*/at")}
    assert found == {"a": "of the job", "b": "of another", "c": "between two renames", "d": "new"}
    assert [path.name for path in tmp_path.iterdir()] == [SCRATCH]
