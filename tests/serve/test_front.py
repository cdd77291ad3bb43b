"""/health and /ready: by what Serve's controller says, and on a Serve whose one deployment loads when it is told to."""

import asyncio
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.schema import (
    ApplicationStatus,
    ApplicationStatusOverview,
    DeploymentStatus,
    DeploymentStatusOverview,
    DeploymentStatusTrigger,
    ReplicaState,
    ServeStatus,
)

from voicechat_platform.errors import InputError
from voicechat_serve import application
from voicechat_serve.api import front
from voicechat_serve.api.access import AccessRules
from voicechat_serve.application import DeploymentFailedError, DeploymentState
from voicechat_serve.application_file import APIArguments, Engines, Replicas
from voicechat_serve.generation.served_model import ServedModel
from voicechat_serve.operations.health import MOST_FAILURES


def status(**replicas: dict[str, int]) -> ServeStatus:
    """Deployments of one application, by their replicas' states."""
    deployments = {
        name: DeploymentStatusOverview(
            status=DeploymentStatus.HEALTHY if states.get("RUNNING") else DeploymentStatus.UPDATING,
            status_trigger=DeploymentStatusTrigger.UNSPECIFIED,
            replica_states={ReplicaState(state): number for state, number in states.items()},
            message="",
        )
        for name, states in replicas.items()
    }
    overview = ApplicationStatusOverview(
        status=ApplicationStatus.RUNNING, message="", last_deployed_time_s=0, deployments=deployments
    )
    return ServeStatus(applications={"api": overview})


