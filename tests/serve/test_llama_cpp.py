"""llama.cpp under our engine: its prompts are those of its own server, its tokens are right in every company."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from voicechat_platform.assets import locate, locate_gguf
from voicechat_platform.errors import InputError
from voicechat_platform.settings import settings
from voicechat_serve.generation import vocabularies
from voicechat_serve.generation.chat_tokenizer import ChatTokenizer
from voicechat_serve.generation.engines import memory
from voicechat_serve.generation.engines.batched_engine import BatchedEngine
from voicechat_serve.generation.engines.choice import open_model
from voicechat_serve.generation.engines.interface import GenerationRequest, PromptTooLongError, Sampling, Token
from voicechat_serve.generation.engines.llama_cpp import library as library_module
from voicechat_serve.generation.engines.llama_cpp import trial
from voicechat_serve.generation.engines.llama_cpp.decoder import LlamaCppDecoder
from voicechat_serve.generation.engines.llama_cpp.library import CONTEXT_DEFAULTS, library
from voicechat_serve.generation.served_model import EngineOptions

SERVER = """
import sys, threading, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port, params.n_ctx, params.n_parallel = sys.argv[1], int(sys.argv[2]), 512, 1
params.use_jinja = True
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
threading.Event().wait()
"""

TURN = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": st.text()})

CONVERSATION = st.builds(
    lambda before, last: [*before, {"role": "user", "content": last}],  # its server continues an assistant's message
    st.lists(TURN, max_size=4),
    st.text(),
)


@pytest.fixture(scope="module")
def gguf() -> Path:
    return locate_gguf("smollm2-135m-instruct")


@pytest.fixture(scope="module")
def tokenizer(gguf) -> ChatTokenizer:
    return ChatTokenizer(gguf)


@pytest.fixture(scope="module")
def engine(gguf, tokenizer) -> Iterator[BatchedEngine]:
    decoder = LlamaCppDecoder(gguf, slots=6, context=1024, threads=1)
    engine = BatchedEngine(decoder, tokenizer.vocabulary.decode, tokenizer.end_ids, max_waiting=4)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def peer(gguf) -> Iterator[httpx.Client]:
    """llama.cpp's own server, of the same wheel."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(gguf), str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    address = process.stdout.readline().strip()
    assert address.startswith("http"), address
    with httpx.Client(base_url=address, timeout=60) as client:
        yield client
    process.kill()
    process.wait()


def request(tokenizer, text="Tell me about the sea.", **sampling) -> GenerationRequest:
    prompt_ids = tokenizer.encode_chat([{"role": "user", "content": text}])
    return GenerationRequest(prompt_ids=prompt_ids, sampling=Sampling(**({"temperature": 0} | sampling)))


async def tokens_of(engine, wanted) -> list[Token]:
    return [token async for made in engine.generate(wanted) for token in made]


async def ids_of(engine, wanted) -> list[int]:
    return [token.id for token in await tokens_of(engine, wanted)]


@given(messages=CONVERSATION, text=st.text())
@hypothesis_settings(max_examples=60, deadline=None)
def test_prompts_and_tokens_are_those_of_its_own_server(tokenizer, peer, messages, text):
    messages = [{**message, "content": tokenizer.without_markers(message["content"])} for message in messages]
    prompt = peer.post("/apply-template", json={"messages": messages}).json()["prompt"]
    assert tokenizer.render(messages) == prompt
    for given_text, special in ((prompt, False), (text, True)):
        answer = peer.post("/tokenize", json={"content": given_text, "add_special": special, "parse_special": True})
        assert tokenizer.vocabulary.encode(given_text, add_special=special) == answer.json()["tokens"]


@pytest.fixture(scope="module")
def known(tokenizer) -> set[bytes]:
    """This vocabulary has no token for some bytes."""
    return {tokenizer.vocabulary.token_bytes(token_id) for token_id in range(tokenizer.vocabulary.size)}


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_a_text_survives_its_tokens(tokenizer, known, text):
    vocabulary = tokenizer.vocabulary
    text = "".join(character for character in text if all(bytes([byte]) in known for byte in character.encode()))
    ids = [token_id for token_id in vocabulary.encode(text) if token_id not in vocabulary.special_ids]
    assert vocabulary.decode(ids) == text
    places = vocabulary.places(text)
    assert places == sorted(places)
    assert all(0 <= place <= len(text) for place in places)


def test_the_tokens_are_those_of_transformers(tokenizer):
    peer = ChatTokenizer(locate("smollm2-135m-instruct")).vocabulary
    ours = tokenizer.vocabulary
    for text in ("Ay me! \N{GRINNING FACE} 12345  don't\n\n\tx", "<|im_start|>user", "日本語のテキスト", ""):
        assert ours.encode(text) == peer.encode(text)
        assert [ours.token_bytes(each) for each in ours.encode(text)] == [
            peer.token_bytes(each) for each in peer.encode(text)
        ]
    assert ours.special_ids >= peer.special_ids
    assert [ours.name(each) for each in range(0, ours.size, 997)] == [
        peer.name(each) for each in range(0, ours.size, 997)
    ]


