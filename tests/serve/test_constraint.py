"""Every answer under a grammar is valid, whatever the model would write: in each kind of vocabulary, alone and in a
batch, whole and near its limit."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from constrained_answers import written
from voicechat_platform.assets import locate_gguf
from voicechat_platform.corpora.tokenizers import TokenizerKind, make_tokenizer
from voicechat_platform.models import GPTConfig, GPTForCausalLM
from voicechat_platform.tool_text import HERMES
from voicechat_serve.generation.answer_form import NO_TOOLS, TextForm
from voicechat_serve.generation.chat_tokenizer import ChatTokenizer
from voicechat_serve.generation.engines import batched_engine
from voicechat_serve.generation.engines.answer_end import EndSearch
from voicechat_serve.generation.engines.batched_engine import BatchedEngine
from voicechat_serve.generation.engines.choice import open_model
from voicechat_serve.generation.engines.constraint import GrammarError, Grammars
from voicechat_serve.generation.engines.interface import GenerationRequest, Sampling, Token
from voicechat_serve.generation.engines.torch_decoder import make_torch_decoder
from voicechat_serve.generation.served_model import EngineOptions
from voicechat_serve.generation.tool_calls import answer_grammar

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["kind", "tall", "shy"]}, "minItems": 1, "maxItems": 3},
        "friend": {"anyOf": [{"type": "null"}, {"$ref": "#"}]},
    },
    "required": ["name", "age", "tags", "friend"],
    "additionalProperties": False,
}
SCHEMAS = [
    PERSON,
    {"type": "object"},
    {"type": "array", "items": {"type": "number"}},
    {"type": "string"},
    {"type": "object", "properties": {"next": {"$ref": "#"}}},
    {
        "type": "object",
        "properties": {"code": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"}},
        "required": ["code"],
    },
    {
        "type": "object",
        "properties": {
            "mail": {"type": "string", "pattern": "^[a-z]+@[a-z]+\\.(com|org)$"},
            "next": {"anyOf": [{"type": "null"}, {"$ref": "#"}]},
        },
        "required": ["mail", "next"],
        "additionalProperties": False,
    },
    {
        "type": "object",
        "properties": {"at": {"type": "string", "format": "date-time"}, "by": {"type": "string", "format": "email"}},
        "required": ["at", "by"],
    },
    {"anyOf": [{"type": "boolean"}, {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}]},
    {"type": "object", "additionalProperties": {"type": "integer"}},
    {
        "$defs": {"leaf": {"const": "leaf"}},
        "type": "array",
        "prefixItems": [{"$ref": "#/$defs/leaf"}, {"type": "null"}],
    },
]
ASCII = "".join(map(chr, range(32, 127))) + "\n"
CONTEXT = 256

torch.set_num_threads(1)  # models this small only wait for a second thread


def grammar_of(text: TextForm | dict) -> str:
    form = text if isinstance(text, TextForm) else TextForm("json_schema", text)
    grammar = answer_grammar(NO_TOOLS, form, HERMES, has_end=True)
    assert grammar is not None
    return grammar


def saved(kind: TokenizerKind, folder: Path) -> ChatTokenizer:
    make_tokenizer(kind, 300, ASCII * 3).save_pretrained(folder)
    return ChatTokenizer(folder)


@pytest.fixture(scope="module", params=["characters", "byte_pairs", "smollm2"])
def grammars(request, tmp_path_factory) -> Grammars:
    if request.param == "smollm2":
        return ChatTokenizer(locate_gguf("smollm2-135m-instruct")).grammars
    return saved(request.param, tmp_path_factory.mktemp("vocabulary")).grammars


@given(schema=st.sampled_from(SCHEMAS), room=st.integers(70, 400), seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_what_a_model_that_knows_nothing_writes_is_valid_before_its_limit(grammars, schema, room, seed):
    text, is_complete = written(grammars, grammar_of(schema), room, seed)
    assert is_complete
    jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize("seed", range(2))
def test_a_long_end_is_looked_for_once(monkeypatch, seed):
    grammars = ChatTokenizer(locate_gguf("smollm2-135m-instruct")).grammars
    schema = {"type": "array", "minItems": 150, "items": {"type": "integer"}}
    steps, one_towards_end = [], EndSearch.one_towards_end

    def counted(*given):
        steps.append(given)
        return one_towards_end(*given)

    monkeypatch.setattr(EndSearch, "one_towards_end", counted)
    text, is_complete = written(grammars, grammar_of(schema), 600, seed)
    assert is_complete
    jsonschema.validate(json.loads(text), schema)
    assert len(steps) < 1500  # twice the length of the first end


def test_the_search_for_an_end_ends(grammars):
    """Each token of this grammar takes longer than the one before."""
    assert grammars.start('start: x "!"{3000}\nx: x x x | /[a-z ]/ | ""')


def engine_of(tokenizer: ChatTokenizer, slots: int = 4) -> BatchedEngine:
    """Return an engine with an untrained model."""
    torch.manual_seed(0)
    size = tokenizer.vocabulary.size
    config = GPTConfig(vocab_size=size, hidden_size=32, num_hidden_layers=2, max_position_embeddings=CONTEXT)
    config.initializer_range = 0.2
    decoder = make_torch_decoder(GPTForCausalLM(config).eval(), slots=slots)
    return BatchedEngine(decoder, tokenizer.vocabulary.decode, tokenizer.end_ids, lambda: tokenizer.grammars)


@pytest.fixture(params=["characters", "byte_pairs"])
def tokenizer(request, tmp_path) -> ChatTokenizer:
    return saved(request.param, tmp_path)


@pytest.fixture
def engine(tokenizer) -> Iterator[BatchedEngine]:
    engine = engine_of(tokenizer)
    yield engine
    engine.close()


def request(grammar: str | None, seed: int, top_scores: int | None = None, **sampling) -> GenerationRequest:
    rules = Sampling(**({"seed": seed, "max_tokens": 120} | sampling))
    return GenerationRequest(prompt_ids=[5, 6, 7], sampling=rules, grammar=grammar, top_scores=top_scores)


async def tokens_of(engine: BatchedEngine, wanted: GenerationRequest) -> list[Token]:
    return [token async for made in engine.generate(wanted) for token in made]


def text_of(tokens: list[Token]) -> str:
    return "".join(token.text for token in tokens)


async def test_an_answer_is_the_same_alone_and_beside_others(engine, monkeypatch):
    grammars = [
        grammar_of(PERSON),
        grammar_of(SCHEMAS[5]),
        None,
        grammar_of(TextForm("choice", ["yes", "no", "maybe"])),
    ]
    wanted = [
        request(grammar, seed, temperature=seed % 3 / 2, frequency_penalty=0.3 * (seed % 2))
        for seed, grammar in enumerate(grammars * 2)
    ]
    together = await asyncio.gather(*[tokens_of(engine, each) for each in wanted])
    alone = [await tokens_of(engine, each) for each in wanted]
    assert together == alone
    monkeypatch.setattr(batched_engine, "LEAST_FORCED", CONTEXT)  # every token is decoded
    assert [await tokens_of(engine, each) for each in wanted] == alone
    for each, tokens in zip(wanted, alone, strict=True):
        if each.grammar == grammars[0]:
            jsonschema.validate(json.loads(text_of(tokens)), PERSON)
            assert tokens[-1].finish_reason == "stop"
        elif each.grammar == grammars[3]:
            assert text_of(tokens) in ("yes", "no", "maybe")


async def test_scores_penalties_and_stop_strings_are_as_without_a_grammar(engine, tokenizer):
    tokens = await tokens_of(engine, request(grammar_of(PERSON), 1, top_scores=2))
    scored = [token.score for token in tokens if token.score]
    assert [score.id for score in scored] == [token.id for token in tokens]
    assert all(len(score.top) == 2 and score.logprob < 0 for score in scored)
    assert tokenizer.vocabulary.decode([token.id for token in tokens]) == text_of(tokens)

    stopped = await tokens_of(engine, request(grammar_of(PERSON), 1, stop=('"age"',)))
    assert text_of(stopped) == text_of(tokens).partition('"age"')[0]
    assert stopped[-1].finish_reason == "stop"


@pytest.mark.parametrize(
    ("grammar", "problem"),
    [
        ("start: /(/", "cannot be used"),
        ("start: nothing", "cannot be used"),
        (grammar_of({"type": "string", "minLength": 3, "maxLength": 2}), "cannot be used"),
        ("start: /é{3}/", "vocabulary"),
    ],
)
async def test_what_no_answer_satisfies_is_refused(tmp_path, grammar, problem):
    engine = engine_of(saved("characters", tmp_path))
    with pytest.raises(GrammarError, match=problem):
        await tokens_of(engine, request(grammar, 0))
    engine.close()


async def test_a_grammar_that_becomes_too_complex_ends_its_own_answer_alone(engine):
    beside = asyncio.create_task(tokens_of(engine, request(grammar_of(PERSON), 3)))
    with pytest.raises(GrammarError, match="too complex"):
        await tokens_of(engine, request("start: /((a|b)*a(a|b){60}(a|b)*){3}c/", 0, max_tokens=CONTEXT - 3))
    jsonschema.validate(json.loads(text_of(await beside)), PERSON)
    engine.check()


async def test_a_real_model_writes_what_a_schema_says():
    tokenizer, engine = open_model(locate_gguf("smollm2-135m-instruct"), EngineOptions(context=512))
    prompt_ids = tokenizer.encode_chat([{"role": "user", "content": "Describe a person."}])
    wanted = GenerationRequest(
        prompt_ids=prompt_ids, sampling=Sampling(max_tokens=60, temperature=1.0, seed=0), grammar=grammar_of(PERSON)
    )
    tokens = await tokens_of(engine, wanted)
    jsonschema.validate(json.loads(text_of(tokens)), PERSON)
    engine.close()
