"""The load test against a small server that does as it is told: what is sent when, and what is counted."""

import asyncio
import json
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator
from itertools import islice

import httpx
import numpy as np
import pytest
import pytest_asyncio
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from voicechat_platform.errors import InputError
from voicechat_ui.load_test.levels import MOST_REFUSALS, Level, arrivals, run, run_levels
from voicechat_ui.load_test.report import percentiles, summary, table
from voicechat_ui.load_test.targets import Sample, TranscriptionTarget, choose_target

TEMPLATE_TOKENS, TOKENS_PER_WORD, COMPLETION_TOKENS = 10, 2, 40


class FakeServer:
    """OpenAI's API, as `behaviours` has it: one for each streamed request, and "answer" when they are used up."""

    def __init__(self):
        self.behaviours: deque[str] = deque()
        self.together = asyncio.Barrier(1)
        """As many requests as it has places for must be there before any is answered."""
        self.prompts: list[str] = []
        self.keys: set[str | None] = set()
        self.active = self.most_active = 0
        self.app = FastAPI()
        self.app.get("/v1/models")(self.models)
        self.app.post("/v1/chat/completions")(self.chat)
        self.app.post("/v1/audio/speech")(self.speech)
        self.app.post("/v1/audio/transcriptions")(self.transcription)

    async def models(self) -> dict:
        return {"object": "list", "data": [{"id": "hibari", "type": "synthesis"}, {"id": "fake", "type": "language"}]}

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        prompt = body["messages"][0]["content"]
        usage = {
            "prompt_tokens": TEMPLATE_TOKENS + TOKENS_PER_WORD * len(prompt.split()),
            "completion_tokens": COMPLETION_TOKENS,
        }
        if not body["stream"]:
            return JSONResponse({"usage": usage})
        self.prompts.append(prompt)
        self.keys.add(request.headers.get("authorization"))
        behaviour = self.behaviours.popleft() if self.behaviours else "answer"
        if behaviour == "refuse":
            return JSONResponse({"error": {}}, 429, headers={"Retry-After": "0"})
        if behaviour == "refuse without a word":
            return JSONResponse({"error": {}}, 503)
        if behaviour == "fail":
            return JSONResponse({"error": {"message": "broken"}}, 500)
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        await self.together.wait()
        self.active -= 1
        return StreamingResponse(self.events(behaviour, usage), media_type="text/event-stream")

    async def events(self, behaviour: str, usage: dict) -> AsyncIterator[str]:
        yield event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        for _ in range(3):
            yield event({"choices": [{"delta": {"content": "several tokens"}}]})
        if behaviour == "break off":
            raise ConnectionResetError
        if behaviour == "stop without an end":
            return
        if behaviour == "fail in the middle":
            yield event({"error": {"message": "the engine broke"}})
            return
        if behaviour == "wait for ever":
            await asyncio.Event().wait()
        yield event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
        yield event({"choices": [], "usage": usage})
        yield "data: [DONE]\n\n"

    async def speech(self) -> Response:
        return Response(bytes(2 * 24_000 * 3))

    async def transcription(self, request: Request) -> Response:
        form = await request.form()
        assert (await form["file"].read())[:4] == b"RIFF"
        return JSONResponse({"text": "hello", "usage": {"type": "duration", "seconds": 3.0}})


def event(content: dict) -> str:
    return f"data: {json.dumps(content)}\n\n"


@pytest_asyncio.fixture
async def fake() -> AsyncIterator[tuple[FakeServer, str]]:
    fake = FakeServer()
    server = uvicorn.Server(uvicorn.Config(fake.app, port=0, log_level="critical", timeout_graceful_shutdown=1))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield fake, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    server.should_exit = True
    await serving


WANTED = {"model": None, "prompt_tokens": 64, "max_tokens": 8, "sound": None, "seed": 0}


async def load(url: str, given: Level, endpoint="chat", **wanted) -> dict:
    await asyncio.wait_for(run_levels([given], endpoint, url, "secret", lambda level: None, **WANTED | wanted), 30)
    return summary(given)


