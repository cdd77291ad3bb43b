"""What is measured: the metrics' names, Ray's exporters on one page, Grafana's panels, and the real server under load.

The load test counts what it sent and got; the metrics, the log and the load test must agree to the token.
"""

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families
from ray.util.metrics import Counter, Gauge, Histogram, Metric

from running_service import Service
from voicechat_platform.assets import locate_gguf
from voicechat_serve.generation.chat_tokenizer import ChatTokenizer
from voicechat_serve.operations import exporters, metrics
from voicechat_serve.operations.exporters import cluster_metrics, merged
from voicechat_serve.operations.load import Load
from voicechat_ui.load_test.levels import Level, run_levels
from voicechat_ui.load_test.report import summary

OURS = {value.info["name"]: value for value in vars(metrics).values() if isinstance(value, Metric)}
DASHBOARD = Path(__file__).parents[2] / "serve" / "grafana" / "dashboard.json"
SECRET = "zanzibar"


def test_names_say_what_is_measured_and_in_which_unit():
    assert len(OURS) > 12
    for name, metric in OURS.items():
        assert name.startswith("voicechat_")
        assert metric.info["description"]
        if isinstance(metric, Counter):
            assert name.endswith("_total")
        elif isinstance(metric, Histogram):
            assert name.endswith(("_seconds", "_requests"))
            assert metric.boundaries == sorted(metric.boundaries)
        else:
            assert isinstance(metric, Gauge)
            assert name.endswith(("_running", "_waiting", "_ratio", "_sessions"))
        # Whatever a client may write freely has no label to go to.
        assert set(metric.info["tag_keys"]) <= {"endpoint", "model", "status"}


# What Ray's exporters answer, cut down; the second has a series more, and lacks a family.
FIRST = """\
# HELP ray_voicechat_requests_total Requests answered, or ended.
# TYPE ray_voicechat_requests_total counter
ray_voicechat_requests_total{Component="core_worker",SessionName="s",Version="2",WorkerId="a",model="m",\
otel_scope_name="o",status="200"} 3.0
# HELP ray_voicechat_first_token_seconds Time
# TYPE ray_voicechat_first_token_seconds histogram
ray_voicechat_first_token_seconds_bucket{WorkerId="a",le="0.1"} 1.0
ray_voicechat_first_token_seconds_bucket{WorkerId="a",le="+Inf"} 2.0
ray_voicechat_first_token_seconds_count{WorkerId="a"} 2.0
ray_voicechat_first_token_seconds_sum{WorkerId="a"} 0.25
# HELP ray_node_mem_used Memory
# TYPE ray_node_mem_used gauge
ray_node_mem_used{SessionName="s"} 5.0
# HELP ray_serve_num_http_requests_total The number of HTTP requests processed.
# TYPE ray_serve_num_http_requests_total counter
ray_serve_num_http_requests_total{WorkerId="p",route="/v1"} 4.0
"""
SECOND = """\
# HELP ray_voicechat_requests_total Requests answered, or ended.
# TYPE ray_voicechat_requests_total counter
ray_voicechat_requests_total{WorkerId="b",model="a \\"b\\"",status="200"} 1.0
ray_voicechat_requests_total{WorkerId="b",model="a \\"b\\"",status="503"} 2.0
"""


