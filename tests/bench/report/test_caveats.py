from bench.report.caveats import Caveats


def test_a_disturbed_record_without_a_share_is_counted():
    caveats = Caveats()
    caveats.add("a", {"disturbed": True})
    caveats.add("b", {"disturbed": True, "cpu_share": 0.25})
    (said,) = caveats.sentences()
    assert said.startswith("2 cells got less than")
    assert "worst: b, 25%" in said
