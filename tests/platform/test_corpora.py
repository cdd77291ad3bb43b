"""Texts, tokenizers and batches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from voicechat_platform.corpora.corpus import Batches, load_corpus
from voicechat_platform.corpora.texts import PLAYS, play_from_markdown, read_text
from voicechat_platform.corpora.tokenizers import make_tokenizer
from voicechat_platform.errors import InputError

TEXT = "ROMEO:\nBut, soft! what light through yonder window breaks?\n\nJULIET:\nAy me!\n\n" * 50


def test_the_packaged_plays_are_speeches_in_plain_characters():
    text = read_text(PLAYS)
    assert len(text.characters) > 4_500_000
    assert text.is_play
    assert text.characters.isascii()
    assert not set(text.characters) & set("*_#[]\\")
    assert "HAMLET:\nTo be, or not to be: that is the question:\n" in text.characters


def test_a_play_loses_its_directions_and_keeps_its_lines():
    markdown = "# A\n\n_Enter X_\n\n**X**  \nOne,  \n\n_Aside_\n\ntwo—three.\n\n\n**Y**  \nFour.\n"
    assert play_from_markdown(markdown) == "X:\nOne,\ntwo--three.\n\nY:\nFour.\n"


@given(st.text(alphabet=sorted(set(TEXT))))
def test_characters_survive_a_round_trip(text):
    tokenizer = make_tokenizer("characters", 0, TEXT)
    tokens = tokenizer.encode(text)
    assert len(tokens) == len(text)
    assert tokenizer.decode(tokens) == text


@given(st.text())
def test_byte_pairs_survive_a_round_trip_of_any_text(text):
    tokenizer = make_tokenizer("byte_pairs", 300, TEXT)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_an_unknown_character_is_left_out():
    assert make_tokenizer("characters", 0, "ab").decode(make_tokenizer("characters", 0, "ab").encode("aéb")) == "ab"


def test_gpt2_byte_pairs_are_the_real_ones():
    tokenizer = make_tokenizer("gpt2", 0, "")
    assert len(tokenizer) == 50257
    assert tokenizer.encode("Hello world") == [15496, 995]


@pytest.mark.parametrize("kind", ["characters", "byte_pairs"])
def test_a_corpus_is_the_text_split_in_two(tmp_path, kind):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    corpus = load_corpus(str(path), kind, 300, 0.25)
    train, validation = (corpus.tokenizer.decode(part) for part in (corpus.train_tokens, corpus.validation_tokens))
    assert train + validation == TEXT
    assert len(validation) == pytest.approx(len(TEXT) / 4, abs=1)
    assert corpus.characters_per_token == len(validation) / len(corpus.validation_tokens)


def test_a_conversation_is_set_as_a_play(tmp_path):
    path = tmp_path / "play.txt"
    path.write_text(TEXT)
    corpus = load_corpus(str(path))
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who is there?"}]
    prompt = corpus.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert prompt == "HAMLET:\nWho is there?\n\nHORATIO:\n"
    assert corpus.reply_stops == ["\n\n"]


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no such file"), (b"", "is empty"), (b"\xff\xfe\x00", "UTF-8"), (b"a", "too short")]
)
def test_a_corpus_that_cannot_be_used_is_a_clear_error(tmp_path, content, message):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_corpus(str(path), validation_fraction=0.001)


def test_batches_are_windows_of_the_text_with_the_next_token_as_label():
    tokens = torch.arange(100)
    inputs_bt, labels_bt = Batches(tokens, batch_size=5, context=8, seed=1).draw()
    assert inputs_bt.shape == labels_bt.shape == (5, 8)
    assert torch.equal(labels_bt, inputs_bt + 1)


def test_batches_go_on_from_a_saved_position():
    batches = Batches(torch.arange(100), 5, 8, seed=1)
    batches.draw()
    state = batches.state_dict()
    following = batches.draw()
    torch.manual_seed(123)  # the global generator has no part in it
    again = Batches(torch.arange(100), 5, 8, seed=2)
    again.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(following, again.draw(), strict=True))


def test_a_text_shorter_than_a_context_is_a_clear_error():
    with pytest.raises(InputError, match=r"8 training tokens, fewer than one context of 8.*model\.context"):
        Batches(torch.arange(8), 1, 8, seed=1)