def series(exposition: str) -> dict[tuple, float]:
    """(name, labels) -> value; fails where two are the same, or a family comes twice."""
    families = list(text_string_to_metric_families(exposition))
    assert len({family.name for family in families}) == len(families)
    found = {}
    for family in families:
        assert family.type in ("counter", "gauge", "histogram")
        for sample in family.samples:
            key = (sample.name, *sorted(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def test_merging():
    assert series(merged([FIRST, SECOND], silent=1).decode()) == {
        ("voicechat_requests_total", ("WorkerId", "a"), ("model", "m"), ("status", "200")): 3,
        ("voicechat_requests_total", ("WorkerId", "b"), ("model", 'a "b"'), ("status", "200")): 1,
        ("voicechat_requests_total", ("WorkerId", "b"), ("model", 'a "b"'), ("status", "503")): 2,
        ("voicechat_first_token_seconds_bucket", ("WorkerId", "a"), ("le", "0.1")): 1,
        ("voicechat_first_token_seconds_bucket", ("WorkerId", "a"), ("le", "+Inf")): 2,
        ("voicechat_first_token_seconds_count", ("WorkerId", "a")): 2,
        ("voicechat_first_token_seconds_sum", ("WorkerId", "a")): 0.25,
        ("ray_serve_num_http_requests_total", ("WorkerId", "p"), ("route", "/v1")): 4,
        ("voicechat_exporters_silent",): 1,
    }


def test_the_applications_of_others_are_left_out():
    labels = ['application="others"', 'application="api"', 'application="front"', 'application=""', 'route="/v1"']
    name = "ray_serve_num_http_requests_total"
    exposition = "\n".join([f"# TYPE {name} counter", *(f"{name}{{{label}}} 1" for label in labels)])
    counted = [key for key in series(merged([exposition]).decode()) if key[0] == name]
    assert len(counted) == 4
    assert (name, ("application", "others")) not in counted


async def test_a_silent_exporter_is_left_out_and_counted(monkeypatch, unused_tcp_port_factory):
    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        body = SECOND.encode()
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        nodes = [
            {"Alive": True, "NodeManagerAddress": "127.0.0.1", "MetricsExportPort": port},
            {"Alive": True, "NodeManagerAddress": "127.0.0.1", "MetricsExportPort": unused_tcp_port_factory()},
            {"Alive": False, "NodeManagerAddress": "127.0.0.1", "MetricsExportPort": unused_tcp_port_factory()},
            {"Alive": True, "NodeManagerAddress": "127.0.0.1", "MetricsExportPort": -1},  # metrics are turned off
        ]
        monkeypatch.setattr(ray, "nodes", lambda: nodes)
        found = series((await cluster_metrics()).decode())
    assert found["voicechat_exporters_silent",] == 1
    assert sum(value for key, value in found.items() if key[0] == "voicechat_requests_total") == 3


def test_grafana_shows_every_metric_and_no_other():
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["schemaVersion"] >= 39
    assert {variable["name"] for variable in dashboard["templating"]["list"]} == {"datasource", "model"}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    shown = set()
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            assert target["datasource"]["uid"] == "${datasource}"
            assert target["expr"].count("(") == target["expr"].count(")")
            names = set(re.findall(r"\b(?:ray_serve|voicechat)_\w+", target["expr"]))
            assert names, target["expr"]
            for name in names:
                assert name.endswith("_bucket") == ("histogram_quantile" in target["expr"])
                shown.add(name.removesuffix("_bucket"))
                if (metric := OURS.get(name.removesuffix("_bucket"))) and "$model" in target["expr"]:
                    assert "model" in metric.info["tag_keys"]
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]}
    assert len(places) == len(dashboard["panels"])
    serves = {name for name in shown if name.startswith("ray_serve_")}
    assert {name.removesuffix("_total") for name in serves} == set(exporters.SERVES)
    assert shown - serves == {*OURS, "voicechat_exporters_silent"}


class Recorded:
    """A metric that keeps what it is told."""

    def __init__(self):
        self.values: list[float] = []

    def record(self, value: float, tags: dict[str, str]) -> None:
        assert tags == {"model": "m"}
        self.values.append(value)

    inc = observe = set = record


@pytest.fixture
def recorded(monkeypatch) -> dict[str, Recorded]:
    found = {}
    for name, value in vars(metrics).items():
        if isinstance(value, Metric):
            found[name] = Recorded()
    for name, metric in found.items():
        monkeypatch.setattr(metrics, name, metric)
    return found


def test_an_answers_tokens_and_times(recorded, monkeypatch):
    now = 100.0
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now)
    answer = metrics.AnswerMetrics({"model": "m"})
    for now, completion_tokens in [(102.0, 1), (104.0, 5), (104.5, 5), (105.0, 7)]:  # noqa: B007
        answer.observe(7, completion_tokens)
    assert recorded["FIRST_TOKEN_SECONDS"].values == [2.0]
    assert recorded["INTER_TOKEN_SECONDS"].values == [0.5, 0.5]  # 2 s for four, 1 s for two
    assert recorded["PROMPT_TOKENS"].values == [7]
    assert recorded["COMPLETION_TOKENS"].values == [1, 4, 2]


