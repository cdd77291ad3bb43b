"""What a spoken turn waits for, part by part.

transcription: short utterances through our short context, beside faster-whisper's own `transcribe`.
turn: from the endpoint to the first sound at a client of /v1/realtime, beside the bare stages, each alone in one
process: hear the utterance, write the first clause, speak it. With the early start at the first pause, and without.
ends: the same two ways of finding a turn's end, by silence and by the words before it, over whole utterances and over
such in whose middle somebody stops for 0.8 s.
interruption: from the event that somebody speaks over a reply to the event that the reply has ended.
four at once: the same turns in four conversations, and gaps in what they hear.

    python benchmarks/voice_turn.py [--parts transcription,turn,ends,interruption,four] [--full]
"""

import argparse
import asyncio
import time
from statistics import median
from typing import Any

import numpy as np
from hibari import Hibari
from reporting import bar, floor, report
from service import running_service
from voice_client import INSTRUCTIONS, MODEL, Person, person
from voice_clips import THREADS, Clip, Hesitation, clips, hesitations
from voice_transcription import Part, measure_transcription

from voicechat_platform.assets import CATALOGUE, locate, locate_gguf
from voicechat_serve.audio import HEARING_RATE
from voicechat_serve.generation.engines.choice import open_model
from voicechat_serve.generation.loaded_model import GenerationOptions, LoadedModel
from voicechat_serve.generation.served_model import ServedModel
from voicechat_serve.realtime.response import DELTA_S
from voicechat_serve.synthesis.sentences import SentenceSplitter
from voicechat_serve.transcription.transcriber import Transcription

