"""Embeddings: the vectors are those of the model, alone and in company, in OpenAI's form, and whoever asks wrongly is
told so. The model is the packaged chat model, whose file names no pooling; encoders are a tiny BERT."""

import asyncio
import base64
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import httpx
import numpy as np
import openai
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, BertConfig, BertModel

from voicechat_platform.assets import CATALOGUE, locate, packaged_files
from voicechat_platform.errors import InputError
from voicechat_platform.model_store import find_model
from voicechat_platform.models.bert_export import write_bert
from voicechat_serve import application
from voicechat_serve.api.access import AccessRules
from voicechat_serve.api.embeddings import MOST_CHARACTERS, MOST_INPUTS
from voicechat_serve.api.ingress import build
from voicechat_serve.api.services import Services
from voicechat_serve.application_file import APIArguments
from voicechat_serve.generation.embedding_model import MOST_TOKENS
from voicechat_serve.generation.engines.choice import open_embedder
from voicechat_serve.generation.engines.interface import EmptyPromptError, PromptTooLongError
from voicechat_serve.generation.engines.llama_cpp import embedder as embedder_module
from voicechat_serve.generation.engines.llama_cpp.embedder import CALL_TOKENS, MOST_TOGETHER, LlamaCppEmbedder
from voicechat_serve.generation.served_model import EngineOptions
from voicechat_serve.listed_models import served_models
from voicechat_serve.operations.load import Load, OverloadedError

CAT, KITTEN, MARKET = (
    *("The cat sleeps on the warm sofa.", "A kitten is napping on the couch."),
    "Stock prices fell by two percent after the report of the central bank.",
)
SENTENCES = (CAT, KITTEN, MARKET, "Yes.", "\N{SNOWMAN} naïve 12,345.678")

CLOSE = 0.999
"""Cosine of the same text's vectors in different company: the 8-bit activations are rounded by other groups."""

IDLE = Load(running=0, waiting=0, cache_used=0.0)


@pytest.fixture(scope="module")
def engine(embedding_queue) -> LlamaCppEmbedder:
    return embedding_queue.engine


@pytest.fixture(scope="module")
def address(services_with_vectors, listening) -> Iterator[str]:
    with listening(build(services_with_vectors)) as address:
        yield address


@pytest.fixture(scope="module")
def http(address) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=60) as http:
        yield http


@pytest.fixture(scope="module")
def client(address) -> openai.OpenAI:
    return openai.OpenAI(base_url=address, api_key="none", max_retries=0, timeout=60)


def cosines(one_nd, other_nd) -> np.ndarray:
    one_nd, other_nd = np.asarray(one_nd), np.asarray(other_nd)
    norms_n = np.linalg.norm(one_nd, axis=1) * np.linalg.norm(other_nd, axis=1)
    return (one_nd * other_nd).sum(1) / norms_n


def refusal(response: httpx.Response, status: int = 400) -> dict:
    assert response.status_code == status, response.text[:300]
    assert len(response.content) < 3000
    return response.json()["error"]


def vectors(response) -> np.ndarray:
    assert [each.index for each in response.data] == list(range(len(response.data)))
    return np.array([each.embedding for each in response.data])


