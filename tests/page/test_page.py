"""The live page end to end: the real service on the built-in model, in headless Chromium."""

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

SUDOKU = "0310200404001043:"
GROWTH = """
window.seen = [];
const count = () => document.querySelectorAll('.tile.hue').length;
new MutationObserver(() => count() && count() !== window.seen.at(-1) && window.seen.push(count()))
  .observe(document.getElementById('lanes'), {childList: true, subtree: true, attributes: true});
"""


def ask(client, **fields):
    """The same question without a page."""
    body = {"prompt": SUDOKU, "num_samples": 1, "max_new_tokens": 20, "temperature": 0, "seed": 0, "stream": False}
    answer = client("/v1/rollouts", body | fields)
    return answer["rollouts"][0]


def test_answer_on_the_page_is_that_of_the_service(page, client):
    answer = ask(client, sampler="confidence")
    page.open().run()
    text = "".join(page.tiles()).split("end")[0]
    assert text == answer["text"]
    assert page.stats()["forwards"] == str(answer["num_forwards"])
    assert page.announced.startswith(f"Done. confidence: {answer['text']}, ")
    logprob = float(page.stats()["log-probability"].replace("\u2212", "-"))
    assert abs(logprob - sum(answer["logprobs"])) < 0.006
    assert page.complaints() == []


def test_slider_shows_every_moment_of_the_denoising(page, client):
    answer = ask(client, sampler="confidence")
    page.open().run()
    for forward in (0, 1, 9, answer["num_forwards"]):
        page.seek(forward)
        # confidence commits one token a forward: slots of a lower step stand, the others are masked
        standing = [step < forward and step < answer["num_forwards"] for step in answer["step_map"]]
        assert [bool(text) for text in page.tiles()] == standing
        assert page.find("time").get_attribute("aria-valuetext") == f"forward {forward} of {answer['num_forwards']}"


def test_tokens_come_in_one_after_the_other_while_it_streams(page):
    page.open(still=False)
    page.choose("speed", "8")
    page.script(GROWTH)
    page.find("run").click()
    page.until_done()
    # confidence commits one token a forward, and each of them is shown
    assert page.script("return window.seen") == list(range(1, 18))


def test_two_samplers_of_one_seed_stand_side_by_side_with_their_forwards(page, client):
    first, second = ask(client, sampler="confidence"), ask(client, sampler="threshold")
    page.open()
    page.choose("rival", "threshold")
    page.run()
    assert [lane.text for lane in page.all(".lane-name")] == ["confidence", "threshold"]
    assert [page.stats(lane)["forwards"] for lane in (0, 1)] == [
        str(first["num_forwards"]),
        str(second["num_forwards"]),
    ]
    told = page.find("verdict").text
    assert f"threshold took {second['num_forwards']} forwards where confidence took {first['num_forwards']}" in told
    same = first["text"] == second["text"]
    assert told.endswith("The answers are the same." if same else "The answers differ.")
    left, right = (lane.rect for lane in page.all(".lane"))
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]


def test_settings_of_the_form_reach_the_sampler(page, client):
    fields = {"temperature": 1.0, "seed": 7, "block_length": 4, "steps": 5}
    sampler = {"name": "random", "options": {"eos_guard": False}}
    answer = ask(client, **fields, sampler=sampler)
    page.open()
    page.choose("sampler", "random")
    page.script("const t = document.getElementById('temperature'); t.value = 1; t.dispatchEvent(new Event('input'))")
    page.find("more").find_element(By.TAG_NAME, "summary").click()
    for identity, value in {"seed": "7", "block": "4", "steps": "5", "option-random-eos_guard": "false"}.items():
        page.write(identity, value)
    page.run()
    assert page.stats()["forwards"] == str(answer["num_forwards"])
    shown = [text for text, step in zip(page.tiles(), answer["step_map"], strict=True) if step < 5]
    assert "".join(shown).split("end")[0] == answer["text"]


def test_chat_turn_is_rendered_by_the_models_template(page, client):
    turns = [{"role": "user", "content": SUDOKU}]
    body = {"messages": turns, "max_new_tokens": 20, "temperature": 0, "seed": 0, "sampler": "confidence"}
    answer = client("/v1/rollouts", body)["rollouts"][0]
    page.open()
    page.find("chat").click()
    page.run()
    assert "".join(page.tiles()).split("end")[0] == answer["text"]


