"""Streamed text is the text: against decoding all tokens at once, over byte-level tokens and any stop strings."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from voicechat_serve.generation.engines.text_stream import TextStream

# Every byte is a token of its own: each character outside ASCII spans several tokens.
BYTES = Tokenizer(models.BPE({piece: i for i, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
BYTES.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
BYTES.decoder = decoders.ByteLevel()

# Metaspace decoders drop the space of the first token: decoding token by token without context would lose them all.
WORDS = Tokenizer(models.WordLevel({"▁one": 0, "▁two": 1, "▁": 2, "s": 3}, unk_token="s"))
WORDS.decoder = decoders.Metaspace()


def streamed(tokenizer: Tokenizer, token_ids: list[int], stop=()) -> tuple[str, bool]:
    stream, parts = TextStream(tokenizer.decode, stop), []
    for token_id in token_ids:
        text, stopped = stream.push(token_id)
        parts.append(text)
        if stopped:
            return "".join(parts), True
    return "".join(parts) + stream.finish(), False


@given(st.text())
def test_characters_over_several_tokens(text):
    assert streamed(BYTES, BYTES.encode(text).ids) == (text, False)


@given(st.lists(st.integers(0, 255)))
def test_any_bytes_even_invalid_ones(token_ids):
    assert streamed(BYTES, token_ids)[0] == BYTES.decode(token_ids)


@given(st.lists(st.integers(0, 3)))
def test_spaces_that_decoders_strip(token_ids):
    assert streamed(WORDS, token_ids)[0] == WORDS.decode(token_ids)


@given(st.text("ab\n:€"), st.lists(st.text("ab\n:€", min_size=1, max_size=4), max_size=3))
def test_the_stop_string_that_is_complete_first_cuts(text, stop):
    ends = [(text.find(string) + len(string), text.find(string)) for string in stop if string in text]
    expected = (text[: min(ends)[1]], True) if ends else (text, False)
    assert streamed(BYTES, BYTES.encode(text).ids, stop) == expected


@pytest.mark.parametrize(("text", "shown"), [("wait\n", "wait"), ("wait\nROM", "wait"), ("wait\nROx", "wait\nROx")])
def test_a_possible_stop_string_is_held_back(text, shown):
    stream = TextStream(BYTES.decode, ["\nROMEO:"])
    assert "".join(stream.push(i)[0] for i in BYTES.encode(text).ids) == shown