class TestVectors:
    def test_they_are_the_mean_of_the_last_hidden_states(self, engine):
        model = AutoModelForCausalLM.from_pretrained(locate("smollm2-135m-instruct"), dtype=torch.float32)
        inputs = [engine.tokens(sentence, 0) for sentence in SENTENCES]
        with torch.no_grad():
            expected = [model.model(torch.tensor([ids])).last_hidden_state[0].mean(0).numpy() for ids in inputs]
        assert engine.width == model.config.hidden_size
        assert cosines(engine.embed(inputs), expected).min() > 0.98  # of 4-bit weights

    def test_likeness(self, engine):
        cat, kitten, market = engine.embed([engine.tokens(sentence, 0) for sentence in (CAT, KITTEN, MARKET)])
        assert cat @ kitten > max(cat @ market, kitten @ market)

    @hypothesis_settings(max_examples=8, deadline=None)
    @given(st.lists(st.lists(st.integers(0, 49151), min_size=1, max_size=12), min_size=1, max_size=6))
    def test_company_changes_nothing(self, engine, inputs):
        together_nd = engine.embed(inputs)
        assert np.allclose(np.linalg.norm(together_nd, axis=1), 1, atol=1e-5)
        alone_nd = np.concatenate([engine.embed([ids]) for ids in inputs])
        assert cosines(together_nd, alone_nd).min() > CLOSE

    async def test_more_than_one_call(self, embedding_queue, engine, monkeypatch):
        """More inputs than fit into a call, one of them longer than a call of several."""
        monkeypatch.setattr(embedder_module, "CALL_TOKENS", 64)
        rng = np.random.default_rng(0)
        lengths = [1] * (MOST_TOGETHER + 6) + [100, 3, 40, 30]
        inputs = [rng.integers(0, 49152, length).tolist() for length in lengths]
        found = await embedding_queue.embed(inputs)
        assert found.num_tokens == sum(lengths)
        assert found.vectors_nd.shape == (len(inputs), engine.width)
        for place in (0, MOST_TOGETHER + 1, -4, -3, -1):
            assert found.vectors_nd[place] @ engine.embed([inputs[place]])[0] > CLOSE

    @pytest.mark.parametrize("pooling", [gguf.PoolingType.MEAN, gguf.PoolingType.CLS, None])
    def test_an_encoder(self, tmp_path, pooling):
        model = tiny_bert()
        save_bert(model, tmp_path / "bert.gguf", pooling)
        embedder = LlamaCppEmbedder(tmp_path / "bert.gguf")
        inputs = [[2, 7, 8, 9, 3], [2, 3], [2, *range(5, 17), 3]]
        with torch.no_grad():
            states = [model(torch.tensor([ids])).last_hidden_state[0].numpy() for ids in inputs]
        expected = [state[0] if pooling is gguf.PoolingType.CLS else state.mean(0) for state in states]
        assert cosines(embedder.embed(inputs), expected).min() > 0.9999
        assert cosines(embedder.embed(inputs[:1]), expected[:1]).min() > 0.9999
        assert embedder.tokens("b a", 0) == [2, 6, 5, 3], "between the marks of a text's beginning and end"
        assert embedder.context == model.config.max_position_embeddings
        embedder.close()

    def test_a_reranker_is_refused(self, tmp_path):
        save_bert(tiny_bert(), tmp_path / "rank.gguf", gguf.PoolingType.RANK)
        with pytest.raises(InputError, match="reranker"):
            open_embedder(tmp_path / "rank.gguf", EngineOptions())


def tiny_bert() -> BertModel:
    torch.manual_seed(0)
    return BertModel(
        BertConfig(
            **{"vocab_size": 20, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
            **{"intermediate_size": 64, "max_position_embeddings": 64, "initializer_range": 0.5},
        )
    ).eval()


def save_bert(model: BertModel, path: Path, pooling: gguf.PoolingType | None) -> None:
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(97 + place) for place in range(model.config.vocab_size - len(marks))]
    write_bert(model, [*marks, *letters], path, pooling)


@pytest.fixture(scope="module")
def minilm() -> Iterator[LlamaCppEmbedder]:
    """The optional packaged model."""
    if packaged_files(CATALOGUE["all-minilm-l6-v2"]) is None:
        pytest.skip("requirements/embeddings.txt is not installed")
    embedder = open_embedder(find_model("all-minilm-l6-v2"), EngineOptions())
    yield embedder
    embedder.close()


class TestMiniLM:
    def test_tokens_and_vectors_are_those_of_its_makers(self, minilm):
        (weights, _) = packaged_files(CATALOGUE["all-minilm-l6-v2"])
        tokenizer = Tokenizer.from_file(str(weights.parent / "tokenizer.json"))
        tokenizer.no_padding()
        model = BertModel.from_pretrained(weights.parent).eval()
        texts = [*SENTENCES, "Caf\u00e9s, r\u00e9sum\u00e9s & \u4f60\u597d\uff01 [unused7] don't [MASK]", "ab" * 40]
        inputs = [minilm.tokens(text, 0) for text in texts]
        assert inputs == [tokenizer.encode(text).ids for text in texts]
        with torch.no_grad():
            expected = [model(torch.tensor([ids])).last_hidden_state[0].mean(0).numpy() for ids in inputs]
        assert (minilm.width, minilm.context) == (384, 512)
        assert cosines(minilm.embed(inputs), expected).min() > 0.9999

    def test_likeness(self, minilm):
        cat, kitten, market = minilm.embed([minilm.tokens(text, 0) for text in (CAT, KITTEN, MARKET)])
        assert cat @ kitten > 0.5 > 0.2 > cat @ market

    def test_its_entry(self, minilm):
        entry = {"id": "minilm", "source": "all-minilm-l6-v2", "task": "embeddings"}
        ((served, _),) = served_models(APIArguments.model_validate({"champions": None, "models": [entry]}))
        assert (served.path, served.is_packaged) == (minilm.model.path, True)


