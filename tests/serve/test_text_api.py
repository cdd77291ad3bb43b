"""Chat and completions in every detail: a real model behind the real routes, in this process, without Ray."""

import asyncio
import json
import math
from collections.abc import AsyncIterator

import httpx
import openai
import pytest
from ray.exceptions import ActorDiedError

from voicechat_serve.api import answers
from voicechat_serve.api.ingress import build
from voicechat_serve.api.services import Services
from voicechat_serve.generation.chat_tokenizer import ChatTokenizer
from voicechat_serve.generation.engines.choice import make_engine
from voicechat_serve.generation.engines.interface import FinishReason, UnknownVersionError
from voicechat_serve.generation.introduction import Introduction
from voicechat_serve.generation.loaded_model import Delta, GenerationOptions, LoadedModel
from voicechat_serve.generation.served_model import ServedModel

PROMPT = "To be, or not"


def asked_of(path: str) -> dict:
    return {"messages": [{"role": "user", "content": "a"}]} if "chat" in path else {"prompt": PROMPT}


@pytest.fixture(scope="module")
def model(tiny_model):
    tokenizer = ChatTokenizer(tiny_model)
    model = LoadedModel(tokenizer, make_engine(tiny_model, tokenizer), "shakespeare@1")
    yield model
    model.engine.close()


@pytest.fixture(scope="module")
def services_of(tiny_model, local_handle):
    def services(replica) -> Services:
        return Services(
            models={"shakespeare": ServedModel(id="shakespeare", path=tiny_model)},
            language_models={"shakespeare": local_handle(replica)},
            transcription=None,
            transcription_model="whisper-tiny.en",
            synthesis=None,
        )

    return services


@pytest.fixture
async def http(model, services_of):
    transport = httpx.ASGITransport(build(services_of(model)))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=30) as http:
        yield http


@pytest.fixture
async def client(http):
    return openai.AsyncOpenAI(base_url="http://127.0.0.1", api_key="none", max_retries=0, http_client=http)


async def complete(client, **fields):
    return await client.completions.create(
        **({"model": "shakespeare", "prompt": PROMPT, "max_tokens": 8, "seed": 1} | fields)
    )


async def chat(client, **fields):
    messages = [{"role": "user", "content": PROMPT}]
    return await client.chat.completions.create(
        **({"model": "shakespeare", "messages": messages, "max_tokens": 8, "seed": 1} | fields)
    )


async def test_several_choices_differ_and_are_counted(client):
    answer = await complete(client, n=3, temperature=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.text for choice in answer.choices}) == 3
    assert answer.usage.prompt_tokens == len(PROMPT)  # a character a token, counted once
    assert answer.usage.completion_tokens == 24
    assert answer.usage.total_tokens == len(PROMPT) + 24
    alone = await complete(client, temperature=1, seed=3)
    assert alone.choices[0].text == answer.choices[2].text  # each choice has the next seed
    assert answer.system_fingerprint == "shakespeare@1"


async def test_several_prompts(client):
    answer = await complete(client, prompt=["To be", "Never"], n=2, temperature=0)
    singles = [await complete(client, prompt=prompt, temperature=0) for prompt in ("To be", "Never")]
    texts = [choice.text for choice in answer.choices]
    assert texts == [singles[0].choices[0].text] * 2 + [singles[1].choices[0].text] * 2
    assert answer.usage.prompt_tokens == 10


async def test_token_ids_are_a_prompt(client, model):
    ids = model.tokenizer.vocabulary.encode(PROMPT)
    expected = (await complete(client)).choices[0].text
    assert (await complete(client, prompt=ids)).choices[0].text == expected
    assert [choice.text for choice in (await complete(client, prompt=[ids, ids], seed=None, temperature=0)).choices]


async def test_streamed_choices_are_the_whole_ones(client):
    whole = await chat(client, n=3, temperature=1)
    stream = await chat(client, n=3, temperature=1, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)
    for index, choice in enumerate(whole.choices):
        own = [chunk.choices[0] for chunk in chunks[:-1] if chunk.choices[0].index == index]
        assert own[0].delta.role == "assistant"
        assert "".join(each.delta.content or "" for each in own) == choice.message.content
        assert [each.finish_reason for each in own] == [None] * (len(own) - 1) + [choice.finish_reason]


@pytest.mark.parametrize("path", ["/completions", "/chat/completions"])
async def test_every_chunk_says_usage_where_it_is_wanted(http, path):
    body = {"model": "shakespeare", "max_tokens": 3} | asked_of(path)
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    *events, done, _ = (await http.post(path, json=body)).text.split("\n\n")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert done == "data: [DONE]"
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["usage"]["completion_tokens"] == 3
    assert chunks[-1]["choices"] == []