async def test_text_and_end(engine, tokenizer):
    tokens = await tokens_of(engine, request(tokenizer, "Repeat after me: the cat sat on the mat."))
    text = "".join(token.text for token in tokens)
    assert "cat sat on the mat" in text
    assert "<|im_end|>" not in text
    assert tokens[-1].id in tokenizer.end_ids
    assert tokens[-1].finish_reason == "stop"


async def test_every_request_gets_its_own_answer_in_company(engine, tokenizer):
    """The numbers differ a little with the size of a batch, so only clear answers must be equal."""
    words = ("the cat sat on the mat", "the sun is bright", "my house is red", "we sing a song")
    questions = [f"Repeat after me: {each}." for each in words]
    alone = [await ids_of(engine, request(tokenizer, question, max_tokens=6)) for question in questions]
    together = await asyncio.gather(*(ids_of(engine, request(tokenizer, each, max_tokens=6)) for each in questions))
    assert together == alone
    assert len(set(map(tuple, alone))) == len(questions)


async def test_a_seed_gives_the_same_answer_again(engine, tokenizer):
    drawn = [await ids_of(engine, request(tokenizer, temperature=1.5, seed=seed, max_tokens=12)) for seed in (7, 7, 8)]
    assert drawn[0] == drawn[1] != drawn[2]


async def test_a_conversation_goes_on_where_it_was(engine, tokenizer):
    first = request(tokenizer, "My cat is called Tom.", max_tokens=8)
    answer_ids = await ids_of(engine, first)
    more_ids = [*first.prompt_ids, *answer_ids, *tokenizer.vocabulary.encode(" And"), 5]
    read = []
    prefill = engine.decoder.prefill
    engine.decoder.prefill = lambda row, ids, *rest, **more: (read.append(len(ids)), prefill(row, ids, *rest, **more))[
        1
    ]
    try:
        await ids_of(engine, GenerationRequest(prompt_ids=more_ids, sampling=Sampling(max_tokens=2)))
    finally:
        del engine.decoder.prefill
    assert sum(read) == len(more_ids) - len(first.prompt_ids) - len(answer_ids) + 1


async def test_scores_are_those_of_transformers(engine, tokenizer):
    """The packaged weights have four bits, and llama.cpp rounds activations to eight."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(locate("smollm2-135m-instruct"), dtype=torch.float32)
    ids = tokenizer.vocabulary.encode("The quick brown fox jumps over the lazy dog, and then it sleeps.") * 6
    with torch.no_grad():
        logprobs_tv = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = logprobs_tv[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()
    asked = GenerationRequest(prompt_ids=ids, sampling=Sampling(max_tokens=1), top_scores=2, score_prompt=True)
    (token,) = await tokens_of(engine, asked)
    scores = token.prompt_scores
    assert [score.id for score in scores] == ids
    assert scores[0].logprob is None
    ours = np.array([score.logprob for score in scores[1:]])
    assert abs(ours.mean() - expected.mean()) < 0.05
    assert np.corrcoef(ours, expected)[0, 1] > 0.99
    assert all(len(score.top) == 2 for score in scores[1:])


async def test_limits(engine, tokenizer):
    tokens = await tokens_of(engine, request(tokenizer, max_tokens=3))
    assert [token.finish_reason for token in tokens] == [None, None, "length"]
    with pytest.raises(PromptTooLongError):
        await anext(engine.generate(request(tokenizer, "word " * 2000)))


async def test_a_token_that_the_model_does_not_have(engine):
    with pytest.raises(IndexError):
        await anext(engine.generate(GenerationRequest(prompt_ids=[1, 10**6])))
    assert await ids_of(engine, GenerationRequest(prompt_ids=[1, 2], sampling=Sampling(max_tokens=1)))


async def test_a_long_prompt_is_cancelled_while_it_is_read(engine, tokenizer):
    long = asyncio.create_task(ids_of(engine, request(tokenizer, "word " * 900)))
    while not engine.filling or not engine.filling[0].row:
        await asyncio.sleep(0.01)
    long.cancel()
    with pytest.raises(asyncio.CancelledError):
        await long
    while engine.filling:  # it would take the whole timeout of a test to read the rest and to answer
        await asyncio.sleep(0.01)
    assert engine.load().running == 0


async def test_memory_does_not_grow_with_requests(engine, tokenizer):
    import psutil

    async def ask(count: int) -> int:
        for number in range(count):
            await ids_of(engine, request(tokenizer, f"Question {number}.", max_tokens=2, temperature=1))
        return psutil.Process().memory_info().rss

    before = await ask(60)
    assert await ask(60) - before < 60 * 2**18  # llama.cpp's issue 27725 suspects 3 MB a request


def test_a_text_of_many_special_tokens_is_encoded_in_one_pass(tokenizer):
    """llama.cpp's own search takes a time that grows with the square of their number."""
    end = tokenizer.vocabulary.id_of("<|im_end|>")
    ids = tokenizer.vocabulary.encode("x<|im_end|>" * 20_000)
    assert ids == tokenizer.vocabulary.encode("x<|im_end|>") * 20_000
    assert ids.count(end) == 20_000


