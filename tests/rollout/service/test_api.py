"""The interface over real HTTP: OpenAI's fields, our own, streams, and errors that say what to change."""

import pytest

import models
import rollout
import samplers

SUM = {"prompt": "37+485=", "max_tokens": 8, "seed": 1}


def trajectories(number: int, **settings):
    denoiser = models.load("tiny")
    engine = rollout.Engine(denoiser, samplers.build(settings.pop("sampler", "confidence")))
    prompt = models.encode_prompt(denoiser, "37+485=")
    return engine.generate([prompt], num_samples=number, max_new_tokens=8, **settings)


def test_rollouts_are_those_of_the_engine_under_the_same_seed(client) -> None:
    body = {"prompt": "37+485=", "max_new_tokens": 8, "num_samples": 3, "seed": 5, "temperature": 0.8}
    answer = client.post("/v1/rollouts", body).json()
    expected = trajectories(3, temperature=0.8, seed=5)
    assert answer["seed"] == 5
    for got, want in zip(answer["rollouts"], expected, strict=True):
        assert got["tokens"] == want.tokens.tolist()
        assert got["step_map"] == want.step_map.tolist()
        assert got["logprobs"] == pytest.approx(want.logprobs.tolist(), abs=1e-4)
        assert got["num_forwards"] == want.num_forwards
        assert got["weights_version"] == [0, 0]
    assert answer["usage"]["num_forwards"] == sum(want.num_forwards for want in expected)


def test_a_stream_of_steps_builds_up_what_its_end_tells(client) -> None:
    body = {"prompt": "37+485=", "max_new_tokens": 8, "num_samples": 2, "seed": 5}
    events = client.events("/v1/rollouts", body)
    assert events[-1] == ("message", "[DONE]")
    done = {data["index"]: data for name, data in events if name == "done"}
    assert sorted(done) == [0, 1]
    for index, answer in done.items():
        steps = [data for name, data in events if name == "step" and data["index"] == index]
        assert [step["step"] for step in steps] == list(range(answer["num_steps"]))
        commits = {commit["position"]: commit for step in steps for commit in step["commits"]}
        committed = [slot for slot, at in enumerate(answer["step_map"]) if at < answer["num_steps"]]
        assert sorted(commits) == committed
        assert all(commits[slot]["token_id"] == answer["tokens"][slot] for slot in committed)
    whole = client.post("/v1/rollouts", body).json()["rollouts"]
    assert [answer["tokens"] for answer in whole] == [done[index]["tokens"] for index in (0, 1)]


def test_completion_has_openais_fields(client) -> None:
    answer = client.post("/v1/completions", SUM | {"n": 2, "logprobs": 1, "echo": True}).json()
    first, second = answer["choices"]
    assert answer["object"] == "text_completion"
    assert (first["index"], second["index"]) == (0, 1)
    assert first["text"].startswith("37+485=")
    assert first["text"] == "37+485=" + "".join(first["logprobs"]["tokens"])
    assert first["logprobs"]["text_offset"][0] == 7
    assert first["finish_reason"] == "stop"
    usage = answer["usage"]
    assert usage["prompt_tokens"] == 7
    assert usage["completion_tokens"] == len(first["logprobs"]["tokens"]) + len(second["logprobs"]["tokens"])
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_several_prompts_are_numbered_through(client) -> None:
    body = SUM | {"prompt": ["37+485=", "1+1="], "n": 2}
    choices = client.post("/v1/completions", body).json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    alone = client.post("/v1/completions", SUM | {"prompt": "1+1=", "n": 2}).json()["choices"]
    assert [choice["text"] for choice in choices[2:]] == [choice["text"] for choice in alone]


