"""A conversation and its replies over made-up stages: order, overlap, failures, cancellation at any moment, and what
was heard of a reply that was broken off."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voicechat_serve.generation.loaded_model import Delta
from voicechat_serve.realtime.conversation import (
    NO_RESULT,
    Begun,
    Conversation,
    Event,
    Failed,
    Reply,
    SpeechChunk,
    TextDelta,
    stop,
)
from voicechat_serve.realtime.items import CallItem, MessageItem, ResultItem, Spoken
from voicechat_serve.synthesis.voices import SPEECH_RATE

CHUNK_MS = 10


class Stages:
    """A model and a voice that take their time in event loop rounds, so that every interleaving is reproducible.

    Args:
        reply: the pieces of every reply.
        delays: rounds to wait before each step, in the order in which the steps come.
        failing: the stage that raises, after its first output if it has any.
    """

    def __init__(self, reply: list[str], *, delays: Iterator[int] | None = None, failing: str = "") -> None:
        self.reply = reply
        self.delays = delays or itertools.repeat(0)
        self.failing = failing
        self.running: set[str] = set()
        self.spoken: list[str] = []
        self.speech_allowed = asyncio.Event()
        self.speech_allowed.set()

    def begin(self) -> Reply:
        return Reply(self.write(), self.speak)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        self.running.add(name)
        try:
            yield
        finally:
            self.running.remove(name)

    async def pause(self) -> None:
        for _ in range(next(self.delays)):
            await asyncio.sleep(0)

    async def write(self) -> AsyncGenerator[Delta, None]:
        with self.step("generation"):
            for number, piece in enumerate(self.reply, 1):
                await self.pause()
                yield Delta(piece, 5, number, "stop" if number == len(self.reply) else None)
                if self.failing == "generation":
                    raise OSError("no generation")

    async def speak(self, sentence: str) -> AsyncGenerator[np.ndarray, None]:
        self.spoken.append(sentence)
        with self.step("synthesis"):
            await self.speech_allowed.wait()
            for _ in sentence[:3]:
                await self.pause()
                yield np.zeros(CHUNK_MS * SPEECH_RATE // 1000, np.float32)
                if self.failing == "synthesis":
                    raise OSError("no synthesis")


async def events_of(reply: Reply) -> list[Event]:
    try:
        return [event async for event in reply.events()]
    finally:
        await reply.close()


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


async def test_a_reply_is_written_and_spoken() -> None:
    stages = Stages(["It is ", "noon. ", "Or nearly."])
    reply = stages.begin()
    events = await events_of(reply)
    assert text_of(events) == reply.message.text == "It is noon. Or nearly."
    assert stages.spoken == ["It is noon.", "Or nearly."]
    assert reply.message.spoken == [
        Spoken("It is noon.", 30, True, 0, "It is noon."),
        Spoken("Or nearly.", 30, True, 12, "Or nearly."),
    ]
    assert reply.message.status == "completed"
    assert reply.last is not None
    assert (reply.last.completion_tokens, reply.last.finish_reason) == (3, "stop")


async def test_a_reply_is_spoken_as_a_person_reads_it_and_kept_as_it_is_written() -> None:
    text = "## So\n\n```py\nDone.\n```\n- **5 km** \u4f60\u597d\n\nDone."
    stages = Stages(list(text))
    reply = stages.begin()
    await events_of(reply)
    assert stages.spoken == ["So.", "A block of py code.", "5 kilometers.", "Done."]
    assert reply.unspoken == ["\u4f60\u597d"]
    assert reply.message.text == text
    reply.message.truncate(reply.message.milliseconds - 1)
    assert reply.message.heard == text.removesuffix("\n\nDone.")  # and not up to the other "Done."


async def test_a_sentence_without_a_sound_is_told() -> None:
    async def silent(sentence: str) -> AsyncGenerator[np.ndarray, None]:
        for samples_n in ():
            yield samples_n

    reply = Reply(Stages(["One. ", "Two."]).write(), silent)
    await events_of(reply)
    assert reply.unspoken == ["One.", "Two."]
    assert not reply.message.spoken


async def test_a_reply_in_writing_is_not_spoken() -> None:
    stages = Stages(["It is ", "noon. "])
    reply = Reply(stages.write(), None)
    assert text_of(await events_of(reply)) == "It is noon. "
    assert not reply.message.is_spoken
    assert not stages.spoken


async def test_a_reply_begins_before_its_events_are_read_but_does_not_run_away() -> None:
    stages = Stages(["word. "] * 1000)
    reply = stages.begin()
    for _ in range(5000):
        await asyncio.sleep(0)
    assert 1 <= len(stages.spoken) < 100
    assert reply.message.text == ""
    await reply.close()
    assert stages.running == set()


async def test_text_does_not_wait_for_speech() -> None:
    stages = Stages(["One. ", "Two. ", "Three."])
    stages.speech_allowed.clear()
    reply = stages.begin()
    async for event in reply.events():
        assert isinstance(event, (Begun, TextDelta))
        if reply.message.text == "One. Two. Three.":
            await reply.close()
    assert stages.running == set()
    assert reply.message.status == "in_progress"


async def test_speech_starts_while_the_model_still_writes() -> None:
    text = "First of all, we count. Then we go on and on and on."
    # Ten rounds for every word and every chunk of speech.
    stages = Stages([word + " " for word in text.split()], delays=itertools.cycle([10]))
    kinds = [type(event) for event in await events_of(stages.begin())]
    assert kinds.index(SpeechChunk) < len(kinds) - 1 - kinds[::-1].index(TextDelta)


@pytest.mark.parametrize("failing", ["generation", "synthesis"])
async def test_a_failing_stage_ends_the_reply(failing: str) -> None:
    stages = Stages(["One. ", "Two. ", "Three."], failing=failing, delays=itertools.cycle([1, 2, 5]))
    *before, failed = await events_of(stages.begin())
    assert isinstance(failed, Failed)
    assert (failed.stage, str(failed.error)) == (failing, f"no {failing}")
    assert text_of(before).startswith("One. ")
    assert stages.running == set()


async def test_a_cancellation_from_within_a_stage_is_a_failure_not_a_hang() -> None:
    async def cancelled() -> AsyncGenerator[Delta, None]:
        yield Delta("One. ", 5, 1, None)
        raise asyncio.CancelledError

    events = await asyncio.wait_for(events_of(Reply(cancelled(), Stages([]).speak)), 5)
    assert isinstance(events[-1], Failed)


async def test_what_has_no_words_is_not_spoken() -> None:
    stages = Stages(["... ", "***\n", "Well."])
    await events_of(stages.begin())
    assert stages.spoken == ["Well."]


async def test_a_reader_that_waits_is_told_of_the_close() -> None:
    stages = Stages([], delays=itertools.repeat(10_000))
    stages.reply = ["never"]
    reply = stages.begin()
    reading = asyncio.create_task(events_of(reply))
    await asyncio.sleep(0.01)
    await reply.close()
    assert await asyncio.wait_for(reading, 5) == []


def spoken_item(*sentences: tuple[str, float]) -> MessageItem:
    return MessageItem(
        role="assistant",
        text=" ".join(text for text, _ in sentences),
        is_spoken=True,
        spoken=[Spoken(text, ms, True) for text, ms in sentences],
    )


@pytest.mark.parametrize(
    ("ms", "heard"),
    [
        (0, ""),
        (100, ""),  # in the middle of the first word
        (600, "Good morrow"),
        (650, "Good morrow"),
        (1000, "Good morrow to you."),
        (1400, "Good morrow to you. How"),
        (2000, "Good morrow to you. How are you?"),
        (9999, "Good morrow to you. How are you?"),
    ],
)
def test_of_a_broken_reply_the_words_that_were_played_stay(ms: float, heard: str) -> None:
    item = spoken_item(("Good morrow to you.", 1000), ("How are you?", 1000))
    item.truncate(ms)
    assert item.heard == heard
    item.truncate(1000)  # a better figure
    assert item.heard == "Good morrow to you."


def test_of_a_sentence_that_was_made_in_part_the_rest_was_not_heard() -> None:
    item = spoken_item(("A sentence of which only the first chunk was ever made", 200.0))
    item.spoken[0].is_whole = False
    item.truncate(199)
    assert item.heard == "A"


def said(text: str) -> MessageItem:
    return MessageItem(role="user", text=text)


def test_messages_leave_out_what_nobody_heard_and_join_what_one_person_said() -> None:
    conversation = Conversation()
    unheard = spoken_item(("Never heard.", 1000))
    unheard.truncate(0)
    for item in (said("One?"), unheard, said("Two?"), said(" ")):
        conversation.add(item)
    assert conversation.messages("Be brief.", [said("Three?")]) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?\nTwo?\nThree?"},
    ]
    assert conversation.messages() == [{"role": "user", "content": "One?\nTwo?"}]


def test_calls_and_their_results_in_the_messages() -> None:
    conversation = Conversation()
    for item in (
        said("What time is it, and what day?"),
        MessageItem(role="assistant", text="Let me see."),
        CallItem("clock", "{}", call_id="c1"),
        CallItem("calendar", '{"zone": "UTC"}', call_id="c2"),
        said("Well?"),
        ResultItem("c2", "Friday"),
        CallItem("clock", '{"zone": "U', call_id="c3", status="incomplete"),
        said("Hello?"),
        ResultItem("of no call", "lost"),
        CallItem("clock", "{}", call_id="c4"),
        ResultItem("c4", "noon"),
        CallItem("clock", "{}", call_id="c5"),
    ):
        conversation.add(item)

    def call(id: str, name: str, **arguments: str) -> dict:
        return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}

    def result(id: str, name: str, text: str) -> dict:
        return {"role": "tool", "name": name, "tool_call_id": id, "content": text}

    assert conversation.messages() == [
        {"role": "user", "content": "What time is it, and what day?"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [call("c1", "clock"), call("c2", "calendar", zone="UTC")],
        },
        result("c1", "clock", NO_RESULT),
        result("c2", "calendar", "Friday"),
        {"role": "user", "content": "Well?\nHello?"},
        {"role": "assistant", "content": "", "tool_calls": [call("c4", "clock")]},
        result("c4", "clock", "noon"),
        {"role": "assistant", "content": "", "tool_calls": [call("c5", "clock")]},
        result("c5", "clock", NO_RESULT),
    ]


IDS = st.sampled_from("abcd")
ITEMS = st.one_of(
    st.builds(MessageItem, role=st.sampled_from(["user", "assistant"]), text=st.sampled_from(["Hm.", " "])),
    st.builds(CallItem, st.just("f"), st.just("{}"), call_id=IDS, status=st.sampled_from(["completed", "incomplete"])),
    st.builds(ResultItem, IDS, st.just("done")),
)


@given(st.lists(ITEMS, max_size=12))
def test_the_messages_are_valid_whatever_the_items_are(items: list) -> None:
    conversation = Conversation()
    conversation.items = items
    awaited: list[str] = []
    before = None
    for message in conversation.messages():
        if message["role"] == "tool":
            assert awaited.pop(0) == message["tool_call_id"]
        else:
            assert not awaited, "a call without its result"
            assert message["role"] != before, "two messages of one role"
            awaited = [call["id"] for call in message.get("tool_calls", ())]
            assert message["content"] or awaited
        before = message["role"]
    assert not awaited


def test_the_oldest_items_are_forgotten() -> None:
    conversation = Conversation()
    for number in range(2000):
        conversation.add(MessageItem(role="user", text=str(number)))
    assert len(conversation.items) == 1000
    assert conversation.items[-1].text == "1999"


FAILING = st.sampled_from(["", "generation", "synthesis"])
REPLIES = st.lists(st.text("ab. ,\n", max_size=6), max_size=12)
DELAYS = st.lists(st.integers(0, 4), min_size=1, max_size=12).map(itertools.cycle)


@settings(deadline=None, max_examples=200)
@given(
    reply=REPLIES,
    delays=DELAYS,
    unread_rounds=st.integers(0, 20),
    rounds=st.integers(0, 60),
    failing=FAILING,
    is_cancelled=st.booleans(),
)
def test_ending_a_reply_at_any_moment_leaves_nothing_behind(
    reply: list[str], delays: Iterator[int], unread_rounds: int, rounds: int, failing: str, is_cancelled: bool
) -> None:
    async def scenario() -> None:
        stages = Stages(reply, delays=delays, failing=failing)
        conversation = Conversation()
        conversation.add(MessageItem(role="user", text="Go on."))
        made = stages.begin()
        received: list[Event] = []
        for _ in range(unread_rounds):
            await asyncio.sleep(0)
        assert made.message.text == ""  # nothing that was not handed out is in the history
        conversation.add(made.message)

        async def listen() -> None:
            async for event in made.events():
                received.append(event)

        listening = asyncio.create_task(listen())
        for _ in range(rounds):
            await asyncio.sleep(0)
        if is_cancelled:
            listening.cancel()
        await made.close()
        with contextlib.suppress(asyncio.CancelledError):
            await listening

        assert stages.running == set()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        num_received, num_spoken = len(received), len(stages.spoken)
        for _ in range(20):
            await asyncio.sleep(0)
        assert (len(received), len(stages.spoken)) == (num_received, num_spoken)

        assert made.message.text == text_of(received)
        sounds = sum(len(event.samples_n) for event in received if isinstance(event, SpeechChunk))
        assert made.message.milliseconds == pytest.approx(1000 * sounds / SPEECH_RATE)
        for ms in (0, made.message.milliseconds / 2, made.message.milliseconds):
            made.message.truncate(ms)
            assert made.message.text.startswith(made.message.heard)
        roles = [message["role"] for message in conversation.messages()]
        assert roles in (["user"], ["user", "assistant"])

        stages.failing = ""
        following = stages.begin()
        assert text_of(await events_of(following)) == "".join(reply)

    asyncio.run(scenario())


async def test_what_a_task_raises_while_it_is_stopped_is_logged(caplog):
    async def fail():
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("it cannot be closed")

    async def end():
        await asyncio.Event().wait()

    tasks = [asyncio.create_task(work()) for work in (fail, end)]
    await asyncio.sleep(0)
    await stop(*tasks, None)
    assert all(task.done() for task in tasks)
    assert "ValueError: it cannot be closed" in caplog.text
    caplog.clear()
    await stop(*tasks)
    assert not caplog.records, "whoever waited for a task that was over knows how it ended"
