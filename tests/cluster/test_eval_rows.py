"""Seeds pooled row by row, and samplers compared at equal forwards."""

import json
import math

import numpy as np
import pytest

from cluster.eval_command import sampler_specs
from cluster.eval_pictures import draw, frontier, pass_against_k, whole_powers
from cluster.eval_report import against, markdown_tables
from cluster.eval_rows import Arm, Rows, at_budgets, named, read_arms, versus


def rows(*counts, forwards=1):
    """(graded, right) of each row; every answer took so many forwards and as many tokens."""
    graded, right = (np.array(column) for column in zip(*counts, strict=True))
    ids = tuple(f"r{n}" for n in range(len(counts)))
    return Rows(ids, graded, right, graded.copy(), graded * forwards, graded * forwards)


def arm(name, *seeds, task="t", **settings):
    return Arm(task, name, {}, settings, dict(enumerate(seeds)), label=name)


def test_seeds_are_more_answers_to_the_same_rows():
    # row 0: right with seed 0, wrong with seed 1: n = 2, c = 1; row 1 never right
    both = arm("ar", rows((1, 1), (1, 0)), rows((1, 0), (1, 0)))
    assert both.over_seeds(1) == [0.5, 0.0]
    assert both.pass_at(1)[0] == 0.25
    assert both.pass_at(2)[0] == 0.5  # 1 - C(1, 2) / C(2, 2) = 1 in row 0
    assert both.largest_k() == 2


def test_results_of_other_rows_are_not_pooled():
    with pytest.raises(ValueError, match="of 1 and of 2 rows are not of the same rows"):
        rows((1, 1)).plus(rows((1, 1), (1, 0)))


def test_at_equal_forwards_a_cheap_sampler_has_more_answers():
    # Both are right half the time in the one row there is. At a budget of two forwards the cheap one has two answers,
    # pass@2 = 1, the dear one has one, pass@1 = .5; no other budget is open to both (2 answers x 1 forward = 2).
    found = versus(arm("cheap", rows((2, 1))), arm("dear", rows((2, 1), forwards=2)))
    assert found.at_one[0] == 0.0
    assert found.budgets == (2.0, 2.0)
    assert found.at_equal_forwards[0] == pytest.approx(0.5)


def test_without_a_common_budget_there_is_no_comparison_at_equal_forwards():
    found = versus(arm("cheap", rows((1, 1))), arm("dear", rows((1, 0), forwards=3)))
    assert found.at_one[0] == 1.0
    assert math.isnan(found.at_equal_forwards[0])


def test_comparison_is_over_the_rows_that_both_have_graded():
    found = versus(arm("a", rows((2, 2), (0, 0), (2, 0))), arm("b", rows((2, 0), (2, 2), (2, 0))))
    assert found.num_rows == 2
    assert found.at_one[0] == 0.5  # rows 0 and 2: (1 - 0 + 0 - 0) / 2


def test_between_whole_numbers_of_answers_pass_at_k_is_interpolated():
    # n = 2, c = 1: pass@1 = .5, pass@2 = 1, halfway .75
    assert at_budgets(rows((2, 1)), np.array([1.0, 1.5, 2.0]), largest=2).tolist() == [[0.5, 0.75, 1.0]]


def test_frontier_leaves_out_what_something_cheaper_beats():
    assert frontier([(3, 0.6), (1, 0.3), (2, 0.4), (1, 0.5)]) == [(1, 0.5), (3, 0.6)]