class TestTheAPI:
    def test_openais_client(self, client, engine):
        found = client.embeddings.create(model="vectors", input=[KITTEN, MARKET, CAT])  # the client asks for base64
        inputs = [engine.tokens(sentence, 0) for sentence in (KITTEN, MARKET, CAT)]
        assert cosines(vectors(found), engine.embed(inputs)).min() > CLOSE
        assert found.model == "vectors"
        assert found.usage.prompt_tokens == found.usage.total_tokens == sum(map(len, inputs))
        tokens = client.embeddings.create(model="vectors", input=inputs, user="me")
        assert cosines(vectors(found), vectors(tokens)).min() > CLOSE
        (one,) = vectors(client.embeddings.create(model="vectors", input=inputs[0]))
        (same,) = vectors(client.embeddings.create(model="vectors", input=KITTEN))
        assert one @ same > CLOSE

    def test_both_forms_are_equal(self, http):
        body = {"model": "vectors", "input": [CAT, MARKET]}
        floats, coded, given = (
            http.post("/embeddings", json=body | more).json()
            for more in ({}, {"encoding_format": "base64"}, {"encoding_format": "float"})
        )
        assert floats == given
        assert list(floats) == ["object", "data", "model", "usage"]
        for one, other in zip(floats["data"], coded["data"], strict=True):
            assert (one["object"], one["index"]) == (other["object"], other["index"])
            decoded_d = np.frombuffer(base64.b64decode(other["embedding"]), "<f4")
            assert decoded_d.tolist() == one["embedding"]

    def test_dimensions(self, client, http, engine):
        whole = vectors(client.embeddings.create(model="vectors", input=[CAT, MARKET]))
        for count in (1, 7, engine.width):
            cut = vectors(client.embeddings.create(model="vectors", input=[CAT, MARKET], dimensions=count))
            assert cut.shape == (2, count)
            assert np.allclose(np.linalg.norm(cut, axis=1), 1, atol=1e-5)
            assert cosines(cut, whole[:, :count]).min() > CLOSE
        body = {"model": "vectors", "input": CAT}
        error = refusal(http.post("/embeddings", json=body | {"dimensions": engine.width + 1}))
        assert error["message"] == "dimensions is 577, but the model's vectors have 576"
        assert refusal(http.post("/embeddings", json=body | {"dimensions": 0}))["param"] == "dimensions"

    def test_its_card(self, http):
        cards = http.get("/models").json()["data"]
        texts = [card for card in cards if card["type"] in ("language", "embeddings")]
        assert [(card["id"], card["type"]) for card in texts] == [
            ("shakespeare", "language"),
            ("vectors", "embeddings"),
        ]
        assert http.get("/models/vectors").json() == texts[-1]
        assert "makes embeddings" in texts[-1]["about"]
        assert refusal(http.get("/models/vectors@1"), 404)["code"] == "model_not_found"

    def test_each_model_at_its_place(self, http):
        error = refusal(http.post("/embeddings", json={"model": "shakespeare", "input": "Hi"}))
        assert (error["param"], "no embeddings; for those there is vectors" in error["message"]) == ("model", True)
        for path, asked in (
            ("/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
            ("/completions", {"prompt": "Hi"}),
        ):
            error = refusal(http.post(path, json={"model": "vectors"} | asked))
            assert (error["param"], "makes embeddings, and no text" in error["message"]) == ("model", True)
        for name in ("tts-1", "nobody", "vectors@1", "\N{SNOWMAN}" * 5000):
            error = refusal(http.post("/embeddings", json={"model": name, "input": "Hi"}), 404)
            assert "there are vectors" in error["message"]

    def test_without_a_model_of_embeddings(self, services, listening):
        with listening(build(services)) as address:
            response = httpx.post(f"{address}/embeddings", json={"model": "shakespeare", "input": "Hi"})
        assert "task: embeddings" in refusal(response)["message"]

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ("", "input 0 is empty"),
            ([], "no inputs"),
            (["a", ""], "input 1 is empty"),
            ([[]], "input 0 is empty"),
            ([[1], []], "input 1 is empty"),
            (["a"] * (MOST_INPUTS + 1), "2,049"),
            ("a" * (MOST_CHARACTERS + 1), "1,000,001"),
            ("word " * 300, "context is 256 tokens"),
            ([1] * 257, "input 0 has 257 tokens"),
            (["a", "b " * 300], "input 1 has "),
            ([[1] * 256] * (MOST_TOKENS // 256 + 1), "65,536 tokens together"),
            ([49152], "the token 49152"),
            ([-1], "input"),
            ([2**31], "input"),
            ([True], "input"),
            ([1.5], "input"),
            (["a", 1], "input"),
            ([1, "a"], "input"),
            ([[1], "a"], "input"),
            ([["a"]], "input"),
            ({"text": "a"}, "input"),
            (7, "input"),
            (None, "input"),
            ("\ud800", "Unicode"),
        ],
        ids=lambda given: repr(given)[:20],
    )
    def test_what_no_model_can_read(self, http, given, words):
        content = json.dumps({"model": "vectors", "input": given})
        response = http.post("/embeddings", content=content, headers={"Content-Type": "application/json"})
        assert words in refusal(response)["message"]

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            *(("encoding_format", "int8"), ("encoding_format", 1), ("dimensions", "8"), ("dimensions", 2**70)),
            *(("input_type", "query"), ("truncate", True), ("stream", True), ("model", 3)),
        ],
    )
    def test_fields_that_it_does_not_have(self, http, field, value):
        body = {"model": "vectors", "input": "Hi"} | {field: value}
        assert refusal(http.post("/embeddings", json=body))["param"] == field

    @pytest.mark.parametrize(
        "text",
        ["\0", "<|im_start|>" * 9, "\N{GRINNING FACE}" * 50, "a" * 300, " ", "\u202e"],
        ids=lambda text: ascii(text)[:12],
    )
    def test_odd_texts_have_vectors(self, client, text):
        (vector_d,) = vectors(client.embeddings.create(model="vectors", input=text))
        assert np.isfinite(vector_d).all()
        assert np.linalg.norm(vector_d) == pytest.approx(1, abs=1e-5)