@pytest.fixture
async def probes(monkeypatch):
    """A client of the front alone; what `answer` returns is what the controller says."""

    class Probes(httpx.AsyncClient):
        answer: Callable[[], ServeStatus]

    app = FastAPI()
    front.add_probes(app)
    monkeypatch.setattr(front.serve, "status", lambda: probes.answer())
    async with Probes(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as probes:
        yield probes


async def test_ready_when_every_deployment_has_a_replica(probes):
    probes.answer = lambda: status(one={"RUNNING": 1}, two={"RUNNING": 2, "STARTING": 1})
    ready = await probes.get("/ready")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready", "not_ready": {}})


@pytest.mark.parametrize("states", [{}, {"STARTING": 1}, {"STOPPING": 1, "STARTING": 1}, {"RUNNING": 0}])
async def test_not_ready_while_one_has_none(probes, states):
    probes.answer = lambda: status(one={"RUNNING": 1}, two=states)
    ready = await probes.get("/ready")
    assert (ready.status_code, ready.json()) == (503, {"status": "unavailable", "not_ready": {"two": "updating"}})
    health = await probes.get("/health")
    assert (health.status_code, health.json()) == (200, {"status": "ok"})


async def test_a_deployment_that_is_gone_because_nobody_asks_is_no_reason_to_send_nothing(probes):
    asleep = status(one={"RUNNING": 1}, two={})
    asleep.applications["api"].deployments["two"].status = DeploymentStatus.HEALTHY
    probes.answer = lambda: asleep
    assert (await probes.get("/ready")).json() == {"status": "ready", "not_ready": {}}


async def test_only_our_applications_count(probes):
    mixed = status(one={"RUNNING": 1})
    mixed.applications["others"] = status(two={}).applications["api"]
    probes.answer = lambda: mixed
    assert (await probes.get("/ready")).json() == {"status": "ready", "not_ready": {}}
    probes.answer = lambda: ServeStatus(applications={"others": status(two={"RUNNING": 1}).applications["api"]})
    assert (await probes.get("/ready")).json()["not_ready"] == {"api": "not deployed"}


async def test_not_ready_while_serve_does_not_know_the_deployments(probes):
    probes.answer = status  # an application without any
    assert (await probes.get("/ready")).json()["not_ready"] == {"api": "running"}


@pytest.mark.parametrize("path", ["/health", "/ready"])
async def test_a_controller_that_fails(probes, path):
    def fail() -> ServeStatus:
        raise RuntimeError("no controller")

    probes.answer = fail
    response = await probes.get(path)
    assert (response.status_code, response.json()["status"]) == (503, "unavailable")


async def test_a_silent_controller_is_asked_once(probes, monkeypatch):
    monkeypatch.setattr(front, "CONTROLLER_TIMEOUT_S", 0.05)
    asked, speak = [], threading.Event()

    def silent() -> ServeStatus:
        asked.append(threading.current_thread())
        speak.wait(30)
        return status(one={"RUNNING": 1})

    probes.answer = silent
    try:
        answers = await asyncio.gather(*(probes.get(path) for path in ["/health", "/ready"] * 8))
        assert {answer.status_code for answer in answers} == {503}
        assert len(asked) == 1  # and not a thread for each probe
    finally:
        speak.set()
    probes.answer = lambda: status(one={"RUNNING": 1})
    deadline = time.monotonic() + 10
    while (await probes.get("/ready")).status_code != 200:
        assert time.monotonic() < deadline


def gated(gate: Path) -> serve.Application:
    """A deployment that loads for as long as there is no such file, and fails while there is one beside it."""

    @serve.deployment(name="gated", **Replicas().options())
    class Gated:
        def __init__(self):
            import time

            from voicechat_serve.operations.health import Health

            self.health = Health()
            while not gate.exists():
                time.sleep(0.05)

        def __call__(self):
            with self.health.step("answering"):
                if gate.with_name("broken").exists():
                    raise RuntimeError("on purpose")
            return "open"

        def check_health(self):
            self.health.check()

    return Gated.bind()


@pytest.fixture(scope="module")
def gate(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("gate") / "open"


@pytest.fixture(scope="module")
def address(gate) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        targets = [
            serve.RunTarget(gated(gate), name="api", route_prefix="/v1"),
            serve.RunTarget(application.front_application(None, AccessRules()), name="front", route_prefix="/"),
        ]
        serve.run_many(targets, wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


def probe(address: str, path: str) -> httpx.Response | None:
    try:
        return httpx.get(f"{address}{path}", timeout=30)
    except httpx.TransportError:  # the port is not open yet
        return None


def until(address: str, path: str, accept: Callable[[httpx.Response], bool]) -> httpx.Response:
    deadline = time.monotonic() + 60
    while True:
        response = probe(address, path)
        if response is not None and accept(response):
            return response
        assert time.monotonic() < deadline, response and response.text
        time.sleep(0.1)


def test_readiness_follows_the_slowest_part_and_liveness_does_not(address, gate):
    until(address, "/health", lambda response: response.status_code == 200)
    loading = until(address, "/ready", lambda response: "front" not in response.text)
    assert (loading.status_code, loading.json()) == (
        503,
        {"status": "unavailable", "not_ready": {"gated": "updating"}},
    )
    gate.touch()
    ready = until(address, "/ready", lambda response: response.status_code == 200)
    assert ready.json() == {"status": "ready", "not_ready": {}}
    assert httpx.get(f"{address}/v1").text == "open"

    gate.unlink()  # so that the replacement cannot load
    (replica,) = (actor for actor in ray.util.list_named_actors(all_namespaces=True) if "#gated#" in actor["name"])
    ray.kill(ray.get_actor(replica["name"], namespace=replica["namespace"]))
    gone = until(address, "/ready", lambda response: response.status_code == 503)
    assert list(gone.json()["not_ready"]) == ["gated"]
    assert probe(address, "/health").json() == {"status": "ok"}
    gate.touch()
    until(address, "/ready", lambda response: response.status_code == 200)


def test_a_replica_whose_every_call_fails_is_not_ready_and_is_replaced(address, gate):
    gate.touch()
    until(address, "/ready", lambda response: response.status_code == 200)
    broken = gate.with_name("broken")
    broken.touch()
    gate.unlink()  # so that the replacement cannot load
    assert [httpx.get(f"{address}/v1").status_code for _ in range(MOST_FAILURES)] == [500] * MOST_FAILURES
    failing = until(address, "/ready", lambda response: response.status_code == 503)
    assert failing.json() == {"status": "unavailable", "not_ready": {"gated": "unhealthy"}}
    broken.unlink()
    gate.touch()
    until(address, "/ready", lambda response: response.status_code == 200)
    assert httpx.get(f"{address}/v1").text == "open"


@serve.deployment(ray_actor_options={"num_cpus": 0}, graceful_shutdown_wait_loop_s=0.1)
class Others:
    """Of somebody who uses the same Serve."""

    def __call__(self):
        return "theirs"


def test_the_applications_of_others_neither_count_nor_end_with_ours(address, gate):
    """It takes our applications down."""
    gate.touch()
    serve.run(Others.bind(), name="others", route_prefix="/others")
    serve.run_many(
        [serve.RunTarget(gated(gate.with_name("never")), name="unready", route_prefix="/unready")],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )
    application.wait_until_ready(timeout_s=60)
    assert until(address, "/ready", lambda response: response.status_code == 200).json()["not_ready"] == {}
    port = int(address.rpartition(":")[2])
    with pytest.raises(InputError, match=f"listens on 127.0.0.1, port {port}: give that with --port"):
        application.join_serve(port + 1, "127.0.0.1")
    with pytest.raises(InputError, match="has an application 'api' that is none of ours"):  # its one deployment: gated
        application.join_serve(port, "127.0.0.1")

    application.stop()
    assert set(serve.status().applications) == {"others", "unready"}
    assert httpx.get(f"{address}/others", timeout=30).text == "theirs"
    serve.delete("others")
    serve.run(Others.bind(), name="others", route_prefix="/v1")
    with pytest.raises(InputError, match="'others' of the Serve on this Ray already has the route /v1"):
        application.join_serve(port, "127.0.0.1")


def test_a_model_that_cannot_load(address, gate, tiny_model, tmp_path):
    """The last one of this module: on the Serve that runs, without any of the applications above."""
    for loading in (gate, gate.with_name("never")):
        loading.touch()
    for name in serve.status().applications:
        serve.delete(name)
    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    broken = (ServedModel(id="broken", path=tmp_path), Engines())
    states: dict[str, DeploymentState] = {}
    application.deploy([broken], APIArguments(whisper="tiny.en"), int(address.rpartition(":")[2]))
    with pytest.raises(DeploymentFailedError, match=r"model broken: .*InputError: .*no weights in \*\.safetensors"):
        application.wait_until_ready(lambda seen: states.update({state.name: state for state in seen}))
    assert states["model broken"].state == "failed"
    assert set(states) == {"model broken", "transcription", "synthesis", "api", "front"}
    # Without a page, the root is an unknown address like any other.
    root = until(address, "/", lambda response: response.headers["content-type"] == "application/json")
    assert root.status_code == 404
    assert root.json()["error"]["type"] == "invalid_request_error"
    ready = httpx.get(f"{address}/ready", timeout=30)
    assert (ready.status_code, ready.json()["status"]) == (503, "unavailable")
    assert "model broken" in ready.json()["not_ready"]
    # A restart would not help.
    assert httpx.get(f"{address}/health", timeout=30).status_code == 200
