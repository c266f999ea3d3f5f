"""Outcomes of tests as a verdict, a score and its parts."""

import pytest

from reward.code.slot import BadTests, read_report
from reward.code.verdict import OF_END, Kind, Verdict
from reward.sandbox.records import JobEnd


def report(*results, ending=None):
    return {"results": [list(result) for result in results], "ending": ending}


def test_first_failure_names_the_verdict():
    verdict = Verdict.of([(Kind.PASS, ""), (Kind.WRONG, "first"), (Kind.TIMEOUT, "second"), (Kind.PASS, "")])
    assert (verdict.kind, verdict.why, verdict.num_passed, verdict.num_tests) == (Kind.WRONG, "first", 2, 4)


def test_correct_is_all_or_nothing_and_fraction_the_share():
    # 3 of 4 tests pass.
    scored = Verdict(Kind.WRONG, "", 3, 4).scored(value="correct")
    assert (scored.value, scored.parts["correct"], scored.parts["fraction"], scored.parts["wrong"]) == (
        0.0,
        0.0,
        0.75,
        1.0,
    )
    assert Verdict(Kind.WRONG, "", 3, 4).scored(value="fraction").value == 0.75
    assert Verdict(Kind.PASS, "", 4, 4).scored(value="correct").value == 1.0


def test_every_kind_is_a_part_of_every_score():
    parts = Verdict(Kind.MEMORY).scored(value="correct").parts
    assert set(parts) == {"correct", "fraction"} | {kind.value for kind in Kind} - {"pass"}
    assert [name for name, value in parts.items() if value] == ["memory"]
    assert not any(
        value for name, value in Verdict(Kind.PASS, "", 1, 1).scored(value="correct").parts.items() if name in set(Kind)
    )


def test_a_broken_protocol_is_worth_nothing():
    verdict = read_report(report(("pass", "", True), ("pass", "", True), ending=["protocol", "two answers"]))
    assert (verdict.kind, verdict.fraction, verdict.why) == (Kind.PROTOCOL, 0.0, "two answers")


def test_a_program_that_breaks_off_after_its_last_answer_has_failed():
    verdict = read_report(report(("pass", "", True), ending=["exception", "exit status 0"]))
    assert (verdict.kind, verdict.fraction) == (Kind.EXCEPTION, 0.5)


def test_a_test_that_passed_without_asking_does_not_count():
    verdict = read_report(report(("pass", "", False), ("pass", "", True), ("wrong", "", True)))
    assert (verdict.num_passed, verdict.num_tests) == (1, 2)


@pytest.mark.parametrize(
    "bad",
    [
        report(),
        report(("pass", "", False)),
        {"results": [["nonsense", "", True]], "ending": None},
        {"results": [1], "ending": None},
        {"results": 5, "ending": None},
    ],
)
def test_a_report_without_a_result_is_the_rows_fault(bad):
    with pytest.raises(BadTests):
        read_report(bad)


def test_no_end_of_a_program_is_a_success():
    assert set(OF_END) == set(JobEnd) - {JobEnd.INFRA_ERROR}
    assert Kind.PASS not in OF_END.values()
