from benchmarks.timing import Timings, in_turn


def test_ratio_is_the_median_over_rounds():
    # Rounds 4/2, 9/3, 8/1: 2, 3, 8.
    timings = Timings({"fast": (2.0, 3.0, 1.0), "slow": (4.0, 9.0, 8.0)})
    assert timings.ratio("fast", "slow") == 3.0
    assert "| fast | 2.00 (1.00 to 3.00) | 3.00 |" in timings.table("slow")


def test_runs_are_taken_in_turn():
    order = []
    timings = in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repetitions=2)
    assert order == ["a", "b", "a", "b"]
    assert [len(seconds) for seconds in timings.seconds.values()] == [2, 2]
