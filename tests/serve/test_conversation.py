"""A voice turn over made-up stages: order, overlap, failures, cancellation at any moment, and the sentence splitter."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voicechat_serve.conversation import (
    Conversation,
    Event,
    Heard,
    Message,
    NothingHeard,
    SentenceSplitter,
    SpeechChunk,
    TextDelta,
    TurnEnded,
    TurnFailed,
)


class Stages:
    """Three stages that take their time in event loop rounds, so that every interleaving is reproducible.

    Args:
        reply: the pieces of every reply.
        delays: rounds to wait before each step, in the order in which the steps come.
        failing: the stage that raises, after its first output if it has any.
    """

    def __init__(
        self, reply: list[str], *, delays: Iterator[int] | None = None, heard: str = "Hello there", failing: str = ""
    ) -> None:
        self.reply = reply
        self.delays = delays or itertools.repeat(0)
        self.heard = heard
        self.failing = failing
        self.running: set[str] = set()
        self.requests: list[list[Message]] = []
        self.spoken: list[str] = []
        self.speech_allowed = asyncio.Event()
        self.speech_allowed.set()

    def conversation(self) -> Conversation:
        return Conversation(
            transcribe=self.transcribe,
            generate=self.generate,
            synthesize=self.synthesize,
            system_prompt="Be brief.",
        )

    @contextlib.asynccontextmanager
    async def step(self, name: str) -> AsyncGenerator[None, None]:
        self.running.add(name)
        try:
            yield
        finally:
            self.running.remove(name)

    async def pause(self) -> None:
        for _ in range(next(self.delays)):
            await asyncio.sleep(0)

    async def transcribe(self, recording: bytes) -> str:
        async with self.step("transcription"):
            await self.pause()
            if self.failing == "transcription":
                raise OSError("no transcription")
            return self.heard

    async def generate(self, messages: list[Message]) -> AsyncGenerator[str, None]:
        self.requests.append(messages)
        async with self.step("generation"):
            for piece in self.reply:
                await self.pause()
                yield piece
                if self.failing == "generation":
                    raise OSError("no generation")

    async def synthesize(self, sentence: str) -> AsyncGenerator[bytes, None]:
        self.spoken.append(sentence)
        async with self.step("synthesis"):
            await self.speech_allowed.wait()
            for letter in sentence.encode()[:3]:
                await self.pause()
                yield bytes([letter, 0])
                if self.failing == "synthesis":
                    raise OSError("no synthesis")


async def events_of(conversation: Conversation, **said: bytes | str) -> list[Event]:
    async with contextlib.aclosing(conversation.turn(**said)) as events:  # type: ignore[arg-type]
        return [event async for event in events]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def assert_consistent(history: list[Message]) -> None:
    assert [message["role"] for message in history] == ["user", "assistant"] * (len(history) // 2)
    assert all(message["content"].strip() for message in history)


async def test_a_spoken_turn_is_heard_written_and_spoken() -> None:
    stages = Stages(["It is ", "noon. ", "Or nearly."])
    conversation = stages.conversation()
    events = await events_of(conversation, audio=b"recording")
    assert events[0] == Heard("Hello there")
    assert text_of(events) == "It is noon. Or nearly."
    assert stages.spoken == ["It is noon.", "Or nearly."]
    spoken = b"".join(event.pcm for event in events if isinstance(event, SpeechChunk))
    assert spoken == b"I\0t\0 \0O\0r\0 \0"
    assert conversation.history == [
        {"role": "user", "content": "Hello there"},
        {"role": "assistant", "content": "It is noon. Or nearly."},
    ]


async def test_the_next_turn_sees_the_system_prompt_and_the_history() -> None:
    stages = Stages(["Yes."])
    conversation = stages.conversation()
    await events_of(conversation, text="One?")
    await events_of(conversation, text="Two?")
    assert [message["content"] for message in stages.requests[1]] == ["Be brief.", "One?", "Yes.", "Two?"]
    conversation.clear()
    await events_of(conversation, text="Three?")
    assert [message["content"] for message in stages.requests[2]] == ["Be brief.", "Three?"]


async def test_timings_come_in_order() -> None:
    events = await events_of(Stages(["One two. ", "Three."]).conversation(), audio=b"recording")
    ended = events[-1]
    assert isinstance(ended, TurnEnded)
    timings = ended.timings
    reached = [
        timings.transcription,
        timings.first_token,
        timings.first_sentence,
        timings.first_sound,
        timings.total,
    ]
    assert None not in reached
    assert reached == sorted(reached)  # type: ignore[type-var]


async def test_nothing_heard_makes_no_reply() -> None:
    stages = Stages(["Never."], heard=" \n")
    conversation = stages.conversation()
    events = await events_of(conversation, audio=b"silence")
    assert [type(event) for event in events] == [NothingHeard, TurnEnded]
    assert not stages.requests
    assert conversation.history == []


async def test_text_does_not_wait_for_speech() -> None:
    stages = Stages(["One. ", "Two. ", "Three."])
    stages.speech_allowed.clear()
    written = ""
    async with contextlib.aclosing(stages.conversation().turn(text="Count.")) as events:
        async for event in events:
            assert isinstance(event, TextDelta)
            written += event.text
            if written == "One. Two. Three.":
                break
    assert stages.running == set()


async def test_speech_starts_while_the_model_still_writes() -> None:
    text = "First of all, we count. Then we go on and on and on."
    # Ten rounds for every word and every chunk of speech.
    stages = Stages([word + " " for word in text.split()], delays=itertools.cycle([10]))
    kinds = [type(event) for event in await events_of(stages.conversation(), text="Go.")]
    assert kinds.index(SpeechChunk) < len(kinds) - 1 - kinds[::-1].index(TextDelta)


@pytest.mark.parametrize("failing", ["transcription", "generation", "synthesis"])
async def test_a_failing_stage_ends_the_turn_and_the_next_turn_works(failing: str) -> None:
    stages = Stages(["One. ", "Two. ", "Three."], failing=failing, delays=itertools.cycle([1, 2, 5]))
    conversation = stages.conversation()
    events = await events_of(conversation, audio=b"recording")
    failed, ended = events[-2:]
    assert isinstance(failed, TurnFailed)
    assert failed.stage == failing
    assert str(failed.error) == f"no {failing}"
    assert isinstance(ended, TurnEnded)
    assert stages.running == set()
    assert_consistent(conversation.history)
    stages.failing = ""
    assert text_of(await events_of(conversation, text="Again?")) == "One. Two. Three."
    assert_consistent(conversation.history)


async def test_a_cancellation_from_within_a_stage_is_a_failure_not_a_hang() -> None:
    async def cancelled(messages: list[Message]) -> AsyncGenerator[str, None]:
        yield "One. "
        raise asyncio.CancelledError

    stages = Stages([])
    conversation = Conversation(transcribe=stages.transcribe, generate=cancelled, synthesize=stages.synthesize)
    events = await asyncio.wait_for(events_of(conversation, text="Hm?"), 5)
    assert [type(event) for event in events[-2:]] == [TurnFailed, TurnEnded]


async def test_what_has_no_words_is_not_spoken() -> None:
    stages = Stages(["... ", "***\n", "Well."])
    await events_of(stages.conversation(), text="Hm?")
    assert stages.spoken == ["Well."]


async def test_one_turn_at_a_time() -> None:
    conversation = Stages(["One. "]).conversation()
    async with contextlib.aclosing(conversation.turn(text="A?")) as events:
        await anext(events)
        with pytest.raises(RuntimeError, match="another turn"):
            await anext(conversation.turn(text="B?"))
    assert text_of(await events_of(conversation, text="C?")) == "One. "


async def test_a_turn_takes_audio_or_text() -> None:
    conversation = Stages(["One."]).conversation()
    with pytest.raises(ValueError, match="either audio or text"):
        await anext(conversation.turn())


FAILING = st.sampled_from(["", "generation", "synthesis"])
REPLIES = st.lists(st.text("ab. ,\n", max_size=6), max_size=12)
DELAYS = st.lists(st.integers(0, 4), min_size=1, max_size=12).map(itertools.cycle)


@settings(deadline=None, max_examples=150)
@given(
    reply=REPLIES,
    delays=DELAYS,
    num_rounds=st.integers(0, 60),
    failing=FAILING,
)
def test_cancelling_at_any_moment_leaves_nothing_behind(
    reply: list[str], delays: Iterator[int], num_rounds: int, failing: str
) -> None:
    async def scenario() -> None:
        stages = Stages(reply, delays=delays, failing=failing)
        conversation = stages.conversation()
        received: list[Event] = []

        async def listen() -> None:
            async with contextlib.aclosing(conversation.turn(audio=b"recording")) as events:
                async for event in events:
                    received.append(event)

        listening = asyncio.create_task(listen())
        for _ in range(num_rounds):
            await asyncio.sleep(0)
        listening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await listening

        assert stages.running == set()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        num_received, num_spoken = len(received), len(stages.spoken)
        for _ in range(20):
            await asyncio.sleep(0)
        assert (len(received), len(stages.spoken)) == (num_received, num_spoken)
        assert_consistent(conversation.history)
        kept = "".join(message["content"] for message in conversation.history if message["role"] == "assistant")
        assert kept == (text_of(received) if text_of(received).strip() else "")

        stages.failing = ""
        assert text_of(await events_of(conversation, text="Next?")) == "".join(reply)
        assert_consistent(conversation.history)

    asyncio.run(scenario())


@settings(deadline=None, max_examples=100)
@given(reply=REPLIES, delays=DELAYS, num_events=st.integers(0, 20))
def test_closing_after_any_event_leaves_nothing_behind(
    reply: list[str], delays: Iterator[int], num_events: int
) -> None:
    async def scenario() -> None:
        stages = Stages(reply, delays=delays)
        conversation = stages.conversation()
        received: list[Event] = []
        async with contextlib.aclosing(conversation.turn(text="Go on.")) as events:
            for _ in range(num_events):
                with contextlib.suppress(StopAsyncIteration):
                    received.append(await anext(events))
        assert stages.running == set()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        kept = "".join(message["content"] for message in conversation.history if message["role"] == "assistant")
        assert kept == (text_of(received) if text_of(received).strip() else "")

    asyncio.run(scenario())


def split(pieces: list[str]) -> list[str]:
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
        ("", []),
        (" \n ", []),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert split([text]) == sentences
    assert split(list(text)) == sentences


PROSE = st.text(st.sampled_from("aB1.,;!?…:—\"' \n\té"), max_size=700)


@settings(max_examples=300)
@given(text=PROSE, cuts=st.lists(st.integers(0, 10_000), max_size=20))
def test_sentences_are_the_text_however_it_is_chopped(text: str, cuts: list[int]) -> None:
    sentences = split(chopped(text, cuts))
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert all(sentence and len(sentence) <= SentenceSplitter.MAX_CHARACTERS for sentence in sentences)
    assert sentences == split([text])


def test_a_text_without_any_boundary_is_cut_at_the_cap() -> None:
    sentences = split(["x" * 1000])
    assert [len(sentence) for sentence in sentences] == [240, 240, 240, 240, 40]


def test_a_long_sentence_is_cut_between_words() -> None:
    assert all(set(sentence.split()) == {"word"} for sentence in split(["word " * 200]))
