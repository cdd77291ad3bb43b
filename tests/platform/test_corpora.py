"""Texts, tokenizers and batches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from voicechat_platform.assets import locate
from voicechat_platform.checkpoints import load_tokenizer
from voicechat_platform.corpora.batches import IGNORED
from voicechat_platform.corpora.conversations import Conversation
from voicechat_platform.corpora.corpus import Windows
from voicechat_platform.corpora.dialogue import conversations, example, make_dialogue, stack
from voicechat_platform.corpora.sorting import Sorting
from voicechat_platform.corpora.texts import PLAYS, Text, play_from_markdown, read_text
from voicechat_platform.corpora.tokenizers import make_tokenizer, play_template
from voicechat_platform.errors import InputError
from voicechat_platform.training.recipe import Recipe
from voicechat_platform.training.starting_point import load_data

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


def load(path, **fields):
    return load_data(Recipe.model_validate({"corpus": {"source": str(path), **fields}}))


@pytest.mark.parametrize("kind", ["characters", "byte_pairs"])
def test_a_corpus_is_the_text_split_in_two(tmp_path, kind):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    corpus = load(path, tokenizer=kind, vocabulary_size=300, validation_fraction=0.25)
    train, validation = (corpus.tokenizer.decode(part) for part in (corpus.train_tokens, corpus.validation_tokens))
    assert train + validation == TEXT
    assert len(validation) == pytest.approx(len(TEXT) / 4, abs=1)
    assert corpus.characters_per_token == len(validation) / len(corpus.validation_tokens)


def test_a_conversation_is_set_as_a_play(tmp_path):
    path = tmp_path / "play.txt"
    path.write_text(TEXT)
    corpus = load(path)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who is there?"}]
    prompt = corpus.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert prompt == "ROMEO:\nWho is there?\n\nJULIET:\n"
    assert corpus.reply_stops == ["\n\n"]


def play_prompt(text: str, *speeches: str) -> str:
    """The rendered conversation; the speeches are in turn the user's and the assistant's."""
    template = play_template(*Text("", text).speakers(), text)
    messages = [
        {"role": "assistant" if number % 2 else "user", "content": speech} for number, speech in enumerate(speeches)
    ]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), chat_template=template)
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def test_what_was_heard_becomes_a_speech_as_the_play_writes_one():
    asked = [" hello there\n\nhow are you today \n", "Ay.\nMy lord--", "it’s “you” — isn’t it…", "no", ""]
    assert play_prompt('HAMLET:\nHe said "\'tis." --\n\nHORATIO:\nAy.\n', *asked) == (
        "HAMLET:\nHello there\nhow are you today.\n\n"
        "HORATIO:\nAy.\nMy lord--\n\n"
        "HAMLET:\nIt's \"you\" -- isn't it...\n\n"
        "HORATIO:\nNo\n\n"
        "HAMLET:\n\n\n"
        "HORATIO:\n"
    )
    assert "It’s" in play_prompt("HAMLET:\n’Tis.\n\nHORATIO:\nAy.\n", "it’s"), "the play itself writes it so"


def test_the_person_and_the_model_are_characters_who_speak_with_each_other():
    assert Text("", "HORATIO:\nAy.\n\nROMEO:\nNo.\n\nHAMLET:\nSo?\n").speakers() == ("HAMLET", "HORATIO")
    romance = "Nurse:\nCome.\n\n" + "ROMEO:\nAh!\n\nJULIET:\nOh!\n\n" * 3
    assert Text("", romance).speakers() == ("ROMEO", "JULIET")


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no such file"), (b"", "is empty"), (b"\xff\xfe\x00", "UTF-8"), (b"a", "too short")]
)
def test_a_corpus_that_cannot_be_used_is_a_clear_error(tmp_path, content, message):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load(path, validation_fraction=0.001)


def test_batches_are_windows_of_the_text_with_the_next_token_as_label():
    tokens = torch.arange(100)
    inputs_bt, labels_bt = Windows(tokens, batch_size=5, context=8, seed=1).draw()
    assert inputs_bt.shape == labels_bt.shape == (5, 8)
    assert torch.equal(labels_bt, inputs_bt + 1)


def test_batches_go_on_from_a_saved_position():
    for drawn in range(12):  # several passes over the text
        batches = Windows(torch.arange(100), 5, 8, seed=1)
        for _ in range(drawn):
            batches.draw()
        state = batches.state_dict()
        following = [batches.draw() for _ in range(4)]
        torch.manual_seed(123)  # the global generator has no part in it
        again = Windows(torch.arange(100), 5, 8, seed=2)
        again.load_state_dict(state)
        for (inputs_bt, _), (inputs_again_bt, _) in zip(following, [again.draw() for _ in range(4)], strict=True):
            assert torch.equal(inputs_bt, inputs_again_bt)


def test_a_pass_takes_every_window_once():
    batches = Windows(torch.arange(1000), batch_size=4, context=10, seed=1)
    first, second = (torch.cat([batches.draw()[0] for _ in range(24)]) for _ in range(2))
    assert len(first.unique()) == first.numel() == 960
    assert not torch.equal(first.sort(0).values, second.sort(0).values)  # the second pass has another order and offset


def test_a_text_shorter_than_a_context_is_a_clear_error():
    with pytest.raises(InputError, match=r"8 training tokens, fewer than one context of 8.*model\.context"):
        Windows(torch.arange(8), 1, 8, seed=1)


PLAY = "".join(f"{'ROMEO' if n % 2 else 'JULIET'}:\nSpeech {n}\nof the play.\n\n" for n in range(400))


def test_a_play_becomes_conversations_of_its_speeches():
    first, second = conversations(PLAY)[:2]
    assert [message["content"] for message in first.messages] == [f"Speech {n} of the play." for n in range(4)]
    assert [message["role"] for message in first.messages] == ["user", "assistant"] * 2
    assert second.messages[0]["content"] == "Speech 4 of the play."


def test_a_dialogue_counts_the_assistants_words_alone_and_prompts_as_the_service_does():
    tokenizer = load_tokenizer(locate("smollm2-135m-instruct"))
    speeches = ["Who is there?", "A friend.", "Come in.", "I come."]
    spoken = [{"role": "assistant" if n % 2 else "user", "content": speech} for n, speech in enumerate(speeches)]
    ids, labels = example(tokenizer, Conversation(spoken))
    counted = [label for label in labels if label != IGNORED]
    assert tokenizer.decode(counted) == "A friend.<|im_end|>\nI come.<|im_end|>\n"
    messages = [{"role": "user", "content": speeches[0]}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids[: len(prompt)] == prompt
    first = next(index for index, label in enumerate(labels) if label != IGNORED)
    assert first == len(prompt) - 1


def test_conversations_are_cut_and_padded_to_a_batch():
    inputs_bt, labels_bt = stack([([1, 2, 3], [IGNORED, 3, 4]), ([5], [6])], context=2)
    assert inputs_bt.tolist() == [[1, 2], [5, 0]]
    assert labels_bt.tolist() == [[IGNORED, 3], [6, IGNORED]]


def test_a_dialogue_needs_a_play_and_a_chat_model(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("No play at all.\n" * 100)
    with pytest.raises(InputError, match="is not a play"):
        make_dialogue(read_text(str(path)), make_tokenizer("gpt2", 0, ""), 0.1)
    path.write_text(PLAY)
    with pytest.raises(InputError, match="has no chat template"):
        make_dialogue(read_text(str(path)), make_tokenizer("gpt2", 0, ""), 0.1)


def test_lists_to_sort_are_followed_by_themselves_in_order():
    sorting = Sorting(length=6, digits=3, form="sequence", tokenizer=make_tokenizer("characters", 0, "012"))
    inputs_bt, labels_bt = sorting.batches(64, 11, seed=1).draw()
    assert inputs_bt.shape == labels_bt.shape == (64, 11)
    for inputs, labels in zip(inputs_bt.tolist(), labels_bt.tolist(), strict=True):
        assert labels[:5] == [IGNORED] * 5
        assert labels[5:] == sorted(inputs[:6])
        assert inputs[6:] == sorted(inputs[:6])[:-1]


def test_held_out_lists_are_never_trained_on():
    sorting = Sorting(length=6, digits=3, form="sequence", tokenizer=make_tokenizer("characters", 0, "012"))
    held_out = {tuple(row) for row in sorting.held_out_lists().tolist()}
    lists = sorting.batches(20_000, 11, seed=1).draw()[0][:, :6]
    trained = {tuple(row) for row in lists.tolist()}
    assert len(held_out) + len(trained) == 3**6  # both complete, so disjoint
    assert not held_out & trained
    assert 0.15 < len(held_out) / 3**6 < 0.35
