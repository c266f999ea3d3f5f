"""Spans of all processes become a trace that Chrome and Perfetto open, and a table of who was busy with what."""

import json
import threading

import pytest

from cluster.actors import Launcher
from cluster.calls import ActorSpec
from cluster.cli import main
from cluster.spans import SpanFile
from cluster.stopwatch import Stopwatch
from cluster.timeline import Span, busy, chrome_trace, read_spans, tracks, write_trace
from tests.cluster.standins import Counter


@pytest.fixture
def run_dir(tmp_path):
    """Two attempts of a run with a driver and two workers."""
    logs = [tmp_path / "logs" / f"attempt_{number}" for number in (1, 2)]
    for folder in logs:
        folder.mkdir(parents=True)
    for process, name, start, seconds in [
        ("rollout-10", "generate", 1000.5, 2.0),
        ("rollout-2", "generate", 1000.5, 3.0),
        ("rollout-2", "fetch_weights", 1002.5, 0.5),
        ("rollout-2", "load_weights", 1003.5, 0.25),
        ("driver", "generate", 1000.0, 3.5),
    ]:
        SpanFile(logs[0], process).add(name, start, seconds)
    SpanFile(logs[1], "driver").add("update", 1010.0, 1.0)
    return tmp_path


def test_a_trace_has_a_row_for_each_process_and_a_slice_for_each_span(run_dir):
    trace = json.loads(write_trace(run_dir).read_text())
    names = {e["pid"]: e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name"}
    assert names == {1: "driver", 2: "rollout-2", 3: "rollout-10"}
    slices = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    # microseconds from the first start, 1000.0
    assert [(e["pid"], e["name"], e["cat"], e["ts"], e["dur"]) for e in slices] == [
        (1, "generate", "generate", 0, 3_500_000),
        (1, "update", "update", 10_000_000, 1_000_000),
        (2, "generate", "generate", 500_000, 3_000_000),
        (2, "fetch_weights", "sync", 2_500_000, 500_000),
        (2, "load_weights", "sync", 3_500_000, 250_000),
        (3, "generate", "generate", 500_000, 2_000_000),
    ]
    assert trace["otherData"]["start_unix_s"] == 1000.0


def test_a_trace_keeps_to_the_trace_event_format(run_dir):
    # Required by the format: ph, pid and name of every event; ts, dur and tid of complete ones; args of metadata.
    trace = json.loads(write_trace(run_dir).read_text())
    assert trace["displayTimeUnit"] in ("ms", "ns")
    for event in trace["traceEvents"]:
        assert isinstance(event["pid"], int)
        if event["ph"] == "X":
            assert all(isinstance(event[key], int) and event[key] >= 0 for key in ("ts", "dur", "tid")), event
            assert event["dur"] > 0
        else:
            assert event["ph"] == "M"
            assert event["name"] in ("process_name", "process_sort_index")
            assert event["args"]


def test_overlapping_spans_lie_on_tracks_of_their_own():
    spans = [Span("a", "x", start, seconds) for start, seconds in [(0, 10), (2, 3), (4, 1), (5, 2), (10, 1)]]
    # (2, 3) ends at 5, so the span that starts at 5 takes its track; at 10 the first is free again
    assert tracks(spans) == [0, 1, 2, 1, 0]


def test_busy_time_counts_an_overlap_once(run_dir):
    rows = {row.process: row for row in busy(read_spans(run_dir))}
    assert list(rows) == ["driver", "rollout-2", "rollout-10"]
    # the run lasts from 1000 to 1011; rollout-2 is busy from 1000.5 to 1003.75
    assert rows["rollout-2"].covered == pytest.approx(3.25 / 11)
    assert rows["rollout-2"].seconds == {"generate": 3.0, "sync": 0.75}
    assert rows["driver"].covered == pytest.approx(4.5 / 11)


def test_a_line_that_was_cut_off_is_left_out(run_dir):
    with (run_dir / "logs" / "attempt_1" / "rollout-2.spans.jsonl").open("a") as file:
        file.write('{"name": "generate", "sta')
    assert len(read_spans(run_dir)) == 6


def test_spans_are_written_from_several_threads_whole(tmp_path):
    spans = SpanFile(tmp_path, "x")
    threads = [threading.Thread(target=lambda: [spans.add("a", 1.0, 2.0) for _ in range(200)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = (tmp_path / "x.spans.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"name": "a", "start": 1.0, "seconds": 2.0}] * 800


def test_a_span_is_recorded_when_its_body_fails(tmp_path):
    watch = Stopwatch(SpanFile(tmp_path, "driver"))
    with pytest.raises(ValueError, match="no"), watch.stage("update"):
        raise ValueError("no")
    (line,) = (tmp_path / "driver.spans.jsonl").read_text().splitlines()
    assert json.loads(line)["name"] == "update"
    assert watch.lap()["update"] > 0


def test_where_spans_cannot_be_written_the_work_goes_on(tmp_path):
    for spans in (SpanFile(None, "x"), SpanFile(tmp_path / "absent", "x")):
        with spans.span("a"):
            pass
    (tmp_path / "y.spans.jsonl").mkdir()
    broken = SpanFile(tmp_path, "y")
    with broken.span("a"):
        pass
    with broken.span("a"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["y.spans.jsonl"]
    assert not any((tmp_path / "y.spans.jsonl").iterdir())


@pytest.mark.ray
def test_an_actor_writes_a_span_for_each_call(local_ray, tmp_path):
    logs = tmp_path / "logs" / "attempt_1"
    logs.mkdir(parents=True)
    handle = Launcher(mode="ray", log_dir=logs).launch(ActorSpec("counter-0", Counter))
    assert handle.call("add", 1, timeout_s=60).result() == 1
    handle.call("square_all", [-1], timeout_s=60).outcome()
    handle.kill()
    assert [(span.process, span.name) for span in read_spans(tmp_path)] == [
        ("counter-0", "add"),
        ("counter-0", "square_all"),
    ]


def test_the_command_writes_the_trace_and_shows_shares(run_dir, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["timeline", str(run_dir)])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "rollout-10" in printed
    assert "30%" in printed  # rollout-2: 3.25 of 11 s
    assert "perfetto" in printed
    assert (run_dir / "trace.json").is_file()


def test_a_folder_without_spans_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["timeline", str(tmp_path)])
    assert ended.value.code == 2
    assert "holds no spans" in capsys.readouterr().err


def test_an_empty_trace_is_still_a_trace():
    assert chrome_trace([])["traceEvents"] == []
    assert busy([]) == []