async def test_chat_logprobs(client, model):
    answer = await chat(client, logprobs=True, top_logprobs=3, temperature=0, max_tokens=6)
    content = answer.choices[0].logprobs.content
    assert "".join(token.token for token in content) == answer.choices[0].message.content
    for token in content:
        assert bytes(token.bytes).decode() == token.token
        assert len(token.top_logprobs) == 3
        assert token.logprob == token.top_logprobs[0].logprob  # greedy takes the likeliest
        assert token.logprob <= 0
    stream = await chat(client, logprobs=True, top_logprobs=3, temperature=0, max_tokens=6, stream=True)
    streamed = [
        token async for chunk in stream if chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.content
    ]
    assert [token.token for token in streamed] == [token.token for token in content]
    assert (await chat(client)).choices[0].logprobs is None


async def test_completion_logprobs_with_the_prompts(client):
    answer = await complete(client, echo=True, logprobs=2, temperature=0)
    (choice,) = answer.choices
    scores = choice.logprobs
    assert choice.text.startswith(PROMPT)
    assert "".join(scores.tokens) == choice.text
    assert scores.token_logprobs[0] is None
    assert scores.top_logprobs[0] is None
    assert all(value <= 0 for value in scores.token_logprobs[1:])
    assert all(len(top) in (2, 3) for top in scores.top_logprobs[1:])  # the token itself besides
    for token, value, top in zip(scores.tokens[1:], scores.token_logprobs[1:], scores.top_logprobs[1:], strict=True):
        assert top[token] == value
    assert scores.text_offset == list(range(len(choice.text)))
    assert answer.usage.completion_tokens == 8
    pieces = [
        chunk.choices[0] async for chunk in await complete(client, echo=True, logprobs=2, temperature=0, stream=True)
    ]
    assert "".join(piece.text for piece in pieces) == choice.text
    assert [token for piece in pieces for token in piece.logprobs.tokens] == scores.tokens
    assert [place for piece in pieces for place in piece.logprobs.text_offset] == scores.text_offset


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("echo", [False, True])
async def test_offsets_are_places_in_the_prompt_and_its_answer(client, stream, echo):
    prompts = ["To \u4f60be", PROMPT]  # for the one character the model reads a space
    fields = {"prompt": prompts, "n": 2, "echo": echo, "logprobs": 0, "temperature": 1}
    free = await complete(client, **fields)
    stop = free.choices[0].text.removeprefix(prompts[0] if echo else "")[3:5]
    answer = await complete(client, **fields, stop=[stop], stream=stream)
    choices = [choice async for chunk in answer for choice in chunk.choices] if stream else answer.choices
    for index in range(4):
        own = [choice for choice in choices if choice.index == index]
        text = "".join(choice.text for choice in own)
        whole = text if echo else prompts[index // 2] + text
        places = [place for choice in own for place in choice.logprobs.text_offset]
        tokens = [token for choice in own for token in choice.logprobs.tokens]
        assert [whole[place].replace("\u4f60", " ") for place in places] == tokens
        first = 0 if echo else len(prompts[index // 2])
        assert places == list(range(first, len(whole)))


async def test_offsets_after_a_prompt_of_token_ids(client, model):
    answer = await complete(client, prompt=model.tokenizer.vocabulary.encode(PROMPT), logprobs=1, max_tokens=2)
    assert answer.choices[0].logprobs.text_offset == [len(PROMPT), len(PROMPT) + 1]


@pytest.mark.parametrize("stream", [False, True])
async def test_prompts_of_token_ids_are_scored_like_their_texts(client, model, stream):
    """As lm-eval asks: lists of token ids, with `echo`, and one token that it does not read."""
    prompts = [PROMPT, "To \u4f60be"]
    ids = [model.tokenizer.vocabulary.encode(prompt) for prompt in prompts]
    fields = {"echo": True, "logprobs": 1, "temperature": 0, "max_tokens": 1}
    expected = (await complete(client, prompt=prompts, **fields)).choices
    answer = await complete(client, prompt=ids, stream=stream, **fields)
    choices = [choice async for chunk in answer for choice in chunk.choices] if stream else answer.choices
    for index, (given, token_ids) in enumerate(zip(expected, ids, strict=True)):
        own = [choice for choice in choices if choice.index == index]
        assert "".join(choice.text for choice in own) == given.text.replace("\u4f60", " ")
        columns = {
            name: [each for choice in own for each in getattr(choice.logprobs, name)]
            for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        }
        assert columns["tokens"] == given.logprobs.tokens
        assert columns["text_offset"] == given.logprobs.text_offset
        assert columns["token_logprobs"] == pytest.approx(given.logprobs.token_logprobs)
        assert len(columns["top_logprobs"]) == len(token_ids) + 1


async def test_a_prompt_is_scored_without_an_answer(client, model):
    """As harnesses ask that rank given texts by their likelihood."""
    longer = await complete(client, echo=True, logprobs=1, temperature=0)
    of_ids = await complete(
        client, prompt=model.tokenizer.vocabulary.encode(PROMPT), echo=True, logprobs=1, max_tokens=0
    )
    answer = await complete(client, echo=True, logprobs=1, max_tokens=0)
    assert of_ids.choices == answer.choices
    assert answer.choices[0].text == PROMPT
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].logprobs.token_logprobs == pytest.approx(
        longer.choices[0].logprobs.token_logprobs[: len(PROMPT)]
    )
    assert (answer.usage.completion_tokens, answer.usage.total_tokens) == (0, len(PROMPT))


async def test_biases_and_penalties(client, model):
    wanted = model.tokenizer.vocabulary.encode("z")[0]
    assert (await complete(client, logit_bias={str(wanted): 100})).choices[0].text == "z" * 8
    never = await complete(client, logit_bias={str(wanted): -100}, temperature=2, max_tokens=100)
    assert "z" not in never.choices[0].text
    favoured = {str(wanted): 1}  # the logits of a model that was never trained are small
    once = await complete(client, temperature=0, max_tokens=20, logit_bias=favoured, presence_penalty=2)
    assert once.choices[0].text.count("z") == 1
    varied = await complete(client, temperature=0, max_tokens=40, extra_body={"repetition_penalty": 10})
    assert len(set(varied.choices[0].text)) > 20
    greedy = (await complete(client, temperature=0)).choices[0].text
    assert (await complete(client, temperature=2, extra_body={"min_p": 1})).choices[0].text == greedy


async def test_raw_types_of_an_answer(http):
    body = {"model": "shakespeare", "prompt": PROMPT, "logprobs": 1, "max_tokens": 3}
    answer = (await http.post("/completions", json=body)).json()
    assert set(answer) == {"id", "object", "created", "model", "choices", "usage", "system_fingerprint"}
    logprobs = answer["choices"][0]["logprobs"]
    assert {name: type(value) for name, value in logprobs.items()} == dict.fromkeys(logprobs, list)
    assert set(logprobs) == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert all(isinstance(value, float) for value in logprobs["token_logprobs"])


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("completions", {"n": 17}, "n"),
        ("completions", {"n": 9, "prompt": ["a", "b"]}, "prompt"),
        ("completions", {"prompt": []}, "prompt"),
        ("completions", {"prompt": ["a", ""]}, "prompt"),
        ("completions", {"prompt": [[]]}, "prompt"),
        ("completions", {"prompt": [-1]}, None),
        ("completions", {"prompt": [10**6]}, None),
        ("completions", {"prompt": ["a", 1]}, None),
        ("completions", {"max_tokens": 0}, "max_tokens"),
        ("completions", {"best_of": 3}, "best_of"),
        ("completions", {"logprobs": 6}, "logprobs"),
        ("completions", {"logit_bias": {"x": 1}}, "logit_bias"),
        ("completions", {"logit_bias": {"5": 101}}, "logit_bias.5"),
        ("completions", {"logit_bias": {"²": 1}}, "logit_bias"),
        ("completions", {"logit_bias": {"999999": 1}}, None),
        ("completions", {"seed": 2**70}, "seed"),
        ("chat/completions", {"top_logprobs": 2}, "top_logprobs"),
        ("chat/completions", {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ],
)
async def test_bad_requests(http, path, fields, param):
    body = {"model": "shakespeare"} | asked_of(path) | fields
    response = await http.post(f"/{path}", json=body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert param is None or error["param"] == param


async def test_a_path_that_is_not_there(http):
    response = await http.post("/moderations", json={"model": "shakespeare", "input": "a"})
    assert response.status_code == 404
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


class Mortal:
    """A replica that dies under its first requests."""

    def __init__(self, model, deaths: int):
        self.model, self.deaths = model, deaths

    async def complete(self, prompt, options):
        async for delta in self.model.complete(prompt, options):
            yield delta
            if self.deaths:
                self.deaths -= 1
                raise ActorDiedError

    async def chat(self, messages, options):
        raise UnknownVersionError(f"no version {options.version}")
        yield


async def ask_of(services, path, monkeypatch, **fields) -> httpx.Response:
    monkeypatch.setattr(answers, "PAUSE_S", 0)
    transport = httpx.ASGITransport(build(services))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        body = {"model": "shakespeare", "max_tokens": 200, "temperature": 0} | asked_of(path)
        return await http.post(path, json=body | fields)


async def test_a_whole_answer_outlives_a_replica(model, services_of, monkeypatch):
    died = await ask_of(services_of(Mortal(model, 2)), "/completions", monkeypatch)
    expected = await ask_of(services_of(Mortal(model, 0)), "/completions", monkeypatch)
    assert died.json()["choices"] == expected.json()["choices"]
    assert died.json()["usage"] == expected.json()["usage"]
    hopeless = await ask_of(services_of(Mortal(model, 9)), "/completions", monkeypatch)
    assert hopeless.status_code == 503
    assert hopeless.headers["retry-after"]


async def test_a_stream_ends_with_an_error_event_when_its_replica_dies(model, services_of, monkeypatch):
    response = await ask_of(services_of(Mortal(model, 1)), "/completions", monkeypatch, stream=True)
    events = response.text.strip().split("\n\n")
    assert json.loads(events[0].removeprefix("data: "))["choices"][0]["text"]
    error = json.loads(events[-1].removeprefix("data: "))["error"]
    assert (error["type"], error["code"]) == ("server_error", "unavailable")


async def test_an_unknown_version(model, services_of, monkeypatch):
    messages = [{"role": "user", "content": "a"}]
    fields = {"model": "shakespeare@7", "messages": messages}
    response = await ask_of(services_of(Mortal(model, 0)), "/chat/completions", monkeypatch, **fields)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert "7" in response.json()["error"]["message"]


async def test_scores_are_probabilities(client):
    answer = await complete(client, logprobs=5, temperature=0, max_tokens=1)
    (top,) = answer.choices[0].logprobs.top_logprobs
    assert 0 < sum(math.exp(value) for value in top.values()) <= 1


class Versioned:
    async def introduce(self, number, model=""):
        if number != 3:
            raise UnknownVersionError(f"no version {number}")
        return Introduction(title="The third")


async def test_the_card_of_a_version_is_that_of_its_model(services_of):
    transport = httpx.ASGITransport(build(services_of(Versioned())))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        model, version = [(await http.get(f"/models/{name}")).json() for name in ("shakespeare", "shakespeare@3")]
        assert version == model | {"id": "shakespeare@3", "title": "The third"}
        assert version["type"] == "language"
        for name in ("shakespeare@4", "shakespeare@x", "whisper-1@3"):
            assert (await http.get(f"/models/{name}")).status_code == 404


@pytest.mark.parametrize("streams", [1, 2])
async def test_a_stream_without_its_end_is_no_whole_answer(streams):
    """As Serve ends the calls of a request whose client has left: [DONE] would make that a whole answer."""

    async def broken_off(last: FinishReason | None) -> AsyncIterator[Delta]:
        yield Delta("To be", 1, 1, None)
        yield Delta(" or", 1, 2, last)

    whole = [answers.interleaved([broken_off("stop")]), answers.numbered(broken_off("length"))]
    assert [len([piece async for piece in pieces]) for pieces in whole] == [2, 2]
    broken = (
        answers.numbered(broken_off(None))
        if streams == 1
        else answers.interleaved([broken_off("stop"), broken_off(None)])
    )
    with pytest.raises(answers.BrokenOffError):
        [piece async for piece in broken]


async def test_a_stream_that_is_cancelled_while_its_reader_is_behind_ends_the_answer():
    all_given = asyncio.Event()

    async def cancelled_from_within() -> AsyncIterator[Delta]:
        for number in range(1, answers.PIECES_AHEAD + 2):
            yield Delta("a", 1, number, None)
        all_given.set()
        raise asyncio.CancelledError

    read = []

    async def read_all() -> None:
        async for _, delta in answers.interleaved([cancelled_from_within()]):
            read.append(delta)
            await all_given.wait()

    with pytest.raises(answers.BrokenOffError):
        await asyncio.wait_for(read_all(), 10)
    assert len(read) == answers.PIECES_AHEAD + 1


@pytest.mark.parametrize(("asked", "count"), [({}, 5), ({"max_tokens": 9}, 9), ({"max_tokens": 2}, 2)])
async def test_a_chat_that_sets_no_limit_ends_after_the_models_own(model, monkeypatch, asked, count):
    monkeypatch.setattr(model, "max_tokens", 5)
    newline = tuple((token_id, -100.0) for token_id in model.tokenizer.vocabulary.encode("\n"))  # no end of the turn
    options = GenerationOptions(sampling={"temperature": 1.0, "seed": 1, "logit_bias": newline} | asked, top_scores=0)
    deltas = [delta async for delta in model.chat([{"role": "user", "content": "Speak."}], options)]
    assert (deltas[-1].completion_tokens, deltas[-1].finish_reason) == (count, "length")