class Held:
    """In place of the engine's calls, which take no time but until they are let through."""

    def __init__(self, engine: LlamaCppEmbedder):
        self.width = engine.width
        self.permits = threading.Semaphore(0)
        self.calls: list[list[list[int]]] = []

    def __call__(self, inputs):
        self.calls.append(inputs)
        self.permits.acquire()
        return np.ones((len(inputs), self.width), np.float32)


@pytest.fixture
def held(engine, monkeypatch) -> Iterator[Held]:
    held = Held(engine)
    monkeypatch.setattr(engine, "embed", held)
    yield held
    held.permits.release(1000)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


class TestTheQueue:
    async def test_requests_take_turns(self, embedding_queue, held):
        first = asyncio.create_task(embedding_queue.embed([[1] * 200] * 5))
        await until(lambda: len(held.calls) == 1)
        second = asyncio.create_task(embedding_queue.embed([[2], [3]]))
        await until(lambda: embedding_queue.load() == Load(running=1, waiting=1, cache_used=0.0))
        held.permits.release(2)
        assert (await second).num_tokens == 2
        assert not first.done()
        held.permits.release(10)
        assert (await first).num_tokens == 1000
        assert all(sum(map(len, call)) <= CALL_TOKENS for call in held.calls)
        assert [ids for ids in held.calls[1] if ids[0] != 1] == [[2], [3]]
        assert sum(call.count([1] * 200) for call in held.calls) == 5
        assert embedding_queue.load() == IDLE

    async def test_a_full_queue_refuses(self, embedding_queue, held, monkeypatch, address):
        monkeypatch.setattr(embedding_queue, "max_waiting", 2)
        waiting = [asyncio.create_task(embedding_queue.embed([[1]])) for _ in range(2)]
        await until(lambda: len(embedding_queue.jobs) == 2)
        with pytest.raises(OverloadedError):
            await embedding_queue.embed([[1]])
        async with httpx.AsyncClient(base_url=address) as http:
            response = await http.post("/embeddings", json={"model": "vectors", "input": "Hi"})
        assert refusal(response, 503)["code"] == "overloaded"
        assert response.headers["retry-after"]
        held.permits.release(10)
        await asyncio.gather(*waiting)

    async def test_a_client_that_leaves_is_not_computed(self, embedding_queue, held, address):
        async with httpx.AsyncClient(base_url=address) as http:
            stays = asyncio.create_task(http.post("/embeddings", json={"model": "vectors", "input": [1]}))
            await until(lambda: len(held.calls) == 1)
            async with httpx.AsyncClient(base_url=address) as other:
                leaves = asyncio.create_task(other.post("/embeddings", json={"model": "vectors", "input": [2]}))
                await until(lambda: len(embedding_queue.jobs) == 2)
                leaves.cancel()
            await until(lambda: len(embedding_queue.jobs) == 1)
            held.permits.release(10)
            assert (await stays).status_code == 200
        assert held.calls == [[[1]]]

    async def test_a_failure_ends_its_requests_alone(self, embedding_queue, engine, monkeypatch, caplog):
        def fail(inputs):
            raise RuntimeError("llama.cpp's embeddings failed with -3")

        with monkeypatch.context() as patch:
            patch.setattr(engine, "embed", fail)
            with pytest.raises(RuntimeError, match="-3"):
                await embedding_queue.embed([[1]])
        assert "embeddings failed" in caplog.text
        assert (await embedding_queue.embed([[1]])).num_tokens == 1
        embedding_queue.check()
        assert embedding_queue.load() == IDLE

    async def test_what_the_engine_refuses(self, embedding_queue):
        with pytest.raises(EmptyPromptError, match="input 1"):
            await embedding_queue.embed(["a", ""])
        with pytest.raises(PromptTooLongError, match="input 0 has 257 tokens"):
            await embedding_queue.embed([[1] * 257])
        assert embedding_queue.load() == IDLE