def test_prompt_may_be_token_ids(client) -> None:
    tokens = models.encode_prompt(models.load("tiny"), "37+485=")
    by_ids, by_text = (
        client.post("/v1/completions", SUM | {"prompt": prompt}).json() for prompt in (tokens, "37+485=")
    )
    assert by_ids["choices"] == by_text["choices"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_deltas_of_a_stream_are_the_text(client, path) -> None:
    prompt = (
        {"prompt": "37+485="} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "37+485="}]}
    )
    body = {"max_tokens": 8, "seed": 1, "n": 2, **prompt}
    whole = client.post(path, body).json()
    events = client.events(path, body | {"stream_options": {"include_usage": True}})
    assert {name for name, _ in events} == {"message"}
    chunks = [data for _, data in events[:-1]]
    assert chunks[-1]["usage"] == whole["usage"]
    for choice in whole["choices"]:
        own = [c for chunk in chunks[:-1] for c in chunk["choices"] if c["index"] == choice["index"]]
        if path == "/v1/completions":
            assert "".join(c["text"] for c in own) == choice["text"]
        else:
            assert own[0]["delta"]["role"] == "assistant"
            assert "".join(c["delta"].get("content", "") for c in own) == choice["message"]["content"]
        assert [c["finish_reason"] for c in own if c["finish_reason"]] == [choice["finish_reason"]]


def test_a_stop_text_ends_an_answer_before_it(client) -> None:
    whole = client.post("/v1/completions", SUM).json()["choices"][0]["text"]
    assert len(whole) > 1
    for stream in (False, True):
        body = SUM | {"stop": [whole[1]], "logprobs": 0}
        if stream:
            pieces = [c for _, data in client.events("/v1/completions", body)[:-1] for c in data["choices"]]
            text, reason = "".join(c["text"] for c in pieces), pieces[-1]["finish_reason"]
        else:
            choice = client.post("/v1/completions", body).json()["choices"][0]
            text, reason = choice["text"], choice["finish_reason"]
            assert choice["logprobs"]["tokens"] == [whole[0]]
        assert (text, reason) == (whole[0], "stop")


def test_steps_come_with_ordinary_deltas_when_asked_for(client) -> None:
    events = client.events("/v1/completions", SUM | {"stream_options": {"include_steps": True}})
    steps = [data for name, data in events if name == "step"]
    assert [step["step"] for step in steps] == list(range(len(steps)))
    assert {"position", "token", "probability"} <= set(steps[0]["commits"][0])


def test_infill_puts_exactly_as_many_tokens_into_each_hole(client) -> None:
    body = {"segments": [{"text": "3"}, {"hole": 2}, {"text": "+48"}, {"hole": 3}], "seed": 2}
    (answer,) = client.post("/v1/infill", body).json()["infills"]
    texts = [segment["text"] for segment in answer["segments"]]
    # A token of the built-in model is a character.
    assert [len(text) for text in texts] == [1, 2, 3, 3]
    assert (texts[0], texts[2]) == ("3", "+48")
    assert answer["text"] == "".join(texts)
    steps = [data for name, data in client.events("/v1/infill", body) if name == "step"]
    where = {c["position"]: (c["segment"], c["token"]) for step in steps for c in step["commits"]}
    assert [where[slot][0] for slot in sorted(where)] == [1, 1, 3, 3, 3]
    assert "".join(where[slot][1] for slot in sorted(where)) == texts[1] + texts[3]


def test_prefix_and_suffix_are_segments_around_one_hole(client) -> None:
    ends = client.post("/v1/infill", {"prefix": "37+", "suffix": "=5", "max_new_tokens": 3, "seed": 2}).json()
    parts = [{"text": "37+"}, {"hole": 3}, {"text": "=5"}]
    assert ends["infills"] == client.post("/v1/infill", {"segments": parts, "seed": 2}).json()["infills"]


def test_models_and_samplers_are_listed(client) -> None:
    (card,) = client.get("/v1/models").json()["data"]
    assert (card["id"], card["families"], card["can_infill"]) == ("tiny", ["llada"], True)
    assert client.get("/v1/models/tiny").json() == card
    listed = {item["name"]: item for item in client.get("/v1/samplers").json()["data"]}
    assert sorted(listed) == samplers.names()
    assert all(item["description"] for item in listed.values())
    assert listed["threshold"]["options"]["tau"] == 0.9