def test_an_engines_load_is_sampled(recorded):
    sampled = threading.Semaphore(0)
    loads = iter([Load(running=3, waiting=2, cache_used=0.25), Load(running=0, waiting=0, cache_used=0.0)])

    def load():
        sampled.release()
        return next(loads, None) or threading.Event().wait()  # parks the thread the third time

    metrics.LOAD_INTERVAL_S, kept = 0.001, metrics.LOAD_INTERVAL_S
    try:
        metrics.ModelMetrics("m", load)
        for _ in range(3):
            assert sampled.acquire(timeout=10)
    finally:
        metrics.LOAD_INTERVAL_S = kept
    assert recorded["REQUESTS_RUNNING"].values == [3, 0]
    assert recorded["REQUESTS_WAITING"].values == [2, 0]
    assert recorded["CACHE_USED"].values == [0.25, 0.0]
    assert recorded["DECODE_BATCH"].values == [3]  # an engine that rests decodes no batch


def scrape(http: httpx.Client) -> dict[tuple, float]:
    response = http.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return series(response.text)


def total(found: dict[tuple, float], name: str, **labels: str) -> float:
    wanted = set(labels.items())
    return sum(value for key, value in found.items() if key[0] == name and wanted <= set(key[1:]))


@dataclass
class Before:
    """What the service had counted and logged when a test began."""

    counts: dict[tuple, float]
    lines: int


@pytest.fixture
def before(http, service) -> Before:
    """When the requests of other tests are counted: every process reports once a second, at a moment of its own."""
    deadline = time.monotonic() + 60
    while True:
        before = Before(counters(http), len(request_lines(service)))
        time.sleep(3)
        is_told = total(before.counts, "voicechat_requests_total") == before.lines
        if is_told and before == Before(counters(http), len(request_lines(service))):
            return before
        assert time.monotonic() < deadline


def counters(http: httpx.Client) -> dict[tuple, float]:
    """Those that looking at the metrics does not count on."""
    return {
        key: value
        for key, value in scrape(http).items()
        if key[0].endswith(("_total", "_count")) and (key[0].startswith("voicechat_") or ("application", "api") in key)
    }


def eventually(http: httpx.Client, before: Before, check: Callable[[dict[tuple, float]], None]) -> None:
    """Scrapes until the check of what was counted since then holds."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return check({key: value - before.counts.get(key, 0) for key, value in scrape(http).items()})
        except AssertionError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.5)


def request_lines(service: Service) -> list[dict]:
    """Of the API's replica, whose every line is JSON; of the newest one, should it have been replaced."""
    file = max((service.logs() / "serve").glob("replica_api_api_*.log"), key=lambda file: file.stat().st_mtime)
    whole = file.read_text().rpartition("\n")[0]  # the last line may be half written
    return [line for line in map(json.loads, whole.splitlines()) if "request_id" in line and "path" in line]


