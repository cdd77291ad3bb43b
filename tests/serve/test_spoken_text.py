"""What is said of a text: Markdown, numbers and signs as a person reads them, and what a voice cannot read by name."""

import itertools
import re

import numpy as np
import pytest
import soxr
from hibari.g2p.normalize import normalize
from hypothesis import example, given, settings
from hypothesis import strategies as st

from heard import wrong_characters
from voicechat_platform.assets import locate
from voicechat_serve.audio import HEARING_RATE
from voicechat_serve.synthesis.sentences import SentenceSplitter
from voicechat_serve.synthesis.spoken_text import Reader, Reading, read_all
from voicechat_serve.synthesis.voices import SPEECH_RATE
from voicechat_serve.synthesis.voices.hibari import HibariSpeaker
from voicechat_serve.transcription.transcriber import Transcription

MARKUP = [
    ("## Results", "Results."),
    ("### Results ###\nGood.", "Results.\nGood."),
    ("Title\n=====\nText\n---\nMore", "Title\nText\nMore"),
    ("> Quoted", "Quoted."),
    ("> > Twice\n> - **both**", "Twice.\nboth."),
    (">5 is large", ">5 is large"),
    ("> [!NOTE]\n> Read it.", "Note:\nRead it."),
    ("- a\n  - b\n* c\n+ d\n• e", "a.\nb.\nc.\nd.\ne."),
    ("1. First\n2. Second", "1. First\n2. Second"),
    ("- [x] Wash\n- [ ] Dry", "done: Wash.\nto do: Dry."),
    ("***Very*** **bold**, _so_ and ~~not~~ __that__", "Very bold, so and not that"),
    ("**Of course. I can.** Then", "Of course. I can. Then"),
    ("An * alone and 2 * 3", "An * alone and 2 × 3"),
    ("Use `get_name()` now", "Use get name now"),
    ("Look:\n```python\nx = 1\n# no heading\n```\nDone.", "Look:\nA block of python code.\nDone."),
    ("~~~\na. b\n```\n~~~\nDone.", "A block of code.\nDone."),
    ("- ```js\n  x()\n  ```\nDone.", "A block of js code.\nDone."),
    ('[The manual](https://x.y/z "T"), [it][1]\n\n[1]: https://x.y', "The manual, it"),
    ("![a cat](cat.png) ![](x.png)", "image: a cat an image"),
    ("| Name | Age |\n|:--|--:|\n| Ada | 36 |\n", "Name, Age.\nAda, 36."),
    ("Name | Age\n--- | ---\nAda | 36", "Name, Age\nAda, 36"),
    ("One\n\n---\n***\n_ _ _\nTwo", "One\nTwo"),
    ("So it is.[^1]\n\n[^1]: See there.", "So it is.\nFootnote 1: See there."),
    ("<p>A &amp; <b>B</b><br>C &lt; D</p>", "A & B, C < D"),
    ("<td>One</td><td>Two</td>", "One, Two"),
    ("Seen <!-- a\n# hidden\n--> again", "Seen\nagain"),
    ("`<!--` begins a comment", "<!-- begins a comment"),
    (r"\*no\* \# 5 \_x", "no # 5 x"),
    (
        r"So $x^2 + \frac{a}{b} \le \sqrt{y_1}$.",
        "So x squared + a over b less than or equal to the square root of y sub 1.",
    ),
    ("$$\n\\sum_{i=1}^n i\n$$\nDone.", "the sum from i=1 to n of i\nDone."),
    (r"\(\alpha \times 2\) and \[E = mc^2\]", "alpha times 2 and E = mc squared"),
    ("It is $5 or $6.", "It is 5 dollars or 6 dollars."),
    ("ROMEO:\nBut soft,\nwhat light?", "ROMEO:\nBut soft,\nwhat light?"),
]

