"""A running server that wants keys: the openai client, the front, WebSockets, revocation, and hostile requests."""

import base64
import json
import socket
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import openai
import pytest
import ray
import websockets.exceptions
import websockets.sync.client
from fastapi import FastAPI

from voicechat_serve import application
from voicechat_serve.api.access import AccessRules
from voicechat_serve.api.limits import BODY_SECONDS
from voicechat_serve.application_file import APIArguments, Engines
from voicechat_serve.generation.served_model import ServedModel
from voicechat_serve.operations.keys import create_key, fingerprint, make_secret, revoke_key


def page_that_asks_the_api(app: FastAPI, api_base_url: str, api_key: str) -> FastAPI:
    """As the page does: from the front's replica, with a key of its own."""
    from voicechat_ui.api_client import ApiClient

    api = ApiClient(api_base_url, api_key)
    app.get("/")(api.language_models)
    return app


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home") / "keys.json"


@pytest.fixture(scope="module")
def secret(keys_file) -> str:
    return create_key(keys_file, "anna")[1]


@pytest.fixture(scope="module")
def page_key() -> str:
    return make_secret()


@pytest.fixture(scope="module")
def server(tiny_model, keys_file, secret, page_key) -> Iterator[str]:
    """Listens on every address of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    access = AccessRules(host="0.0.0.0", keys_file=keys_file, keys_required=True, page_key_sha256=fingerprint(page_key))
    page = partial(page_that_asks_the_api, api_base_url=f"http://127.0.0.1:{port}/v1", api_key=page_key)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        application.deploy(
            [(ServedModel(id="shakespeare", path=tiny_model), Engines())],
            APIArguments(whisper="tiny.en"),
            port,
            page,
            access,
        )
        application.wait_until_ready(timeout_s=300)
        yield f"http://127.0.0.1:{port}"
    finally:
        application.stop()
        ray.shutdown()


def openai_client(server: str, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server}/v1", api_key=key, max_retries=0, timeout=60)


POST = """\
POST /v1/chat/completions HTTP/1.1
host: 127.0.0.1
authorization: Bearer {key}
content-type: application/json
"""

CHAT = {"model": "shakespeare", "messages": [{"role": "user", "content": "Who is there?"}], "max_tokens": 5}


def test_the_openai_client_with_the_right_key_and_with_a_wrong_one(server, secret):
    right = openai_client(server, secret)
    assert "shakespeare" in [model.id for model in right.models.list()]
    answer = right.chat.completions.with_raw_response.create(**CHAT)
    assert answer.headers["x-ratelimit-limit-requests"] == "600"
    assert len(list(right.chat.completions.create(**CHAT, stream=True))) > 1
    wrong = openai_client(server, make_secret())
    for request in (wrong.models.list, partial(wrong.chat.completions.create, **CHAT)):
        with pytest.raises(openai.AuthenticationError) as refused:
            request()
        assert (refused.value.status_code, refused.value.code) == (401, "invalid_api_key")


@pytest.mark.parametrize("path", ["/", "/health", "/metrics", "/v1", "/v1/models", "/v1/nowhere", "/nowhere"])
def test_no_route_without_a_key(server, path):
    for headers in ({}, {"authorization": "Bearer none"}):
        refused = httpx.get(server + path, headers=headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        assert refused.headers["www-authenticate"].startswith("Bearer" if path.startswith("/v1") else "Basic ")
        assert refused.headers["x-request-id"]


def test_serves_own_routes_are_this_machines(server):
    for path in ("/-/healthz", "/-/routes"):
        assert httpx.get(server + path).status_code == 200
        refused = httpx.get(server + path, headers={"x-forwarded-for": "203.0.113.7"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "not_found")


def test_the_front_takes_a_password_and_asks_the_api_with_its_own_key(server, secret):
    browser = httpx.Client(base_url=server, auth=("anybody", secret))
    assert [model["id"] for model in browser.get("/").json()] == ["shakespeare"]
    assert browser.get("/health").json()["status"] == "ok"
    assert browser.get("/v1/models").status_code == 200
    assert httpx.get(server, auth=(secret, "")).status_code == 401


def test_other_sites_pages_are_refused_with_a_key_too(server, secret):
    for path in ("/", "/v1/models"):
        refused = httpx.get(server + path, auth=("", secret), headers={"origin": "https://evil.example"})
        assert refused.status_code == 403
        own = {"host": "chat.example.com", "origin": "https://chat.example.com"}
        assert httpx.get(server + path, auth=("", secret), headers=own).status_code == 200


def test_a_websocket_is_refused_before_it_opens(server, secret):
    address = server.replace("http", "ws") + "/v1/nowhere"

    def status(**options) -> int:
        with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
            websockets.sync.client.connect(address, **options)
        if refused.value.response.status_code == 401:
            assert json.loads(refused.value.response.body)["error"]["code"] == "invalid_api_key"
        return refused.value.response.status_code

    assert status() == 401
    assert status(subprotocols=["realtime", "openai-insecure-api-key.none"]) == 401
    # With a key it gets as far as the routes, none of which has this name.
    assert status(subprotocols=["realtime", f"openai-insecure-api-key.{secret}"]) == 404
    assert status(additional_headers={"authorization": f"Bearer {secret}"}) == 404


def test_a_client_that_leaves_gives_its_place_back(server, keys_file):
    _, secret = create_key(keys_file, "ben", concurrent_requests=1)

    def status() -> int:
        return httpx.get(f"{server}/v1/models", auth=("", secret)).status_code

    wait_until(lambda: status() == 200)
    host, port = server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:  # sends half of its body, and waits
        head = POST.format(key=secret) + "content-length: 10\n\n"
        connection.sendall(head.replace("\n", "\r\n").encode() + b"12345")
        wait_until(lambda: status() == 429)
        assert [status() for _ in range(3)] == [429] * 3
    wait_until(lambda: status() == 200)


def wait_until(condition, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_created_and_revoked_keys_are_noticed(server, keys_file, secret):
    _, other = create_key(keys_file, "clara")
    urls = [server, f"{server}/v1/models"]
    wait_until(lambda: all(httpx.get(url, auth=("", other)).status_code == 200 for url in urls))
    revoke_key(keys_file, "clara")
    wait_until(lambda: all(httpx.get(url, auth=("", other)).status_code == 401 for url in urls))
    assert httpx.get(server, auth=("", secret)).status_code == 200


def test_a_corrupt_keys_file_closes_every_door_until_it_is_mended(server, keys_file, secret):
    good = keys_file.read_bytes()
    urls = [server, f"{server}/health", f"{server}/v1/models"]
    keys_file.write_bytes(good[:-10])
    wait_until(lambda: all(httpx.get(url, auth=("", secret)).status_code == 503 for url in urls))
    assert all(httpx.get(url).status_code == 503 for url in urls)
    keys_file.write_bytes(good)
    wait_until(lambda: all(httpx.get(url, auth=("", secret)).status_code == 200 for url in urls))


def raw(server: str, head: str, *parts: bytes, key: str = "", timeout: float = 10) -> tuple[int, bytes]:
    """The status and the whole answer to a request that no client library would send."""
    host, port = server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=timeout) as connection:
        connection.sendall(head.format(key=key).replace("\n", "\r\n").encode())
        for part in parts:
            connection.sendall(part)
        answer = b""
        while b"\r\n\r\n" not in answer and (piece := connection.recv(65536)):
            answer += piece
    return int(answer.split()[1]), answer


def test_hostile_framing(server, secret):
    assert raw(server, POST + "content-length: 99999999999999\n\n", key=secret)[0] == 413
    assert raw(server, POST + "content-length: -5\n\n", key=secret)[0] == 400
    assert raw(server, POST + "content-length: 5\n\n", b"[" * 5, key=secret)[0] == 400
    # More than is declared is the next request's, which is none.
    assert raw(server, POST + "content-length: 2\n\n", b"{}" + b"x" * 1000, key=secret)[0] == 400
    chunks = [b"100000\r\n" + b"x" * 2**20 + b"\r\n"] * 3
    assert raw(server, POST + "transfer-encoding: chunked\n\n", *chunks, key=secret)[0] == 413


@pytest.mark.parametrize(
    "content", [b"[" * 100_000 + b"]" * 100_000, b'{"model": "shakespeare\\u0000"}', b"\x00" * 100]
)
def test_hostile_bodies(server, secret, content):
    headers = {"authorization": f"Bearer {secret}", "content-type": "application/json"}
    answer = httpx.post(f"{server}/v1/chat/completions", content=content, headers=headers)
    assert answer.status_code in (400, 404)
    assert list(answer.json()) == ["error"]


def test_nul_characters_are_text_like_any_other(server, secret):
    client = openai_client(server, secret)
    assert client.chat.completions.create(**CHAT | {"messages": [{"role": "user", "content": "a\0b"}]}).choices
    speech = client.audio.speech.create(model="tts-1", voice="alloy", input="Good\0 morning.", response_format="pcm")
    assert len(speech.content) > 10_000


def test_huge_headers(server, secret):
    long = {f"x-{number}": "x" * 1000 for number in range(63)}
    assert httpx.get(f"{server}/v1/models", headers=long, auth=("", secret)).status_code == 200
    host, port = server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\nx-long: ")
        with pytest.raises(OSError, match=r"[Rr]eset|[Pp]ipe"):  # long before all of it is sent
            connection.sendall(bytes(2**28))


@pytest.mark.nightly
def test_a_body_that_never_comes(server, secret):
    status, answer = raw(server, POST + "content-length: 10\n\n", b"12345", key=secret, timeout=BODY_SECONDS + 20)
    assert status == 408
    assert b"connection: close" in answer.lower()


def test_no_key_in_any_log(server, secret, page_key):
    folder = Path(ray._private.worker._global_node.get_logs_dir_path())
    logs = [path for path in folder.rglob("*") if path.is_file()]
    assert any("replica" in path.name for path in logs)
    passwords = [base64.b64encode(f"{user}:{secret}".encode()) for user in ("", "anybody")]
    for hidden in (secret.encode(), page_key.encode(), *passwords):
        assert not [path for path in logs if hidden in path.read_bytes()]