def test_long_prompt_leaves_the_answer_in_view(page):
    page.open()
    page.script("document.getElementById('prompt').value = '1'.repeat(400) + '2'.repeat(300) + '37+48='")
    page.write("slots", "8")
    shown = page.all(".given")[0].text
    assert shown == "\u2026 " + "2" * 294 + "37+48="


def test_board_of_a_puzzle_fills_with_the_answer(page, client):
    answer = ask(client, sampler="confidence")
    page.open().run()
    cells = [cell.text for cell in page.all(".cell")]
    assert "".join(cells) == answer["text"][:16]
    assert page.all(".board")[0].get_attribute("aria-label").startswith("Sudoku, row by row: ")
    page.example("Countdown")
    assert not page.all(".board")[0].is_displayed()


def test_selection_becomes_a_hole_and_is_written_anew(page, client):
    page.open()
    page.mode("infill")
    page.write("infill", "07+09=016")
    page.script("document.getElementById('infill').setSelectionRange(6, 9)")
    page.find("make-hole").click()
    assert page.find("infill").get_property("value") == "07+09=⟦3⟧"
    assert page.announced == '"016" became a hole of 3 slots.'
    page.run()
    body = {"segments": [{"text": "07+09="}, {"hole": 3}], "sampler": "confidence", "temperature": 0, "seed": 0}
    answer = client("/v1/infill", body | {"stream": False})
    assert "".join(page.tiles()) == "".join(answer["infills"][0]["token_texts"])
    assert page.script("return document.querySelector('.given').textContent") == "07+09="


def test_stop_ends_the_request_and_the_next_one_is_answered(page):
    page.open(still=False)
    page.write("slots", "400")
    page.choose("sampler", "random")
    page.find("run").click()
    page.until(lambda: page.find("stop").is_displayed() and any(page.tiles()))
    page.browser.find_element(By.TAG_NAME, "body").send_keys(Keys.ESCAPE)
    page.until(lambda: page.announced == "Stopped.")
    assert "stopped" in page.all(".lane-mark")[0].text
    assert not page.find("stop").is_displayed()
    page.example("Arithmetic")
    page.choose("speed", "8")
    assert page.run().stats()["tokens"] != "0"


def test_keyboard_alone_is_enough(page):
    page.open()
    page.find("prompt").send_keys(Keys.CONTROL + Keys.ENTER)
    page.until_done()
    body = page.browser.find_element(By.TAG_NAME, "body")
    page.script("document.activeElement.blur()")
    body.send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert page.stats()["forwards"] == "15"
    body.send_keys(Keys.ARROW_RIGHT)
    assert page.stats()["forwards"] == "16"
    body.send_keys(Keys.SPACE)
    page.until(lambda: page.stats()["forwards"] == "17")


def test_what_is_wrong_is_said_at_the_field(page):
    page.open()
    page.write("prompt", "caf\u00e9")
    page.find("run").click()
    page.until(lambda: page.error)
    assert "does not know" in page.error
    page.write("prompt", "1+1=")
    page.write("slots", "99999")
    page.find("run").click()
    assert page.find("slots-error").text == "Slots must be a whole number from 1 to 512."
    assert page.find("slots").get_attribute("aria-invalid") == "true"
    page.write("slots", "8")
    assert page.error == ""
    page.write("block", "-1")
    page.find("run").click()
    page.until(lambda: page.error)
    assert "block_length" in page.find("slots-error").text
    assert page.find("block").get_attribute("aria-invalid") == "true"
    page.write("block", "")
    page.mode("infill")
    page.write("infill", "no hole")
    page.find("run").click()
    assert "There is no hole" in page.find("infill-error").text


def test_charts_and_table_tell_the_same_numbers(page, client):
    answer = ask(client, sampler="confidence")
    page.open().run()
    page.all(".ledger summary")[0].click()
    page.until(lambda: page.all(".ledger tbody tr"))
    rows = page.script(
        "return [...document.querySelectorAll('.ledger tbody tr')].map((r) => [...r.cells].map((c) => c.textContent))"
    )
    assert [int(row[0]) for row in rows] == list(range(17))
    for step, slot, _, probability, logprob, entropy in rows:
        place = int(slot)
        assert answer["step_map"][place] == int(step)
        assert abs(float(logprob) - answer["logprobs"][place]) < 1e-4
        assert abs(float(entropy) - answer["entropies"][place]) < 1e-4
        assert 0 <= float(probability) <= 1
    assert len(page.all(".charts .column")) == 17