# As the voices get it: after hibari's normalization, which is theirs.
ENGLISH = [
    ("https://www.example.com/docs/a-b.", "example dot com slash docs slash a dash b."),
    ("See https://example.com/search?q=1&r=2, then", "See a link to example dot com, then"),
    ("<https://example.com>", "example dot com"),
    ("Ada.L@mail.example.org!", "Ada dot L at mail dot example dot org!"),
    ("Open README.md at example.com", "Open README dot md at example dot com"),
    ("Fun 😀😀!", "Fun, grinning face!"),
    ("👍🏽 👩‍💻 🇩🇪 1️⃣", "thumbs up, woman technologist, Germany, 1"),
    ("5 km, 1 m, 3 h, 10 s, 2 L", "5 kilometers, 1 meter, 3 hours, 10 seconds, 2 liters"),
    ("20 °C, 3 GB, 5 km²", "20 degrees Celsius, 3 gigabytes, 5 square kilometers"),
    ("10 m/s, 9.8 m/s², 10 kΩ", "10 meters per second, 9.8 meters per second squared, 10 kilohms"),
    ("5-10 km, 5–10%, pages 5-10", "5 to 10 kilometers, 5 to 10%, pages 5 to 10"),
    ("2026-11-30", "November thirtieth, 2026"),
    ("30/11/2026", "November thirtieth, 2026"),
    ("30.11.2026", "November thirtieth, 2026"),
    ("Nov 30", "November thirtieth"),
    ("Mon.-Fri., 10am-5pm", "Monday to Friday, 10am to 5pm"),
    ("14:05 and 10:30-11:00", "fourteen oh five and ten thirty to eleven o'clock"),
    ("16:9", "16 to 9"),
    ("$5.20, $0.99, $1, €10, 5,20 €", "5 dollars and 20 cents, 99 cents, 1 dollar, 10 euros, 5 euros and 20 cents"),
    ("£1.5m, $5-10, $20k, 30 EUR", "1.5 million pounds, 5 to 10 dollars, 20 thousand dollars, 30 euros"),
    ("Dr. Lee, e.g. tea, i.e. hot, etc.", "Dr Lee, for example tea, that is hot, etc."),
    ("The U.S. Army and Ph.D. Jones", "The U.S Army and P H D Jones"),
    ("No. 5, Fig. 2, Jan. 5", "Number 5, Figure 2, January fifth"),
    ("Henry VIII, Chapter IV", "Henry the eighth, Chapter 4"),
    ("1.2.3, v2.0, 3.10, 192.168.0.1", "1 point 2 point 3, version 2 point 0, 3 point 1 0, 192 dot 168 dot 0 dot 1"),
    ("Call 555-123-4567", "Call 5 5 5, 1 2 3, 4 5 6 7"),
    ("Call +44 20 7946 0958 or 007", "Call plus 4 4, 2 0, 7 9 4 6, 0 9 5 8 or 0 0 7"),
    ("1/2, 2½, 3 1/2", "one half, 2 and one half, 3 and one half"),
    ("x², x⁴, 10⁻³, H₂O", "x squared, x to the power of 4, 10 to the power of minus 3, H2O"),
    ("1e-5", "1 times 10 to the power of minus 5"),
    ("a → b, x ≤ 5, ≈5, ∞, π", "a to b, x less than or equal to 5, about 5, infinity, pi"),
    ("−5 °C, 2 − 1", "-5 degrees Celsius, 2 minus 1"),
    ("#python, C#, C++", "hashtag python, C sharp, C++"),
    ("2 000 000 and 100k", "2,000,000 and 100 thousand"),
    ("5'10\", 3x faster, 3x + 1, 1920x1080", "5 foot 10, 3 times faster, 3x + 1, 1920 by 1080"),
    ("1,5 kg, 1.234,56 €, $5/month", "1.5 kilograms, 1,234 euros and 56 cents, 5 dollars per month"),
    ("a -> b, a <= b, a != b", "a to b, a less than or equal to b, a is not equal to b"),
]  # fmt: skip

CHARACTERS = [
    ("café, ñandú, smørrebrød, Straße", "café, ñandú, smørrebrød, Straße"),
    ("cafe\u0301", "café"),
    ("Łódź, Șt, Ệ", "Lódz, St, E"),
    ("Ｈｅｌｌｏ　１２", "Hello 12"),
    ("𝐇𝐞𝐥𝐥𝐨 ﬁne Ⓐ ①", "Hello fine A 1"),
    ("he\u200bl\u200dlo\ufeff \u202ethere\x07", "hello there"),
    ("h\u0337e\u0337llo", "hello"),
    ("★★★ ♪", "star eighth note"),
    ("┌──┐ text", "text"),
    ("٣ ❶ ㉈", "3 1 10"),
]


@pytest.mark.parametrize(("written", "aloud"), MARKUP)
def test_markup_is_not_read(written, aloud):
    assert read_all(written, "en") == Reading(aloud)


@pytest.mark.parametrize(("written", "aloud"), ENGLISH)
def test_numbers_and_signs_are_words(written, aloud):
    reading = read_all(written, "en")
    assert not reading.unspoken
    assert normalize(reading.aloud) == aloud


@pytest.mark.parametrize(("written", "aloud"), CHARACTERS)
def test_odd_characters_are_read_as_their_usual_ones(written, aloud):
    assert read_all(written, "en") == Reading(aloud)


@pytest.mark.parametrize(
    "text", ["", " \n\t", "...", "—?!", "***", "---", "\u200b\u200d", "\u0300", "\x00\x1b", "│ ─ •", "```"]
)
def test_nothing_to_say_is_no_speech(text):
    reading = read_all(text, "en")
    assert not reading.unspoken
    assert not reading.aloud or text == "```"  # which announces code