PARTS = ("transcription", "turn", "ends", "interruption", "four")
SETTLE_S = 3
"""After a session, for what it began to end."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--whisper", choices=["tiny.en", "base"], default="tiny.en", help="of the transcription part")
    parser.add_argument("--rounds", type=int, default=2, help="times that each clip is heard; the fastest counts")
    parser.add_argument("--parts", default=",".join(PARTS), help="of the benchmark  [default: all]")
    parser.add_argument("--full", action="store_true", help="all questions, not the first six; 15 minutes")
    arguments = parser.parse_args()
    wanted = arguments.parts.split(",")
    if unknown := set(wanted) - set(PARTS):
        parser.error(f"unknown parts {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    results: list[dict[str, Any]] = []
    bars: list[dict[str, Any]] = []

    def add(part: Part) -> None:
        results.extend(part[0])
        bars.extend(part[1])

    if "transcription" in wanted:
        add(measure_transcription(arguments.whisper, arguments.rounds))
    questions = [clip for clip in clips() if clip.source == "synthesised"]
    questions = questions if arguments.full else questions[:6]
    bare = measure_bare_stages(questions) if "turn" in wanted else {}
    if set(wanted) - {"transcription"}:
        model = ServedModel(id=MODEL, path=locate_gguf(MODEL), sampling=CATALOGUE[MODEL].sampling)
        with running_service(model) as host:
            address = f"ws://{host}/v1/realtime?model={MODEL}"
            if "turn" in wanted:
                add(asyncio.run(measure_turns(address, questions, bare)))
            if "ends" in wanted:
                add(asyncio.run(measure_ends(address, hesitations()[: None if arguments.full else 4])))
            if "interruption" in wanted:
                add(asyncio.run(measure_interruptions(address, questions, 20 if arguments.full else 10)))
            if "four" in wanted:
                add(asyncio.run(measure_four(address, questions)))
    report("voice_turn", results, bars)


def measure_bare_stages(questions: list[Clip]) -> dict[str, list[float]]:
    """Seconds of each stage alone, one question after the other, with nothing else at work."""
    transcription = Transcription(locate("whisper-tiny.en"), THREADS)
    model = LoadedModel(*open_model(locate_gguf(MODEL)), MODEL)
    voice = Hibari(threads=1)

    async def first_clause(said: str) -> str:
        splitter = SentenceSplitter()
        messages = [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": said}]
        options = GenerationOptions(sampling={"temperature": 0, "max_tokens": 60})
        async for delta in model.chat(messages, options):
            if sentences := splitter.feed(delta.text):
                return sentences[0].text
        return " ".join(sentence.text for sentence in splitter.flush())

    async def measure() -> dict[str, list[float]]:
        await model.warm_up()
        next(iter(voice.stream("Ready.")))
        taken: dict[str, list[float]] = {"hear": [], "first clause": [], "speak it": []}
        for clip in questions:
            began = time.perf_counter()
            transcript = await transcription.hear(clip.samples_n)
            assert transcript is not None
            heard = time.perf_counter()
            clause = await first_clause(transcript.text)
            written = time.perf_counter()
            next(iter(voice.stream(clause)))
            spoken = time.perf_counter()
            for name, seconds in zip(taken, (heard - began, written - heard, spoken - written), strict=True):
                taken[name].append(seconds)
        return taken

    try:
        return asyncio.run(measure())
    finally:
        model.engine.close()


async def measure_turns(address: str, questions: list[Clip], bare: dict[str, list[float]]) -> Part:
    bare_sums = [sum(stages) for stages in zip(*bare.values(), strict=True)]
    rows = [{"part": "turn", "way": f"bare: {name}", "p50 s": median(taken)} for name, taken in bare.items()]
    rows.append({"part": "turn", "way": "bare: sum", "p50 s": median(bare_sums)})
    medians = {}
    for anticipate in (False, True):
        turns = []
        for clip in questions:  # a session each: the bare stages have no history either
            async with person(address, anticipate=anticipate) as asking:
                turns.append(await asking.question(clip.samples_n))
            await asyncio.sleep(SETTLE_S)
        medians[anticipate] = median(turn["first sound"] for turn in turns)
        rows.append(
            {"part": "turn", "way": f"realtime, early start {'on' if anticipate else 'off'}"}
            | {f"{name}, p50 s": median(turn[name] for turn in turns) for name in turns[0]}
            | {"first sound, worst s": max(turn["first sound"] for turn in turns)}
        )
    return rows, [
        bar("endpoint to first sound / sum of the bare stages, p50", medians[True] / median(bare_sums), 1.15),
        bar("endpoint to first sound, p50, s", medians[True], 1.0),
        bar("the same with the early start / without, p50", medians[True] / medians[False], 1.0),
    ]


async def measure_ends(address: str, said: list[Hesitation]) -> Part:
    rows, waits, cuts = [], {}, {}
    for way in ("server_vad", "semantic_vad"):
        turns = []
        for hesitation in said:
            async with person(address, type=way) as asking:
                turns.append(await asking.first_sound(hesitation.whole.samples_n))
            await asyncio.sleep(1)
        cuts[way] = 0
        for hesitation in said:
            async with person(address, type=way, create_response=False) as asking:
                cuts[way] += await asking.is_cut_short(hesitation.broken.samples_n)
        endpoints, sounds = zip(*turns, strict=True)
        waits[way] = median(sounds)
        rows.append(
            {
                "part": "ends",
                "way": way,
                "end of speech to endpoint, p50 s": median(endpoints),
                "most s": max(endpoints),
                "to first sound, p50 s": waits[way],
                "cut short at a pause": f"{cuts[way]} of {len(said)}",
            }
        )
    return rows, [
        bar(
            "end of speech to first sound, by words / by silence, p50", waits["semantic_vad"] / waits["server_vad"], 1.1
        ),
        bar("cut short at a pause, by words / by silence", cuts["semantic_vad"] / max(cuts["server_vad"], 1), 0.5),
    ]


async def measure_interruptions(address: str, questions: list[Clip], count: int) -> Part:
    """Somebody speaks while a reply is made: milliseconds from speech_started to the reply's response.done."""
    taken, late = [], 0
    for number in range(count):
        async with person(address) as asking:
            began = time.perf_counter()
            text = {"type": "input_text", "text": "Tell me a long story about the sea, with all the details."}
            item = {"type": "message", "role": "user", "content": [text]}
            await asking.tell("conversation.item.create", item=item)
            await asking.tell("response.create", response={"max_output_tokens": 1000})
            await asking.until("response.output_audio.delta", began)
            await asking.say(questions[number % len(questions)].samples_n)
            started, _ = await asking.until("input_audio_buffer.speech_started", began)
            ended, event = await asking.until("response.done", began)
            if event["response"]["status"] == "cancelled":
                taken.append(1000 * (ended - started))
                late += sum(moment > ended for moment, _ in of_item(asking, event["response"]["output"][0]["id"]))
    assert taken, "every reply was through before it was interrupted"
    p95 = float(np.percentile(taken, 95))
    rows = [{"part": "interruption", "number": len(taken), "p50 ms": median(taken), "p95 ms": p95, "late sounds": late}]
    return rows, [
        floor("replies that were still made when they were interrupted", len(taken), count),
        bar("interruption to silence, p95, ms", p95, 200),
        bar("sounds of an interrupted reply after its end", late, 0),
    ]


def of_item(asking: Person, item_id: str) -> list[tuple[float, dict[str, Any]]]:
    return [
        (moment, event)
        for moment, event in asking.events
        if event["type"] == "response.output_audio.delta" and event["item_id"] == item_id
    ]


async def measure_four(address: str, questions: list[Clip]) -> Part:
    async def converse(place: int) -> list[dict[str, float]]:
        await asyncio.sleep(place * 0.7)
        async with person(address) as asking:
            return [await asking.question(questions[(place + turn) % len(questions)].samples_n) for turn in range(3)]

    turns = [turn for conversation in await asyncio.gather(*map(converse, range(4))) for turn in conversation]
    first_sounds = [turn["first sound"] for turn in turns]
    gap = max(turn["longest gap"] for turn in turns)
    rows = [
        {"part": "four at once", "turns": len(turns), "first sound, p50 s": median(first_sounds)}
        | {"first sound, worst s": max(first_sounds), "longest gap s": gap}
        | {"seconds of questions": float(np.mean([len(clip.samples_n) for clip in questions]) / HEARING_RATE)}
    ]
    return rows, [bar("four at once: longest gap in playback, s, against one chunk", gap, DELTA_S)]


if __name__ == "__main__":
    main()
