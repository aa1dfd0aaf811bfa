from __future__ import annotations

from pathlib import Path

import pytest

from bench import registry
from bench.errors import UserError
from bench.workload import Metric
from helpers.streamlike import Streamlike


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    registry._installed.cache_clear()
    yield
    registry._installed.cache_clear()


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, entry: str) -> None:
    """What an installed plug-in leaves behind, on the import path."""
    info = folder / "plugin-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[bench.workloads]\n{entry}\n")
    monkeypatch.syspath_prepend(str(folder))


def test_stream_is_known_without_installation_and_not_imported():
    assert registry.targets()["stream"] == "ddposink.workloads.stream:StreamWorkload"


def test_a_registered_workload_is_loaded_and_instantiated():
    registry.register("toy", "helpers.streamlike:Streamlike")
    assert isinstance(registry.load("toy"), Streamlike)


def test_registering_the_same_again_is_harmless_and_something_else_is_refused():
    registry.register("toy", "helpers.streamlike:Streamlike")
    registry.register("toy", "helpers.streamlike:Streamlike")
    with pytest.raises(
        UserError, match=r"'toy' is claimed by both helpers\.streamlike:Streamlike and other:Thing"
    ):
        registry.register("toy", "other:Thing")
    with pytest.raises(UserError, match="'stream' is claimed by both"):
        registry.register("stream", "other:Thing")


def test_entry_points_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    install(tmp_path, monkeypatch, "plugged = helpers.streamlike:Streamlike")
    assert isinstance(registry.load("plugged"), Streamlike)


def test_an_entry_point_cannot_take_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    install(tmp_path, monkeypatch, "stream = helpers.streamlike:Streamlike")
    with pytest.raises(UserError, match="'stream' is claimed by both ddposink"):
        registry.targets()


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UserError) as caught:
        registry.load("steam", where="s.yaml:2:11")
    assert caught.value.where == "s.yaml:2:11"
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("did you mean 'stream'?")


@pytest.mark.parametrize("target", ["no_such_module:Thing", "helpers.streamlike:NoSuchThing"])
def test_a_target_that_cannot_be_imported_is_an_error_of_the_user(target: str):
    registry.register("broken", target)
    with pytest.raises(UserError, match=r"workload 'broken' .* cannot be imported"):
        registry.load("broken")


class Confused(Streamlike):
    metrics = (*Streamlike.metrics, Metric("scale", "size of the scale", ""))


def test_a_metric_with_the_name_of_a_parameter_is_refused():
    registry.register("confused", f"{__name__}:Confused")
    with pytest.raises(UserError, match=r"workload 'confused' .*: scale is both a metric and a parameter"):
        registry.load("confused")