def test_load_test_metrics_and_log_agree(service, http, before):
    levels = [
        Level(streams=4, requests=12),
        Level(rate=20, requests=10, seed=1),
    ]
    wanted = {"model": "shakespeare", "prompt_tokens": 60, "max_tokens": 20, "sound": None, "seed": 0}
    asyncio.run(run_levels(levels, "chat", f"{service.url}/v1", "", lambda level: None, **wanted))
    found = [summary(level) for level in levels]
    assert [level["done"] for level in found] == [12, 10]
    assert [level["requests"] for level in found] == [12, 10]
    completion = sum(level["completion_tokens"] for level in found)
    prompt = sum(level["prompt_tokens"] for level in found)
    assert completion > 22
    assert 50 <= prompt / 22 <= 70  # characters are this model's tokens, and words are of several lengths

    lines: list[dict] = []

    def all_are_logged(_: dict[tuple, float]) -> None:  # a line is written after its client has left
        since = request_lines(service)[before.lines :]
        lines[:] = [line for line in since if line["path"] == "/v1/chat/completions"]
        assert len(lines) == 24

    eventually(http, before, all_are_logged)
    calibration = lines[:2]  # two prompts that tell how long the server's tokens are
    assert [line["completion_tokens"] for line in calibration] == [1, 1]
    assert sum(line["completion_tokens"] for line in lines) == completion + 2
    assert sum(line["prompt_tokens"] for line in lines[2:]) == prompt

    of_chat = {"endpoint": "/v1/chat/completions", "model": "shakespeare"}

    def check(found: dict[tuple, float]) -> None:
        assert total(found, "voicechat_requests_total", **of_chat, status="200") == 24
        assert total(found, "voicechat_requests_total") == 25  # the list of models
        assert total(found, "voicechat_request_seconds_count", **of_chat) == 24
        assert total(found, "voicechat_first_byte_seconds_count", **of_chat) == 24
        assert total(found, "voicechat_first_token_seconds_count", model="shakespeare") == 24
        assert total(found, "voicechat_completion_tokens_total", model="shakespeare") == completion + 2
        prompts = sum(line["prompt_tokens"] for line in lines)
        assert total(found, "voicechat_prompt_tokens_total", model="shakespeare") == prompts
        assert total(found, "ray_serve_num_http_requests_total", application="api") == 25
        # An engine's load is told also while it is idle, and of models that nobody has asked.
        told = {dict(key[1:])["model"] for key in found if key[0] == "voicechat_requests_waiting"}
        assert told == {"romeo", "shakespeare", "smollm2-135m-instruct", "vectors"}
        assert total(found, "voicechat_exporters_silent") == 0

    eventually(http, before, check)


def test_audio_cancellations_and_unknown_names(service, http, before):
    speech = {"model": "tts-1", "voice": "alloy", "input": "How long is this sentence?", "response_format": "wav"}
    sound = http.post("/v1/audio/speech", json=speech).content
    form = {"model": "whisper-1", "prompt": SECRET}
    heard = http.post("/v1/audio/transcriptions", data=form, files={"file": ("sound.wav", sound)}).json()
    story = [{"role": "user", "content": f"Write a very long story about {SECRET}."}]
    endless = {str(token_id): -100 for token_id in ChatTokenizer(locate_gguf("smollm2-135m-instruct")).end_ids}
    chat = {"model": "smollm2-135m-instruct", "messages": story, "max_tokens": 1500, "n": 8, "stream": True}
    chat["logit_bias"] = endless  # no answer comes to its end before the client leaves
    with http.stream("POST", "/v1/chat/completions", json=chat) as response:
        first = next(response.iter_lines())
        assert response.status_code == 200, first
    http.post("/v1/chat/completions", json=chat | {"model": SECRET})
    http.get(f"/v1/{SECRET}")
    http.get("/v1/models", params={"key": SECRET}, headers={"x-request-id": "trace-1"})
    bad_id = http.get("/v1/models", headers={"x-request-id": f"{SECRET} {SECRET}"})
    (told,) = bad_id.headers.get_list("x-request-id")
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", told)

    seconds = heard["usage"]["seconds"]

    def check(found: dict[tuple, float]) -> None:
        assert total(found, "voicechat_cancelled_requests_total") == 1
        assert total(found, "voicechat_audio_heard_seconds_total") == pytest.approx(seconds)
        assert total(found, "voicechat_audio_spoken_seconds_total") == pytest.approx(seconds)
        assert total(found, "voicechat_synthesis_seconds_count") == 1
        assert total(found, "voicechat_transcription_seconds_count") == 1
        assert total(found, "voicechat_requests_total", model="unknown", status="404") == 2
        assert total(found, "voicechat_requests_total", model="hibari") == 1
        assert SECRET not in str(found)

    eventually(http, before, check)
    lines: list[dict] = []

    def all_are_logged(_: dict[tuple, float]) -> None:
        lines[:] = request_lines(service)[before.lines :]
        assert [line["request_id"] for line in lines][-2:] == ["trace-1", told]

    eventually(http, before, all_are_logged)
    assert bad_id.status_code == 200
    (left,) = (line for line in lines if line["cancelled"])
    assert (left["status"], left["model"]) == (200, "smollm2-135m-instruct")
    spoken = next(line for line in lines if line["path"] == "/v1/audio/speech")
    assert spoken["audio_seconds"] == pytest.approx(seconds)
    # Not in any log of Ray's and Serve's processes either.
    folder = service.logs()
    held = [file.name for file in folder.rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]
    assert held == []
