"""The sentence splitter: where it cuts, and that the cuts depend on the text alone."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voicechat_serve.synthesis.sentences import Sentence, SentenceSplitter


def split(pieces: list[str]) -> list[str]:
    return [sentence.text for sentence in sentences_of(pieces)]


def sentences_of(pieces: list[str]) -> list[Sentence]:
    splitter = SentenceSplitter()
    return [sentence for piece in pieces for sentence in splitter.feed(piece)] + splitter.flush()


def chopped(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(edges)]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Hello. How are you?", ["Hello.", "How are you?"]),
        ("It costs 3.14 dollars. Really!", ["It costs 3.14 dollars.", "Really!"]),
        ("Mr. Smith met Dr. J. R. Jones. They ate.", ["Mr. Smith met Dr. J. R. Jones.", "They ate."]),
        ("Use e.g. tea. Fine.", ["Use e.g. tea.", "Fine."]),
        ("That is Sam's. Here.", ["That is Sam's.", "Here."]),
        ('He said "Go!" and went. Off.', ['He said "Go!"', "and went.", "Off."]),
        ("1. Apples. 2. Pears.", ["1. Apples.", "2. Pears."]),
        ("It was in 1999. Then", ["It was in 1999.", "Then"]),
        ("ROMEO:\nBut soft,\n\nwhat light?", ["ROMEO:", "But soft,", "what light?"]),
        (
            "Of course I can do that, and then, if you like, we go. Then, when it is all over, home.",
            ["Of course I can do that,", "and then, if you like, we go.", "Then, when it is all over, home."],
        ),
        (
            "Use it, i.e. drink. Ph.D. Jones, Acme Inc. Ltd. Yes.",
            ["Use it, i.e. drink.", "Ph.D. Jones, Acme Inc. Ltd. Yes."],
        ),
        ("The U.S. Army came. Off.", ["The U.S. Army came.", "Off."]),
        ("See www.example.com now. Off.", ["See www.example.com now.", "Off."]),
        ("Well... I see. Wait… What? Off.", ["Well... I see.", "Wait… What?", "Off."]),
        ("No. 5 is in Fig. 2. No. I will not.", ["No. 5 is in Fig. 2.", "No.", "I will not."]),
        ("On Jan. 5 we met. On Dec.\nNo", ["On Jan. 5 we met.", "On Dec.", "No"]),
        ("**Bold.** And *so on.* Off.", ["**Bold.**", "And *so on.*", "Off."]),
        ("See [a. b](http://x.y) and `c. d`. Off.", ["See [a. b](http://x.y) and `c. d`.", "Off."]),
        ("An [open. bracket", ["An [open. bracket"]),
        ("An [open. bracket\nOff. So.", ["An [open.", "bracket", "Off.", "So."]),
        ("It costs $5. Or $6. Off.", ["It costs $5.", "Or $6.", "Off."]),
        ("So $a. b$ is. Off.", ["So $a. b$ is.", "Off."]),
        ("", []),
        (" \n ", []),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert split([text]) == sentences
    assert split(list(text)) == sentences


PROSE = st.text(st.sampled_from("aB1.,;!?…:—\"' \n\té") | st.sampled_from("`[]()<>$\\*#>|-~"), max_size=700)


@settings(max_examples=300)
@given(text=PROSE, cuts=st.lists(st.integers(0, 10_000), max_size=20))
def test_sentences_are_the_text_however_it_is_chopped(text: str, cuts: list[int]) -> None:
    found = sentences_of(chopped(text, cuts))
    assert found == sentences_of([text])
    assert all(text[sentence.start :].startswith(sentence.text) for sentence in found)
    assert all(sentence.begins_line == (not text[: sentence.start].rpartition("\n")[2].strip()) for sentence in found)
    sentences = [sentence.text for sentence in found]
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert all(sentence and len(sentence) <= SentenceSplitter.MAX_CHARACTERS for sentence in sentences)


def test_a_text_without_any_boundary_is_cut_at_the_cap() -> None:
    sentences = split(["x" * 1000])
    assert [len(sentence) for sentence in sentences] == [240, 240, 240, 240, 40]


def test_a_long_sentence_is_cut_between_words() -> None:
    assert all(set(sentence.split()) == {"word"} for sentence in split(["word " * 200]))