async def test_a_closed_loop_keeps_so_many_streams_busy_and_no_more(fake):
    server, url = fake
    server.together = asyncio.Barrier(3)
    found = await load(url, Level(streams=3, requests=12))
    assert server.most_active == 3
    assert len(server.prompts) == len(set(server.prompts)) == 12
    assert server.keys == {"Bearer secret"}
    assert (found["done"], found["requests"], found["unfinished"]) == (12, 12, 0)
    assert found["statuses"] == {"200": 12}


async def test_an_open_loop_waits_for_no_answer(fake):
    server, url = fake
    server.together = asyncio.Barrier(10)  # no answer before the tenth request
    found = await load(url, Level(rate=500, requests=10))
    assert server.most_active == 10
    assert found["done"] == 10


def test_arrivals_are_a_poisson_process():
    moments = np.array(list(islice(arrivals(4.0, seed=3), 20_000)))
    gaps = np.diff(moments, prepend=0)
    assert gaps.mean() == pytest.approx(1 / 4, rel=0.02)
    assert gaps.std() == pytest.approx(1 / 4, rel=0.02)  # of an exponential distribution, as its mean
    assert list(islice(arrivals(4.0, seed=3), 5)) == moments[:5].tolist()
    assert list(islice(arrivals(4.0, seed=4), 5)) != moments[:5].tolist()


async def test_tokens_are_counted_by_the_server(fake):
    _, url = fake
    given = Level(streams=1, requests=2)
    found = await load(url, given)
    assert found["completion_tokens"] == 2 * COMPLETION_TOKENS  # although each answer came in three pieces
    assert found["prompt_tokens"] == 2 * 64  # which takes (64 - 10) / 2 words
    assert found["tokens_per_second"] == found["completion_tokens"] / found["seconds"]
    sample = given.samples[0]
    assert sample.due <= sample.sent < sample.first < sample.last <= sample.ended
    expected = [(s.last - s.first) / (COMPLETION_TOKENS - 1) for s in given.samples]
    assert found["inter_token_seconds"]["p50"] == pytest.approx(np.median(expected))


async def test_every_way_a_request_can_end_is_counted_apart(fake):
    server, url = fake
    server.behaviours.extend(
        ["answer", "refuse", "refuse without a word", "fail", "fail in the middle", "break off", "stop without an end"]
    )
    found = await load(url, Level(streams=1, requests=8))
    assert {outcome: found[outcome] for outcome in ("done", "refused", "failed", "lost")} == {
        "done": 2,
        "refused": 2,
        "failed": 2,
        "lost": 2,
    }
    assert found["statuses"] == {"200": 5, "429": 1, "500": 1, "503": 1}
    assert (found["refusals"], found["refusals_without_retry_after"]) == (2, 1)
    assert found["errors"]["the engine broke"] == 1
    assert found["completion_tokens"] == 2 * COMPLETION_TOKENS
    assert table("", [found]).row_count > 10


async def test_a_refusal_is_retried_when_asked(fake):
    server, url = fake
    server.behaviours.extend(["refuse", "refuse", "answer", "answer"])
    given = Level(streams=1, requests=2, retry=True)
    found = await load(url, given)
    assert (found["done"], found["refused"], found["refusals"]) == (2, 0, 2)
    assert server.prompts[0] == server.prompts[1] == server.prompts[2]
    assert given.samples[0].status == 200


async def test_nobody_retries_for_ever(fake):
    server, url = fake
    server.behaviours.extend(["refuse"] * MOST_REFUSALS)
    found = await load(url, Level(streams=1, requests=2, retry=True))
    assert (found["done"], found["refused"], found["refusals"]) == (1, 1, MOST_REFUSALS)


async def test_what_is_measured_outlives_an_interruption(fake):
    server, url = fake
    server.behaviours.extend(["answer", "answer", "wait for ever"])
    given = Level(streams=1, requests=9)
    reached = asyncio.Event()

    def on_change(level: Level) -> None:
        if len(level.samples) == 2 and level.under_way == 1:
            reached.set()

    running = asyncio.create_task(run_levels([given], "chat", url, "", on_change, **WANTED))
    await asyncio.wait_for(reached.wait(), 30)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    found = summary(given)
    assert (found["done"], found["requests"], found["unfinished"]) == (2, 2, 1)


