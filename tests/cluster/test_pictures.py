"""Pictures are drawn from strips and curves, and from run folders."""

import json
import logging

import numpy as np
import pytest
from matplotlib.image import imread

from cluster import pictures, readme_picture
from cluster.pictures import RunCurve, Strip


def strip(pieces, step_map, **fields):
    defaults = {"step": 0, "prompt": "1+2=", "num_steps": max(step_map, default=0) + 1}
    return Strip(**{**defaults, **fields, "pieces": tuple(pieces), "step_map": tuple(step_map)})


def cells(figure):
    """(text, color) of each cell, in drawing order."""
    axes = figure.axes[0]
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    found = []
    for patch in axes.patches:
        middle = (patch.get_x() + patch.get_width() / 2, patch.get_y() + patch.get_height() / 2)
        found.append((next(t for at, t in texts.items() if np.allclose(at, middle)), patch.get_facecolor()))
    return found


def test_every_token_is_coloured_by_the_step_that_committed_it():
    drawn = cells(pictures.order_strips([strip("3+4", [2, 0, 2])]))
    assert [text for text, _ in drawn] == ["3", "+", "4"]
    colors = [color for _, color in drawn]
    assert colors[0] == colors[2] != colors[1]
    # the first step has the first colour of the scale, the last step the last
    assert np.allclose(colors[1], pictures._ORDER_COLORS(0.0), atol=0.01)
    assert np.allclose(colors[0], pictures._ORDER_COLORS(1.0), atol=0.01)


def test_strips_of_one_picture_share_a_colour_scale_and_name_their_prompt_once():
    figure = pictures.order_strips([strip("ab", [0, 1]), strip("abc", [0, 1, 2], step=60, reward=1.0)])
    (_, _), (_, one_of_two), (_, _), (_, one_of_three), (_, _) = cells(figure)
    assert one_of_two == one_of_three
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts.count("1+2=") == 1
    assert "training step 60, reward 1" in texts


def test_a_long_answer_wraps_and_a_line_break_ends_a_line():
    assert [len(line) for line in pictures._lines(strip("x" * 100, range(100)))] == [48, 48, 4]
    assert [[text for text, _ in line] for line in pictures._lines(strip(["12", "\n", "34"], [0, 1, 2]))] == [
        ["12", "↵"],
        ["34"],
    ]


@pytest.mark.parametrize(
    ("piece", "shown"), [(" the", " the"), ("\n", "↵"), ("", "∅"), ("a\x07b", "a□b"), ("汉", "□"), ("$x_1$", "$x_1$")]
)
def test_pieces_are_shown_with_glyphs_that_the_font_has(piece, shown):
    assert pictures.shown(piece) == shown


def test_a_strip_needs_a_step_for_each_piece():
    with pytest.raises(ValueError, match="2 pieces, 3 steps"):
        strip("ab", [0, 1, 2])


def test_odd_tokens_and_an_empty_answer_are_drawn_without_a_warning(tmp_path, caplog, recwarn):
    caplog.set_level(logging.WARNING)
    odd = [
        strip([], [], num_steps=0),
        strip(["$x_1$", "汉", "\n", "", "y" * 60], [0, 1, 2, 3, 4], prompt="$\\frac\n汉"),
    ]
    pictures.save(pictures.order_strips(odd), tmp_path / "odd.png", dpi=40)
    assert (caplog.text, list(recwarn)) == ("", [])


def test_the_curve_of_several_runs_shows_each_and_their_mean():
    runs = [
        RunCurve("a", [(1, 0.0), (2, 0.5)], {"sum": [(0, 0.25), (2, 0.5)]}),
        RunCurve("b", [(1, 1.0), (2, 0.5)], {"sum": [(0, 0.35), (2, 0.7)]}),
    ]
    axes = pictures.reward_curve(runs, title="two seeds").axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines["training reward, smoothed, mean of 2 seeds"].get_ydata()) == [0.5, 0.5]
    # means 0.3 and 0.6
    assert list(lines["sum, held out: 30% → 60%"].get_ydata()) == pytest.approx([0.3, 0.6])


def test_a_low_curve_fills_the_picture():
    low = pictures.reward_curve([RunCurve("a", [(1, 0.02), (2, 0.11)])]).axes[0]
    assert low.get_ylim() == (0.0, pytest.approx(0.2))
    assert pictures.reward_curve([RunCurve("a", [(1, 0.9)])]).axes[0].get_ylim() == (0.0, 1.0)


def write_run(folder, *, orders):
    (folder / "order").mkdir(parents=True)
    rows = [{"step": step, "time": 0.0, "reward/mean": step / 10, "eval.sum/accuracy": step / 10} for step in range(5)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number, (step, prompt, reward) in enumerate(orders):
        record = {"step": step, "prompt_id": "p", "prompt": prompt, "pieces": ["a", "b"], "step_map": [1, 0]}
        record |= {"num_steps": 2, "num_forwards": 2, "sampler": "random", "reward": reward}
        (folder / "order" / f"step_{step:06d}_{number}.json").write_text(json.dumps(record))
    return folder


def test_the_readme_picture_comes_from_run_folders(tmp_path):
    runs = [write_run(tmp_path / name, orders=[(0, "q", 0.0), (4, "q", 1.0)]) for name in ("seed0", "seed1")]
    readme_picture.main([*map(str, runs), "--out", str(tmp_path / "images" / "run.png"), "--title", "a run"])
    height, width, _ = imread(tmp_path / "images" / "run.png").shape
    assert (width, height > 500) == (1350, True)


def test_before_and_after_shows_the_prompt_whose_reward_rose_most(tmp_path):
    orders = [
        (0, "easy", 1.0),
        (0, "hard", 0.0),
        (0, "gone", 0.0),
        (2, "hard", 0.0),
        (4, "easy", 1.0),
        (4, "hard", 1.0),
    ]
    before, after = readme_picture.before_and_after(write_run(tmp_path / "run", orders=orders))
    assert (before.prompt, before.step, after.prompt, after.step) == ("hard", 0, "hard", 4)
    assert before.title == "before, training step 0, reward 0"


def test_a_run_folder_without_anything_to_draw_is_an_error_that_names_it(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        readme_picture.main([str(tmp_path), "--out", str(tmp_path / "x.png")])
    assert stopped.value.code == 2
    assert str(tmp_path) in capsys.readouterr().err
