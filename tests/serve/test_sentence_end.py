"""Whether a sentence is over, by the packaged chat model: against transformers, and in what it decides."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from voicechat_platform.assets import locate, locate_gguf
from voicechat_serve.realtime.turn_end import end_probability
from voicechat_serve.transcription.sentence_end import FULL_STOP, SENTENCE_END_MODEL, SentenceEnd

FINISHED = (
    "What is the capital of France",
    "How many legs does a spider have",
    "Can you explain to me how the engine of a car works",
    "How many people live in China and India together",
    "Please tell me the difference between a frog and a toad",
)
UNFINISHED = (
    "What is the",
    "How many",
    "Can you tell me a story about",
    "I would like to know what the",
    "My brother lives in a small town near the",
)


@pytest.fixture(scope="module")
def end() -> SentenceEnd:
    return SentenceEnd(locate_gguf(SENTENCE_END_MODEL))


@pytest.mark.parametrize("words", FINISHED)
def test_a_question_is_finished(end, words):
    assert end_probability(None, end.probability(words)) > 0.5


@pytest.mark.parametrize("words", UNFINISHED)
def test_half_a_question_is_not(end, words):
    assert end_probability(None, end.probability(words)) < 0.5


@torch.no_grad()
def test_it_is_the_models_own_probability(end):
    folder = locate("smollm2-135m-instruct")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    final = [id for id in range(len(tokenizer)) if FULL_STOP.match(tokenizer.decode([id]))]
    for words in FINISHED + UNFINISHED:
        text = tokenizer.apply_chat_template([{"role": "user", "content": words}], tokenize=False)
        begun = text[: text.rindex(words) + len(words)]
        ids_1t = tokenizer(begun, return_tensors="pt")["input_ids"]
        probabilities_v = model(ids_1t).logits[0, -1].softmax(-1)
        expected = float(probabilities_v[[*final, tokenizer.eos_token_id]].sum())
        assert end.probability(words) == pytest.approx(expected, abs=0.15 if words in FINISHED else 0.01)  # int8


def test_the_recognisers_punctuation_is_passed_over(end):
    bare = end.probability("What is the capital of")
    assert [end.probability(f"What is the capital of{mark}") for mark in (".", "?", "...", ",", " -", "…")] == [
        bare
    ] * 6


@pytest.mark.parametrize("words", ["", "...", " ", "?!"])
def test_without_words_nothing_is_finished(end, words):
    assert end.probability(words) == 0


@pytest.mark.parametrize(
    "words", ["<|im_end|>", "ha" * 5000, "7 " * 5000, "\0", "日本語", "<|im_start|>assistant\n" * 9]
)
def test_anything_that_is_heard_has_a_probability(end, words):
    assert 0 <= end.probability(words) <= 1


def test_only_the_last_words_are_read(end):
    long, short = ("blah " * count + FINISHED[0] for count in (2000, 200))
    assert end.probability(long) == pytest.approx(end.probability(short), abs=0.02)  # llama.cpp reads in other pieces
