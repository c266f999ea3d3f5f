"""The page's modules by themselves, in the browser that runs them: expected values are worked out by hand."""

import pytest


@pytest.fixture(scope="module")
def loaded(shared_page):
    return shared_page.open()


def test_text_with_holes_becomes_segments_in_order(loaded):
    parts = loaded.module("infill", "m.segmentsOf(m.partsOf('ab⟦3⟧c⟦ 12 ⟧⟦0⟧'))")
    assert parts == [{"text": "ab"}, {"hole": 3}, {"text": "c"}, {"hole": 12}]
    assert loaded.module("infill", "m.partsOf('no hole')") == [{"text": "no hole"}]
    assert loaded.module("infill", "m.partsOf('⟦2⟧')") == [{"slots": 2}]


def test_events_are_found_however_the_stream_is_cut(loaded):
    text = 'event: step\\ndata: {\\"a\\":1}\\n\\n: a comment\\n\\ndata: x\\ndata: y\\r\\n\\r\\ndata: [DONE]\\n\\n'
    whole = [
        {"event": "step", "data": '{"a":1}'},
        {"event": "message", "data": "x\ny"},
        {"event": "message", "data": "[DONE]"},
    ]
    for size in (1, 2, 3, 7, 100):
        code = f'(() => {{ const p = m.eventParser(), t = "{text}", out = []; '
        code += f"for (let i = 0; i < t.length; i += {size}) out.push(...p(t.slice(i, i + {size}))); return out; }})()"
        assert loaded.module("api", code) == whole


def test_conflicts_of_a_board_are_its_repeated_digits_and_changed_givens(loaded):
    solved, puzzle = "4312213434211243", "0310200404001043"
    assert loaded.module("sudoku", f"[...m.conflicts([...'{solved}'], '{puzzle}')]") == []
    # cell 0 is 3: given cell 1 of the same row and box holds 3 too, and so does cell 8 of its column
    wrong = "3" + solved[1:]
    assert loaded.module("sudoku", f"[...m.conflicts([...'{wrong}'], '{puzzle}')].sort((a, b) => a - b)") == [0, 1, 8]
    # cell 1 is a given 3 and became 4, which its row and box hold in cell 0 and its column in cell 9
    changed = solved[0] + "4" + solved[2:]
    assert loaded.module("sudoku", f"[...m.conflicts([...'{changed}'], '{puzzle}')].sort((a, b) => a - b)") == [0, 1, 9]
    assert loaded.module("sudoku", f"[...m.conflicts([...'{puzzle}'], '{puzzle}')]") == []


def test_lane_of_an_answer_without_step_events_is_rebuilt_from_its_record(loaded):
    done = (
        "{step_map: [1, 0, 2, 3], logprobs: [-1, -0.5, -0.25, 0], entropies: [0.1, 0.2, 0.3, 0], tokens: [5, 6, 0, 0],"
        " token_texts: ['a', 'b', '<eos>', '<eos>'], num_forwards: 6, num_steps: 3, text: 'ab'}"
    )
    code = f"(() => {{ const l = new m.Lane({{sampler: 'x', parts: [{{text: 'p'}}, {{slots: 4}}]}}); l.finish({done}); "
    code += "return [l.commits.map((c) => [c.slot, c.step, c.token, c.entropy]), l.numForwards, l.logprob]; })()"
    commits, forwards, logprob = loaded.module("lane", code)
    assert sorted(commits) == [[0, 1, "a", 0.1], [1, 0, "b", 0.2], [2, 2, "<eos>", 0.3]]
    assert forwards == 6
    assert logprob == -1.75


def test_comparison_counts_forwards_and_compares_texts(loaded):
    code = "(() => {{ const l = (sampler, numForwards, text) => ({{sampler, numForwards, text, status: 'done'}}); "
    code += "return [m.verdict(l('a', 17, 'x'), l('b', 4, 'x')), m.verdict(l('a', 3, 'x'), l('b', 3, 'y'))]; }})()"
    first, second = loaded.module("lane", code.format())
    # 17 / 4 = 4.25
    assert first == "b took 4 forwards where a took 17, 4.3 times as many. The answers are the same."
    assert second == "Both took 3 forwards. The answers differ."