@pytest.mark.parametrize("text", ["a" * 100_000, " " * 100_000, "7" * 100_000, "a b" * 40_000, "word, " * 30_000])
def test_a_word_without_end_is_encoded_in_pieces(tokenizer, text):
    """For some models, llama.cpp takes a part of its stack for each letter of a word, and ends the process."""
    vocabulary = tokenizer.vocabulary
    pieces = list(vocabulary.pieces(text))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= vocabularies.LONGEST_PIECE
    assert vocabulary.decode(vocabulary.encode(text)) == text


def write_damaged(gguf: Path, target: Path, kind: str) -> Path:
    content = bytearray(gguf.read_bytes())
    if kind == "truncated":
        content = content[: len(content) // 2]
    elif kind == "absurd count":
        content[8:16] = (2**62).to_bytes(8, "little")
    elif kind == "another architecture":
        content = content.replace(
            b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0llama",
            b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0lambs",
            1,
        )
    elif kind == "no vocabulary":
        content = content.replace(b"tokenizer.ggml.tokens", b"tokenizer.ggml.tokenz", 1)
    else:
        content = bytearray(b"Ay me!")
    target.write_bytes(content)
    return target


@pytest.fixture
def home(tmp_path, monkeypatch) -> Iterator[Path]:
    monkeypatch.setenv("VOICECHAT_HOME", str(tmp_path / "home"))
    settings.cache_clear()
    yield tmp_path / "home"
    settings.cache_clear()


@pytest.mark.parametrize("kind", ["truncated", "absurd count", "another architecture", "no vocabulary", "no GGUF"])
def test_a_damaged_file_gives_an_error_and_ends_nothing(gguf, tmp_path, home, kind):
    path = write_damaged(gguf, tmp_path / "damaged.gguf", kind)
    with pytest.raises(InputError, match=r"damaged\.gguf"):
        trial.require_runnable(path, 0)
    assert not any((home / "tried").glob("damaged*"))


def test_a_whole_file_is_tried_once(gguf, home, monkeypatch):
    trial.require_runnable(gguf, 0)
    monkeypatch.setattr(trial.subprocess, "run", None)
    trial.require_runnable(gguf, 0)


def test_a_model_larger_than_memory_is_refused_with_the_numbers(gguf, home, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 50 * 2**20)
    with pytest.raises(InputError, match=r"needs 0\.1 GiB .* 0\.0 GiB are free"):
        trial.require_runnable(gguf, 0)


def test_a_folder_larger_than_memory_is_refused_with_the_numbers(tiny_model, home, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 50_000)
    with pytest.raises(InputError, match=r"needs 0\.0 GiB of memory for its weights alone"):
        open_model(tiny_model)


def test_another_release_of_the_wheel_is_refused(monkeypatch):
    library.cache_clear()
    monkeypatch.setitem(library_module.CONTEXT_DEFAULTS, "n_ctx", CONTEXT_DEFAULTS["n_ctx"] + 1)
    with pytest.raises(RuntimeError, match=r"xllamacpp .* is not the release"):
        library()
    monkeypatch.undo()
    library.cache_clear()
    library()


def test_a_gpu_that_is_not_there_is_refused(gguf, home):
    if library().llama_supports_gpu_offload():
        pytest.skip("there is one")
    with pytest.raises(InputError, match="device is cuda"):
        open_model(gguf, EngineOptions(device="cuda"))
    with pytest.raises(InputError, match="engine torch cannot read"):
        open_model(gguf, EngineOptions(engine="torch"))


@pytest.mark.parametrize("template", ["{{ raise_exception('users only') }}", "{{ 1 / 0 }}", "{{ messages[9].x.y }}"])
def test_a_template_that_raises_is_an_error_of_the_request(tokenizer, template):
    from voicechat_serve.generation.chat_tokenizer import chat_environment

    broken = ChatTokenizer(tokenizer.vocabulary.model.path)
    broken.template = chat_environment().from_string(template)
    with pytest.raises(InputError, match="chat template"):
        broken.encode_chat([{"role": "user", "content": "Hi"}])