async def test_speech_and_transcriptions(fake):
    _, url = fake
    found = await load(url, Level(streams=1, requests=2), "speech")
    assert (found["done"], found["audio_seconds"]) == (2, 6.0)
    found = await load(url, Level(streams=1, requests=2), "transcriptions")  # of speech that the server makes
    assert (found["done"], found["audio_seconds"], found["lost"]) == (2, 6.0, 0)
    assert found["audio_seconds_per_second"] == 6 / found["seconds"]


async def test_an_answer_of_another_form_is_a_failure(fake):
    _, url = fake
    async with httpx.AsyncClient(base_url=url) as client:
        target = TranscriptionTarget("whisper-1", b"", path="/audio/speech")  # answers with bytes that are no JSON
        given = Level(streams=1, requests=1)
        await run(given, client, target, lambda: None)
    assert given.samples[0].outcome == "failed"


async def test_no_server_and_no_model(fake, unused_tcp_port):
    with pytest.raises(InputError, match="voicechat serve"):
        await load(f"http://127.0.0.1:{unused_tcp_port}/v1", Level(streams=1, requests=1))
    server, url = fake
    async with httpx.AsyncClient(base_url=f"{url}/nowhere") as client:
        with pytest.raises(InputError, match="/models answers 404"):
            await choose_target(client, "chat", **WANTED)
    server.app.get("/page/models")(lambda: ["not", "OpenAI's"])
    with pytest.raises(InputError, match="OpenAI's form"):
        await load(url.replace("/v1", "/page"), Level(streams=1, requests=1))


def test_percentiles_are_numpys():
    values = np.random.default_rng(0).exponential(size=137).tolist()
    assert percentiles(values) == {f"p{p}": np.percentile(values, p) for p in (50, 90, 99)}
    assert percentiles([]) is None
    assert percentiles([2.0]) == {"p50": 2.0, "p90": 2.0, "p99": 2.0}


def test_waiting_counts_from_when_a_request_was_due():
    given = Level(rate=1.0, began=100.0)
    given.samples.append(
        Sample(due=101.0, sent=103.0, first=104.0, last=106.0, ended=106.0, outcome="done", completion_tokens=5)
    )
    found = summary(given)
    assert found["time_to_first_seconds"]["p50"] == 3.0
    assert found["total_seconds"]["p50"] == 5.0
    assert found["inter_token_seconds"]["p50"] == 0.5
    assert found["sent_late_seconds"]["p50"] == 2.0
    assert found["requests_per_second"] == 1 / 6
    assert found["tokens_per_second_of_a_stream"]["p50"] == 1.0


async def command(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "voicechat_ui.cli", "load-test", "--json", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def test_the_command(fake):
    server, url = fake
    server.behaviours.extend(["answer"] * 5 + ["break off"])
    process = await command("--url", url, "--streams", "1,2", "--requests", "3")
    stdout, stderr = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 1, stderr  # because one was lost
    result = json.loads(stdout)
    assert (result["url"], result["endpoint"]) == (url, "chat")
    assert [level["streams"] for level in result["levels"]] == [1, 2]
    assert [level["done"] for level in result["levels"]] == [3, 2]
    assert result["levels"][1]["lost"] == 1


async def test_ctrl_c_shows_what_there_is(fake):
    server, url = fake
    server.behaviours.extend(["answer", "answer", "wait for ever"])
    process = await command("--url", url, "--streams", "1,8", "--requests", "3")
    while len(server.prompts) < 3:
        assert process.returncode is None
        await asyncio.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, stderr = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 130, stderr
    (level,) = json.loads(stdout)["levels"]
    assert level["done"] == 2
    assert level["unfinished"] == 1


async def test_bad_levels():
    process = await command("--streams", "1,many")
    _, stderr = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 2
    assert b"such as 1,8,32" in stderr