def test_metrics_are_prometheus_text(client) -> None:
    client.post("/v1/completions", SUM)
    text = client.get("/metrics").text
    assert 'unmask_requests_total{endpoint="/v1/completions",status="200"}' in text
    assert 'unmask_engine_active{replica="local"} 0.0' in text


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "words"),
    [
        ("completions", SUM | {"max_token": 3}, 400, "max_token", "did you mean 'max_tokens'"),
        ("completions", {"max_tokens": 3}, 400, "prompt", "is required"),
        ("completions", SUM | {"temperature": -1}, 400, "temperature", "greater than or equal to 0"),
        ("completions", SUM | {"temperature": 1e-300}, 400, "temperature", "must be 0 (greedy), or 0.0001 or more"),
        ("completions", SUM | {"top_p": 1e-300}, 400, "top_p", "greater than or equal to 0.000001"),
        ("completions", SUM | {"max_tokens": 100000}, 400, "max_tokens", "at most 1024"),
        ("completions", SUM | {"max_tokens": 600}, 400, "prompt", "the model's window is 512"),
        ("completions", SUM | {"n": 1000}, 400, "n", "at most 64"),
        ("completions", SUM | {"model": "gpt-4"}, 404, "model", "served: tiny"),
        ("completions", SUM | {"sampler": "confidense"}, 400, "sampler", "did you mean 'confidence'"),
        (
            "completions",
            SUM | {"sampler": {"name": "eb", "options": {"gama": 1}}},
            400,
            "sampler",
            "did you mean 'gamma'",
        ),
        (
            "completions",
            SUM | {"sampler": {"name": "imh", "options": {"candidates": 9999}}},
            400,
            "sampler",
            "at most 32",
        ),
        (
            "completions",
            SUM | {"sampler": {"name": "attn", "options": {"layers": [99]}}},
            400,
            "sampler",
            "not all layers",
        ),
        ("completions", SUM | {"prompt": "caf\u00e9"}, 400, "prompt", "does not know"),
        ("completions", SUM | {"prompt": "\ud800"}, 400, "prompt", "half a surrogate pair"),
        ("completions", SUM | {"prompt": [1]}, 400, "prompt", "mask token"),
        ("completions", SUM | {"prompt": ""}, 400, "prompt", "empty"),
        ("completions", SUM | {"logprobs": 5}, 400, "logprobs", "less than or equal to 1"),
        ("completions", SUM | {"cache": "block"}, 400, "cache", "block-causal families"),
        ("chat/completions", {"messages": [{"role": "user", "content": "\u00e9"}]}, 400, "messages", "does not know"),
        ("chat/completions", {"messages": [{"role": "x", "content": "1"}]}, 400, "messages.0.role", "'user'"),
        ("rollouts", {}, 400, None, "exactly one of prompt and messages"),
        ("rollouts", {"prompt": "1", "task": {"name": "gsm8k"}}, 400, "task", "grades no answers"),
        ("infill", {"segments": [{"text": "1"}]}, 400, None, "no hole to fill"),
        ("infill", {"segments": [{"hole": 2}]}, 400, "segments", "some text beside its holes"),
        ("infill", {"prefix": "1", "segments": [{"hole": 2}]}, 400, None, "either segments, or prefix"),
    ],
)
def test_a_wrong_body_is_told_what_to_change(client, path, body, status, param, words) -> None:
    for stream in (False, True):
        response = client.post(f"/v1/{path}", body | {"stream": stream})
        assert response.status_code == status, response.text
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert words in error["message"]
        assert error["param"] == param


def test_a_body_that_is_no_json_object_is_refused(client) -> None:
    for data in (b"{", b"[]", b"\xff\xfe", b"null", b""):
        response = client.post("/v1/completions", data=data)
        assert response.status_code == 400
        assert response.json()["error"]["type"] == "invalid_request_error"


def test_unknown_paths_and_methods_have_the_same_form_of_error(client) -> None:
    assert client.get("/v1/nothing").status_code == 404
    response = client.get("/v1/completions")
    assert response.status_code == 405
    assert response.json()["error"]["code"] == "method_not_allowed"


def test_a_prompt_beyond_the_window_has_the_code_that_openais_clients_look_for(client) -> None:
    for path, prompt in (("completions", {"prompt": "1" * 600}), ("rollouts", {"prompt": "1" * 600})):
        error = client.post(f"/v1/{path}", prompt).json()["error"]
        assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