@pytest.mark.parametrize(("largest", "expected"), [(1, [1]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_curve_has_powers_of_two_and_its_end(largest, expected):
    assert whole_powers(largest) == expected


def test_labels_name_the_settings_that_differ():
    cold, warm = (
        arm("ar", rows((1, 1)), temperature=0.6, steps=None),
        arm("ar", rows((1, 1)), temperature=1.0, steps=None),
    )
    assert [one.label for one in named([cold, warm])] == ["ar temperature=0.6", "ar temperature=1"]


def result_file(path, seed, *, sampler="ar", counts=((2, 1), (2, 0)), temperature=1.0):
    entry = {
        "task": "t", "sampler": sampler, "sampler_options": {"tau": 0.5}, "temperature": temperature,
        "rows": rows(*counts).numbers(),
    }  # fmt: skip
    path.write_text(json.dumps({"model": "m", "dtype": "float32", "seed": seed, "results": [entry]}))
    return path


def test_files_of_several_seeds_become_one_arm(tmp_path):
    (one,) = read_arms([result_file(tmp_path / f"{seed}.json", seed) for seed in (0, 1)])
    assert (one.label, sorted(one.seeds), one.rows.graded.tolist()) == ("ar tau=0.5", [0, 1], [4, 4])


def test_files_that_do_not_fit_together_are_refused(tmp_path):
    first = result_file(tmp_path / "a.json", 0)
    with pytest.raises(ValueError, match="with seed 0 is in another file too"):
        read_arms([first, result_file(tmp_path / "b.json", 0)])
    with pytest.raises(ValueError, match="use one --limit"):
        read_arms([first, result_file(tmp_path / "c.json", 1, counts=((2, 1),))])
    (tmp_path / "old.json").write_text('{"model": "m"}')
    with pytest.raises(ValueError, match=r"old\.json is not a result of `unmask eval --json` with rows"):
        read_arms([tmp_path / "old.json"])


def test_baseline_is_the_first_or_the_named_one():
    arms = [arm("ar", rows((1, 0))), arm("eb", rows((1, 1))), arm("ar", rows((1, 1)), task="u")]
    assert [(one.arm.label, one.baseline.label) for one in against(arms, None)] == [("eb", "ar")]
    assert [(one.arm.label, one.baseline.label) for one in against(arms, "eb")] == [("ar", "eb")]
    with pytest.raises(ValueError, match="there are: ar, eb"):
        against(arms, "aer")


def test_tables_for_a_page_have_a_line_for_each_arm_and_each_difference():
    text = markdown_tables([arm("ar", rows((2, 1)), rows((2, 2))), arm("eb", rows((2, 2)))], [1, 2])
    lines = text.splitlines()
    # both seeds together 3 of 4 right; seeds alone 50 % and 100 %: standard deviation 35.4
    assert lines[2].startswith("| t | ar | 1 | 4 | 75.0 % (75.0 to 75.0) +-35.4 |")
    assert lines[-1].startswith("| t | eb - ar | 1 | +25.0 (+25.0 to +25.0) |")


def test_a_k_beyond_the_answers_is_refused():
    with pytest.raises(ValueError, match=r"pass@3 cannot be estimated: .*some row has 2"):
        markdown_tables([arm("ar", rows((2, 1)))], [3])


def test_pictures_show_every_arm_in_every_panel(tmp_path):
    arms = [
        arm(name, rows((4, 1), (4, 3), forwards=cost), task=task)
        for task in ("one", "two")
        for name, cost in (("cheap", 1), ("dear", 2))
    ]
    assert [path.name for path in draw(arms, tmp_path)] == ["quality.png", "pass_at_k.png"]
    panels = pass_against_k(arms).axes
    lines = [[(line.get_label(), list(line.get_xdata())) for line in axes.lines] for axes in panels]
    assert lines[0] == lines[1] == [("cheap", [1, 2, 4]), ("dear", [1, 2, 4])]
    assert lines[2] == lines[3] == [("cheap", [1, 2, 4]), ("dear", [2, 4, 8])]
    # n = 4, c = 1 and 3: pass@2 is 1 - 3/6 = .5 and 1 - 0/6 = 1
    assert list(panels[0].lines[0].get_ydata()) == pytest.approx([0.5, 0.75, 1.0])


def test_samplers_may_have_options_of_their_own():
    assert sampler_specs("ar, threshold:tau=0.8,attn:layers=[0, 1]:tau=0.5") == [
        ("ar", []),
        ("threshold", ["sampler.tau=0.8"]),
        ("attn", ["sampler.layers=[0, 1]", "sampler.tau=0.5"]),
    ]
    with pytest.raises(ValueError, match="write NAME or NAME:option=value"):
        sampler_specs("threshold:0.8")
    with pytest.raises(ValueError, match="stands there twice"):
        sampler_specs("ar,eb,ar")
