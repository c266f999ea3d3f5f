from benchmarks.finding import Measured
from benchmarks.floor import Products, Shape
from benchmarks.timing import Timings

SHAPE = Shape(width=2, layers=3, heads=1, kv_heads=1, head_dim=2, ffn=4, vocabulary=5)


def test_distance_from_the_floor_is_the_median_over_the_rounds():
    # products: 100 operations in 1, 2 and 1 s; 300 operations then take 3, 6 and 3 s at least: 2, 1.5 and 4 times
    timings = Timings({"run": (6.0, 9.0, 12.0)})
    measured = Measured(timings, Products(SHAPE, rows=1, flops=100, run=lambda: None), [1.0, 2.0, 1.0])
    assert measured.times_floor(300, "run") == 2.0
    assert "run 2.00 times the floor" in measured.floor_line(300, "run")


def test_products_are_timed_before_and_after_every_run():
    order = []
    products = Products(SHAPE, rows=1, flops=100, run=lambda: order.append("p"))
    runs = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    measured = Measured.of(products, runs, repetitions=2)
    assert order == ["p", "a", "p", "b", "p"] * 2
    assert set(measured.timings.seconds) == {"a", "b"}
    assert len(measured.product_s) == 2
