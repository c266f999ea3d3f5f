import pytest

from benchmarks import history
from benchmarks.history import Measurement


def line(setting="a", **ratios):
    return Measurement("2026-01-31", "v1", "some machine", setting, ratios)


def test_what_is_appended_is_read_back_in_order(tmp_path):
    path = tmp_path / "history.jsonl"
    first, second = line(x=1.5), line(x=1.25, y=2.0)
    history.append(first, path)
    history.append(second, path)
    assert history.read(path) == [first, second]


def test_the_newest_measurement_of_a_setting_counts(tmp_path):
    path = tmp_path / "history.jsonl"
    for measurement in (line("a", x=1.0), line("b", x=2.0), line("a", x=3.0), line("b", x=4.0)):
        history.append(measurement, path)
    newest = history.latest("a", path)
    assert newest is not None
    assert newest.ratios == {"x": 3.0}


def test_without_a_file_nothing_is_recorded(tmp_path):
    assert history.read(tmp_path / "none.jsonl") == []
    assert history.latest("a", tmp_path / "none.jsonl") is None


@pytest.mark.parametrize("text", ["{", '{"date": "2026-01-31"}', "[1]"])
def test_a_broken_line_is_named(tmp_path, text):
    path = tmp_path / "history.jsonl"
    history.append(line(x=1.0), path)
    path.write_text(path.read_text() + text + "\n")
    with pytest.raises(ValueError, match=r"history\.jsonl, line 2"):
        history.read(path)


def test_a_measurement_made_now_names_sources_and_machine():
    measurement = history.measured("a", {"x": 1.23456})
    assert measurement.ratios == {"x": 1.235}
    assert measurement.version
    assert "torch" in measurement.machine


def test_the_recorded_history_can_be_read():
    assert all(ratio > 0 for measurement in history.read() for ratio in measurement.ratios.values())
