"""A real cluster of three raylets for each file of tests, and runs on it."""

import pytest


@pytest.fixture(scope="module")
def cluster():
    pytest.importorskip("ray", reason="ray is not installed (pip install 'ddposink[ray]')")
    from helpers.raycluster import RayCluster

    made = RayCluster()
    try:
        yield made
    finally:
        made.close()
        assert made.family() == []


@pytest.fixture
def runs(tmp_path, cluster):
    from helpers.rayruns import Runs

    made = Runs(tmp_path, cluster)
    yield made
    for process in made.started:  # if the test has failed
        process.kill()