@pytest.mark.parametrize(
    ("language", "text", "aloud", "unspoken"),
    [
        ("en", "你好", "", ("你好",)),
        ("en", "Is 你好 Chinese? Or Привет, мир!", "Is Chinese? Or!", ("你好", "Привет, мир")),
        ("en", "αβγ and α", "and alpha", ("αβγ",)),
        ("en", "مرحبا", "", ("مرحبا",)),
        ("en", "नमस्ते", "", ("नमस्ते",)),
        ("en", "こんにちは", "", ("こんにちは",)),
        ("en", "\ue000 Ɂ", "", ("\ue000 Ɂ",)),
        ("ru", "Привет, hello, 你好", "Привет, hello,", ("你好",)),
        ("de", "Grüße, 5 km, https://www.x.de/a 😀", "Grüße, 5 km, x.de/a, grinsendes gesicht", ()),
        ("hi", "नमस्ते दुनिया", "नमस्ते दुनिया", ()),
        ("fr", "## Ça va\n```js\nx\n```", "Ça va.\nCode: js.", ()),
    ],
)  # fmt: skip
def test_what_a_voice_cannot_read_is_named(language, text, aloud, unspoken):
    assert read_all(text, language) == Reading(aloud, unspoken)


PIECES = [
    "**",
    "_",
    "`",
    "```",
    "\n",
    " ",
    ". ",
    "[a](b)",
    "[",
    "|",
    "# ",
    "> ",
    "- ",
    "$",
    "<b>",
    "<!--",
    "-->",
    "5 km",
]


@settings(max_examples=200, deadline=None)
@given(
    text=st.lists(st.sampled_from([*PIECES, "Word", "é", "你", "😀", "No. "]), max_size=60).map("".join),
    cuts=st.lists(st.integers(0, 10_000), max_size=10),
)
def test_what_is_said_does_not_depend_on_the_pieces_of_the_text(text, cuts):
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    reader, splitter = Reader("en"), SentenceSplitter()
    sentences = [one for start, end in itertools.pairwise(edges) for one in splitter.feed(text[start:end])]
    readings = [reader.read(one.text, one.begins_line) for one in sentences + splitter.flush()]
    whole = read_all(text, "en")
    assert " ".join(reading.aloud for reading in readings).split() == whole.aloud.split()
    assert tuple(part for reading in readings for part in reading.unspoken) == whole.unspoken
    assert "你" not in whole.aloud


@pytest.fixture(scope="module")
def heart() -> HibariSpeaker:
    return HibariSpeaker()


@pytest.mark.parametrize(("written", "aloud"), [("It is .5 m.", "It is 0.5 meters."), ("Pay $.50.", "Pay $0.50.")])
def test_a_decimal_needs_no_zero_before_its_point(written, aloud):
    assert read_all(written, "en").aloud == read_all(aloud, "en").aloud


@pytest.mark.parametrize("sign", ["/", "."])
def test_a_quoted_sign_is_not_lost(sign):
    assert read_all(f'Press the "{sign}" key.', "en").aloud == f'Press the "{sign}" key.'


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="&<[`"), max_size=8))
@example('"/0')
@example(",/5")
def test_any_characters_are_spoken_or_named(heart, text):
    """The sounds are made, but not the speech, for time's sake."""
    reading = read_all(text, "en")
    if any(one.isalnum() for one in text):
        assert reading.aloud or reading.unspoken
    if reading.aloud:
        assert any(char.isalpha() for phonemes in heart.model.phonemize(reading.aloud) for char in phonemes)


@pytest.fixture(scope="module")
def whisper() -> Transcription:
    return Transcription(locate("whisper-base"))


@pytest.mark.parametrize(
    ("written", "heard"),
    [
        (
            "## Results\n\n- **Apples** grow here.\n\n> Quoted text is here.",
            "results apples grow here quoted text is here",
        ),
        ("```python\nprint(1)\n```\nThat prints one.", "a block of python code that prints one"),
        ("On 30/11/2026 it was 20 °C, 5 km away.", "on november 30th 2026 it was 20 degrees celsius 5 kilometers away"),
        ("Great job 🎉! Ｈｅｌｌｏ 𝐰𝐨𝐫𝐥𝐝.", "great job party popper hello world"),
    ],
)
async def test_it_is_heard_as_a_person_says_it(heart, whisper, written, heard):
    speech_n = np.concatenate(list(heart.speak(read_all(written, "en").aloud, 1.0)))
    transcript = await whisper.hear(soxr.resample(speech_n, SPEECH_RATE, HEARING_RATE), "en")
    numbers = {"twenty": "20", "five": "5"}
    words = re.findall(r"\w+", transcript.text.lower())
    assert wrong_characters(heard, " ".join(numbers.get(word, word) for word in words)) < 0.25
