"""The order of denoising as a grid and as a picture."""

import numpy as np
import pytest

from cluster.order_view import has_end, order_grid, shown_share, strip_of
from cluster.pictures import Strip, order_strips
from rollout.records import Trajectory


def trajectory(step_map, probabilities, *, answer_length, num_steps):
    number = len(step_map)
    return Trajectory(
        tokens=np.arange(number),
        step_map=np.array(step_map, dtype=np.int32),
        logprobs=np.log(np.array(probabilities, dtype=np.float32)),
        entropies=np.zeros(number, dtype=np.float32),
        num_steps=num_steps,
        num_forwards=num_steps + 1,
        finish_reason="eos" if answer_length < number else "length",
        answer_length=answer_length,
        seed=0,
        sampler="imh",
        exact_likelihood=False,
        temperature=1.0,
        top_p=1.0,
        block_length=number,
        prompt_id="p1",
    )


# slots 0..2 are content, slot 3 the end token, slot 4 was never committed
ANSWER = trajectory([2, 0, 1, 3, 4], [0.98, 0.714, 0.004, 1.0, 1.0], answer_length=3, num_steps=4)


def test_grid_has_token_step_and_probability_under_each_other():
    assert order_grid(ANSWER, ["3", " +", "\n", "end"], width=60).plain.split("\n") == [
        "token  3   ␣+  ↵    end ",
        "step   2   0   1    3   ",
        "prob   .98 .71 <.01 1",
    ]


def test_grid_goes_on_below_when_the_line_is_full():
    # 7 columns for the names, 4 for each of the first two cells
    lines = order_grid(ANSWER, ["3", "+", "4", "end"], width=15).plain.split("\n")
    assert len(lines) == 9
    assert [line.split() for line in lines[:3]] == [["token", "3", "+"], ["step", "2", "0"], ["prob", ".98", ".71"]]
    assert [line.split() for line in lines[6:]] == [["token", "end"], ["step", "3"], ["prob", "1"]]


def test_first_committed_token_is_yellow_and_the_last_one_blue():
    grid = order_grid(ANSWER, ["3", "+", "4", "end"], width=60)
    styles = {grid.plain[span.start : span.end].strip(): str(span.style) for span in grid.spans}
    assert styles["+"] == "rgb(255,214,102)"
    assert styles["end"] == "rgb(94,129,255)"


def test_end_token_is_shown_only_where_a_step_has_committed_it():
    assert has_end(ANSWER)
    assert not has_end(trajectory([0, 1], [1, 1], answer_length=2, num_steps=2))  # capped
    assert not has_end(trajectory([0, 1], [1, 1], answer_length=1, num_steps=1))  # filled


@pytest.mark.parametrize(("share", "text"), [(1.0, "1"), (0.995, "1"), (0.994, ".99"), (0.005, ".01"), (0.004, "<.01")])
def test_probabilities_are_short(share, text):
    assert shown_share(share) == text


def test_picture_has_step_and_probability_below_each_token():
    figure = order_strips([strip_of(ANSWER, ["3", "+", "4", "end"], prompt="1+2=")])
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts[:2] == ["1+2=", "p1, sample 0, imh: 4 steps, 5 forwards"]
    assert texts[2:] == ["3", "2", ".98", "+", "0", ".71", "4", "1", ".00", "end", "3", "1.00"]


def test_a_strip_needs_a_probability_for_each_piece():
    with pytest.raises(ValueError, match="2 pieces, 1 of them"):
        Strip(step=0, prompt="", pieces=("a", "b"), step_map=(0, 1), num_steps=2, probabilities=(0.5,))
