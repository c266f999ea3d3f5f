"""The real `openai` package against the real service, without any adapter."""

import pytest

import models
import rollout
import samplers

openai = pytest.importorskip("openai")

PROMPT = "37+48="
GREEDY = {"model": "tiny", "max_tokens": 8, "temperature": 0, "seed": 3}


@pytest.fixture(scope="module")
def client(tiny_service):
    return openai.OpenAI(base_url=f"{tiny_service}/v1", api_key="unused", max_retries=0, timeout=90)


@pytest.fixture(scope="module")
def expected():
    """The engine's own greedy answer."""
    denoiser = models.load("tiny")
    engine = rollout.Engine(denoiser, samplers.build("confidence"))
    (answer,) = engine.generate([models.encode_prompt(denoiser, PROMPT)], max_new_tokens=8)
    return models.decode_answer(denoiser, answer.tokens.tolist()), answer


def test_models_are_listed_and_found(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("absent")


def test_completion_is_the_engines_answer_with_usage_and_logprobs(client, expected):
    text, answer = expected
    completion = client.completions.create(prompt=PROMPT, logprobs=1, **GREEDY)
    choice = completion.choices[0]
    assert choice.text == text
    assert choice.finish_reason == "stop"
    assert completion.usage.prompt_tokens == len(PROMPT)
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens
    assert "".join(choice.logprobs.tokens) == text
    assert choice.logprobs.token_logprobs == pytest.approx(answer.logprobs[: len(text)].tolist(), abs=1e-5)


def test_several_prompts_and_samples_come_in_order(client):
    settings = GREEDY | {"temperature": 1}
    completion = client.completions.create(prompt=[PROMPT, "12+34="], n=2, echo=True, **settings)
    assert [choice.index for choice in completion.choices] == [0, 1, 2, 3]
    assert [choice.text[:6] for choice in completion.choices] == [PROMPT, PROMPT, "12+34=", "12+34="]
    again = client.completions.create(prompt=[PROMPT, "12+34="], n=2, echo=True, **settings)
    assert [choice.text for choice in again.choices] == [choice.text for choice in completion.choices]


def test_chat_answers_with_logprobs_of_its_tokens(client, expected):
    text, _ = expected
    chat = client.chat.completions.create(messages=[{"role": "user", "content": PROMPT}], logprobs=True, **GREEDY)
    assert chat.choices[0].message.role == "assistant"
    assert chat.choices[0].message.content == text
    assert "".join(token.token for token in chat.choices[0].logprobs.content) == text


@pytest.mark.parametrize("sampler", ["confidence", "ar", "threshold", "random"])
def test_streams_add_up_to_the_whole_answer_in_any_order_of_denoising(client, sampler):
    settings = GREEDY | {"extra_body": {"sampler": sampler}}
    whole = client.completions.create(prompt=PROMPT, **settings)
    pieces = list(client.completions.create(prompt=PROMPT, stream=True, **settings))
    assert "".join(chunk.choices[0].text for chunk in pieces) == whole.choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in pieces if chunk.choices[0].finish_reason] == ["stop"]
    turns = [{"role": "user", "content": PROMPT}]
    chat = client.chat.completions.create(
        messages=turns, stream=True, stream_options={"include_usage": True}, **settings
    )
    chunks = list(chat)
    deltas = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(deltas) == whole.choices[0].text
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


def test_stream_as_a_context_can_be_left_early(client):
    with client.completions.create(prompt=PROMPT, stream=True, **GREEDY | {"max_tokens": 200}) as stream:
        next(iter(stream))
    assert client.completions.create(prompt=PROMPT, **GREEDY).choices[0].text


def test_our_own_fields_travel_in_extra_body(client):
    fast = {"sampler": {"name": "confidence", "options": {"tokens_per_step": 4}}, "block_length": 4}
    answer = client.completions.create(prompt=PROMPT, extra_body=fast, **GREEDY)
    # 8 slots, 4 a forward; an answer that ends in the first block needs one forward only
    assert answer.usage.num_forwards <= 2


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ({"model": "absent"}, "NotFoundError", "absent"),
        ({"max_tokens": 10**6}, "BadRequestError", "max_tokens"),
        ({"temperature": -1}, "BadRequestError", "temperature"),
        ({"extra_body": {"sampler": "confidance"}}, "BadRequestError", "confidence"),
        ({"extra_body": {"samplr": "ar"}}, "BadRequestError", "samplr"),
        ({"frequency_penalty": 1.0}, "BadRequestError", "frequency_penalty"),
        ({"prompt": "caf\u00e9"}, "BadRequestError", "does not know"),
    ],
)
def test_errors_arrive_as_the_packages_own_with_the_fix(client, fields, error, text):
    with pytest.raises(getattr(openai, error)) as caught:
        client.completions.create(**{"prompt": PROMPT, **GREEDY} | fields)
    assert text in caught.value.message
    assert set(caught.value.body) == {"message", "type", "param", "code"}


def test_asynchronous_client_works_too(tiny_service, expected):
    import asyncio

    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{tiny_service}/v1", api_key="unused", max_retries=0) as client:
            asked = [client.completions.create(prompt=PROMPT, **GREEDY) for _ in range(4)]
            return [answer.choices[0].text for answer in await asyncio.gather(*asked)]

    assert asyncio.run(ask()) == [expected[0]] * 4


def test_key_of_the_client_is_the_servers_key():
    from rollout.service.local import local_app, running

    app, _ = local_app({"tiny": "tiny"}, api_key="right")
    with running(app) as address:
        wrong = openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0)
        with pytest.raises(openai.AuthenticationError, match="needs its key"):
            wrong.models.list()
        right = openai.OpenAI(base_url=f"{address}/v1", api_key="right", max_retries=0)
        assert right.models.list().data[0].id == "tiny"
