import pytest

from benchmarks import history, names
from benchmarks.finding import Finding
from benchmarks.regression import check, checks, fallen, main


@pytest.fixture
def recorded(tmp_path):
    path = tmp_path / "history.jsonl"
    history.append(history.measured("regression: case", {"speed": 2.0, "floor": 0.6}), path)
    return path


def finding(speed, *differences, floor=0.6):
    return Finding("case", {"speed": speed, "floor": floor}, "", differences)


def test_a_ratio_falls_when_it_loses_more_than_the_tolerance():
    assert fallen({"speed": 1.6, "floor": 0.44}, {"speed": 2.0, "floor": 0.6}, 0.25) == ["floor"]


def test_a_ratio_that_is_no_longer_measured_has_fallen():
    assert fallen({}, {"speed": 2.0}, 0.25) == ["speed"]


def test_as_fast_as_recorded_passes(recorded):
    passed, text = check("case", lambda: finding(1.9), tolerance=0.25, path=recorded)
    assert passed
    assert "speed: 1.90, recorded 2.00  ok" in text


def test_slower_than_recorded_fails(recorded):
    passed, text = check("case", lambda: finding(1.4), tolerance=0.25, path=recorded)
    assert not passed
    assert "speed: 1.40, recorded 2.00  FALLEN" in text


def test_a_low_ratio_is_measured_once_more(recorded):
    measurements = iter([finding(1.0), finding(2.1)])
    passed, text = check("case", lambda: next(measurements), tolerance=0.25, path=recorded)
    assert passed
    assert "speed: 2.10" in text


def test_tokens_that_differ_fail_however_fast(recorded):
    passed, text = check("case", lambda: finding(9.0, "1 of 4 answers differ"), tolerance=0.25, path=recorded)
    assert not passed
    assert "NOT IDENTICAL: 1 of 4 answers differ" in text


def test_without_a_record_there_is_nothing_to_pass(recorded):
    passed, text = check("other", lambda: finding(2.0), tolerance=0.25, path=recorded)
    assert not passed
    assert "unmask bench regression --record" in text


def test_command_fails_where_nothing_is_recorded(tmp_path, capsys):
    assert main(["--only", "share", "--history", str(tmp_path / "none.jsonl")]) == 1
    assert "share: nothing is recorded" in capsys.readouterr().out


def test_a_tolerance_that_would_pass_everything_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--tolerance", "1"])
    assert "--tolerance is 1.0; it must be between 0 and 1" in capsys.readouterr().err


def test_every_check_has_a_recorded_ratio_or_none_has():
    known = {measurement.setting for measurement in history.read()}
    missing = [name for name in checks() if f"regression: {name}" not in known]
    assert missing == [] or len(missing) == len(checks())


def test_benchmarks_that_can_be_run_are_named_and_their_parts_are_not():
    assert {"rollout", "learner", "regression", "weights", "gpu"} <= set(names())
    assert not {"timing", "floor", "stock", "plain_decoder", "models"} & set(names())