class TestTheFile:
    def test_an_entry(self, services_with_vectors: Services):
        entry = {"id": "vectors", "source": "smollm2-135m-instruct", "task": "embeddings", "context": 512}
        arguments = APIArguments.model_validate({"champions": None, "models": [entry]})
        ((served, _),) = served_models(arguments)
        assert (served.task, served.options.context, served.path.suffix) == ("embeddings", 512, ".gguf")
        assert services_with_vectors.models["vectors"].task == "embeddings"

    def test_the_packaged_model_makes_no_text(self):
        arguments = APIArguments.model_validate({"champions": None, "models": [{"id": "all-minilm-l6-v2"}]})
        with pytest.raises(InputError, match="its entry needs `task: embeddings`"):
            served_models(arguments)

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            ({"engine": "torch"}, "not on torch"),
            ({"engine": "openai", "url": "http://127.0.0.1:1/v1"}, "not on openai"),
            ({"sampling": {"temperature": 1}}, "no `sampling`"),
            ({"adapters": {"bard": "x.gguf"}}, "no `adapters`"),
            ({"system_prompt": "Hi"}, "no `system_prompt`"),
            ({"task": "vectors"}, "text"),
        ],
        ids=str,
    )
    def test_what_it_cannot_have(self, more, words):
        with pytest.raises(ValueError, match=words):
            APIArguments.model_validate({"models": [{"id": "vectors", "task": "embeddings"} | more]})

    def test_a_service_has_a_model_of_text_beside_it(self):
        entry = {"id": "vectors", "source": "smollm2-135m-instruct", "task": "embeddings"}
        arguments = APIArguments.model_validate({"champions": None, "models": [entry]})
        with pytest.raises(InputError, match="no language model"):
            application.api_application(served_models(arguments), arguments, AccessRules())

    def test_a_folder_is_refused(self, tiny_model):
        entry = {"id": "vectors", "source": str(tiny_model), "task": "embeddings"}
        with pytest.raises(InputError, match="needs a GGUF file"):
            served_models(APIArguments.model_validate({"champions": None, "models": [entry]}))
