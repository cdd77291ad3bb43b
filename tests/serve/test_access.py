"""Who is let in: every route and kind of key, limits for each key, other sites' pages; over ASGI, without Ray."""

import asyncio
import base64
import json
import logging
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

from voicechat_platform.errors import InputError
from voicechat_platform.settings import Settings
from voicechat_serve.api.access import AccessRules, KeyCheck, access_rules, guard
from voicechat_serve.api.errors import APIError, answer_errors_in_openai_form
from voicechat_serve.api.key_limits import KeyLimits, duration
from voicechat_serve.operations import keys as keys_module
from voicechat_serve.operations.keys import Key, create_key, fingerprint, make_secret, revoke_key

PAGE_KEY = make_secret()


class Clock:
    """Seconds that pass when told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys.json"


@pytest.fixture
def secret(path):
    return create_key(path, "anna")[1]


def service(rules: AccessRules, challenge: str = "Bearer") -> FastAPI:
    app = FastAPI()
    guard(app, rules, challenge)
    answer_errors_in_openai_form(app)
    app.state.seen = []

    @app.post("/operator")
    async def operator(request: Request):
        return {"may": request.state.is_operator}

    @app.api_route("/models", methods=["GET", "POST"])
    async def models(request: Request):
        app.state.seen.append(dict(request.headers))
        return {"object": "list"}

    @app.post("/stream")
    async def stream():
        return StreamingResponse(iter([b"one", b"two"]))

    @app.websocket("/realtime")
    async def realtime(websocket: WebSocket):
        app.state.seen.append((dict(websocket.headers), websocket.scope["subprotocols"]))
        await websocket.accept()
        await websocket.send_text("hello")
        await websocket.close()

    @app.websocket("/echo")
    async def echo(websocket: WebSocket):
        await websocket.accept()
        with suppress(WebSocketDisconnect):
            while True:
                await websocket.send_text(await websocket.receive_text())

    return app


def rules(path, **changes) -> AccessRules:
    return AccessRules(**{"keys_file": path, "page_key_sha256": fingerprint(PAGE_KEY)} | changes)


def client(app: FastAPI, **headers: str) -> TestClient:
    return TestClient(app, base_url="http://127.0.0.1:8000", headers=headers)


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def basic(secret: str, user: str = "anybody") -> dict[str, str]:
    return {"authorization": f"Basic {base64.b64encode(f'{user}:{secret}'.encode()).decode()}"}


BAD_HEADERS = [
    {},
    {"authorization": ""},
    {"authorization": "Bearer"},
    {"authorization": "Bearer "},
    {"authorization": "Bearer none"},
    {"authorization": "Bearer \xff\xfe"},
    {"authorization": "Basic"},
    {"authorization": "Basic !!!"},
    {"authorization": "Basic " + base64.b64encode(b"\xff\xfe:\xff").decode()},
    {"authorization": "Basic " + base64.b64encode(b"no colon").decode()},
    basic("wrong"),
    bearer(fingerprint("")),
    {"api-key": "none"},
]


@pytest.mark.parametrize("challenge", ["Bearer", "Basic"])
@pytest.mark.parametrize("headers", BAD_HEADERS)
def test_every_route_needs_a_key(path, secret, challenge, headers):
    app = service(rules(path), challenge)
    headers = {name: value.encode("latin-1") for name, value in headers.items()}
    requests = [
        ("GET", "/models"),
        ("HEAD", "/models"),
        ("POST", "/stream"),
        ("GET", "/nowhere"),
        ("OPTIONS", "/models"),
    ]
    for method, route in [*requests, ("GET", "/"), ("GET", "/health"), ("GET", "/metrics"), ("GET", "/openapi.json")]:
        response = client(app).request(method, route, headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"].split()[0] == challenge
        if method != "HEAD":
            error = response.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
    assert app.state.seen == []


@pytest.mark.parametrize("challenge", ["Bearer", "Basic"])
def test_a_key_is_taken_in_every_form_and_hidden_from_the_routes(path, secret, challenge):
    app = service(rules(path), challenge)
    lower_case = {"authorization": f"bearer  {secret}"}
    for headers in (bearer(secret), basic(secret), basic(secret, user=""), lower_case, bearer(PAGE_KEY)):
        assert client(app).get("/models", headers=headers).json() == {"object": "list"}
    assert len(app.state.seen) == 5
    assert "authorization" not in str(app.state.seen)
    assert client(app).get("/nowhere", headers=bearer(secret)).status_code == 404
    assert client(app).post("/stream", headers=bearer(secret)).text == "onetwo"


def test_without_a_keys_file_a_service_on_loopback_needs_none(path):
    app = service(rules(path))
    assert client(app).get("/models").status_code == 200
    assert client(app).get("/models", headers=bearer("none")).status_code == 200


def test_a_revoked_key_and_then_none_left(path, secret):
    revoke_key(path, "anna")
    app = service(rules(path))
    assert client(app).get("/models", headers=bearer(secret)).json()["error"]["code"] == "invalid_api_key"
    assert client(app).get("/models").status_code == 401


def test_a_corrupt_keys_file_lets_nobody_in(path, secret, caplog):
    path.write_text("{")
    app = service(rules(path))
    for headers in ({}, bearer(secret), bearer(PAGE_KEY)):
        response = client(app).get("/models", headers=headers)
        assert response.status_code == 503
        assert response.headers["retry-after"]
        assert list(response.json()) == ["error"]
        assert str(path) not in response.text
    assert str(path) in caplog.text


def test_no_key_is_logged(path, secret, caplog):
    caplog.set_level(logging.DEBUG)
    app = service(rules(path))
    other = make_secret()
    for key in (secret, other):
        client(app).get("/models", headers=bearer(key))
        client(app).get("/models", headers=basic(key))
        with suppress(WebSocketDenialResponse):
            open_websocket(app, ["realtime", f"openai-insecure-api-key.{key}"])
    assert secret[3:] not in caplog.text
    assert other[3:] not in caplog.text


def open_websocket(app: FastAPI, subprotocols=None, **headers: str) -> tuple[str, str | None]:
    """What the WebSocket says, and the subprotocol it took."""
    with client(app).websocket_connect(
        "ws://127.0.0.1:8000/realtime", subprotocols=subprotocols, headers=headers
    ) as websocket:
        return websocket.receive_text(), websocket.accepted_subprotocol


def test_websockets_bring_a_key_in_a_header_or_as_a_subprotocol(path, secret):
    app = service(rules(path))
    assert open_websocket(app, **bearer(secret)) == ("hello", None)
    assert open_websocket(app, **basic(secret)) == ("hello", None)
    protocols = ["realtime", f"openai-insecure-api-key.{secret}"]
    assert open_websocket(app, protocols) == ("hello", "realtime")
    assert open_websocket(app, protocols[1:]) == ("hello", None)
    # A browser that remembers an old password still gets in with the key that its script brings.
    assert open_websocket(app, protocols, **basic("old")) == ("hello", "realtime")
    assert app.state.seen[2][1] == ["realtime"]
    assert secret not in str(app.state.seen)
    assert "insecure" not in str(app.state.seen)


@pytest.mark.parametrize("protocols", [None, ["realtime"], ["realtime", "openai-insecure-api-key.none"]])
def test_websockets_without_a_key_are_refused_before_they_open(path, secret, protocols):
    app = service(rules(path))
    with pytest.raises(WebSocketDenialResponse) as refused:
        open_websocket(app, protocols)
    assert refused.value.status_code == 401
    assert refused.value.json()["error"]["code"] == "invalid_api_key"
    assert app.state.seen == []


def test_a_conversation_ends_when_its_key_is_revoked(path, secret, monkeypatch):
    monkeypatch.setattr(keys_module, "REREAD_S", 0)
    create_key(path, "ben")
    with client(service(rules(path))).websocket_connect(
        "ws://127.0.0.1:8000/echo", headers=bearer(secret)
    ) as websocket:
        websocket.send_text("one")
        assert websocket.receive_text() == "one"
        revoke_key(path, "ben")
        websocket.send_text("two")
        assert websocket.receive_text() == "two"
        revoke_key(path, "anna")
        websocket.send_text("three")
        with pytest.raises(WebSocketDisconnect) as ended:
            websocket.receive_text()
    assert (ended.value.code, ended.value.reason) == (1008, "the API key was revoked")


@pytest.mark.parametrize("by", ["revoking", "expiry"])
def test_a_listener_who_says_nothing_is_left_when_its_key_is_gone(path, by):
    expires = datetime.now(UTC) + timedelta(seconds=2) if by == "expiry" else None
    _, secret = create_key(path, "anna", expires=expires)
    with client(service(rules(path))).websocket_connect(
        "ws://127.0.0.1:8000/echo", headers=bearer(secret)
    ) as websocket:
        if by == "revoking":
            revoke_key(path, "anna")
        with pytest.raises(WebSocketDisconnect) as ended:
            websocket.receive_text()
    assert (ended.value.code, ended.value.reason) == (1008, "the API key was revoked")


@pytest.mark.parametrize("challenge", ["Bearer", "Basic"])
async def test_an_answer_ends_when_its_key_is_gone(path, challenge):
    """One that has not begun is refused, a stream of events ends with the error, a file breaks off."""
    _, secret = create_key(path, "anna")
    app = FastAPI()
    guard(app, rules(path), challenge)
    begun, ended = [], []

    async def endless(name: str):
        try:
            yield "data: one\n\n"
            begun.append(name)
            await asyncio.Event().wait()
        finally:
            ended.append(name)

    @app.get("/events")
    async def events():
        return StreamingResponse(endless("events"), media_type="text/event-stream")

    @app.get("/file")
    async def file():
        return StreamingResponse(endless("file"), media_type="audio/mpeg")

    @app.get("/late")
    async def late():
        begun.append("late")
        await asyncio.Event().wait()

    async def get(name: str) -> list[dict]:
        sent: list[dict] = []

        async def send(message):
            sent.append(message)

        headers = [(name.encode(), value.encode()) for name, value in bearer(secret).items()]
        scope = {"type": "http", "method": "GET", "path": f"/{name}", "headers": [*headers, (b"host", b"127.0.0.1")]}
        scope |= {"query_string": b"", "asgi": {"spec_version": "2.4"}, "root_path": "", "scheme": "http"}
        await app(scope, asyncio.Event().wait, send)
        return sent

    async with asyncio.timeout(20):
        asking = [asyncio.create_task(get(name)) for name in ("events", "file", "late")]
        while len(begun) < 3:
            await asyncio.sleep(0.01)
        revoke_key(path, "anna")
        told, broken, refused = await asyncio.gather(*asking)
    assert sorted(ended) == ["events", "file"]
    last = told[-1]["body"].decode()
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "invalid_api_key"
    assert not told[-1].get("more_body")
    assert broken[-1]["more_body"]
    assert refused[0]["status"] == 401


def test_limits_are_told_in_openais_words(path):
    _, secret = create_key(path, "anna", requests_per_minute=2)
    app = service(rules(path))
    first, second, third = (client(app).post("/stream", headers=bearer(secret)) for _ in range(3))
    assert [answer.status_code for answer in (first, second, third)] == [200, 200, 429]
    told = [
        (answer.headers["x-ratelimit-limit-requests"], answer.headers["x-ratelimit-remaining-requests"])
        for answer in (first, second, third)
    ]
    assert told == [("2", "1"), ("2", "0"), ("2", "0")]
    assert [answer.headers["x-ratelimit-reset-requests"] for answer in (first, second, third)] == [
        "30s",
        "1m0s",
        "1m0s",
    ]
    assert third.headers["retry-after"] == "30"
    error = third.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"], error["param"]) == ("requests", "rate_limit_exceeded", None)
    # The page's own key has no limit, and another key its own.
    assert client(app).post("/stream", headers=bearer(PAGE_KEY)).status_code == 200
    assert client(app).post("/stream", headers=bearer(create_key(path, "ben")[1])).status_code == 401  # within a second


def test_who_may_change_what_is_served(path):
    """At this machine whoever needs no key; where keys are needed, an operator's, and not the page's own."""
    front = client(service(AccessRules(keys_file=path), "Basic"))
    assert front.post("/operator").json() == {"may": True}
    assert front.post("/operator", headers={"origin": "https://elsewhere.example"}).status_code == 403
    _, anna = create_key(path, "anna")
    _, olga = create_key(path, "olga", operator=True)
    front = client(service(rules(path), "Basic"))
    assert front.post("/operator").status_code == 401
    assert front.post("/operator", headers=basic(anna)).json() == {"may": False}
    assert front.post("/operator", headers=basic(olga)).json() == {"may": True}
    assert front.post("/operator", headers=bearer(PAGE_KEY)).json() == {"may": False}
    assert '"operator"' not in path.read_text().partition("olga")[0], "files without operators stay as they were"


def test_what_a_browser_reads_of_the_front_is_not_counted(path):
    _, secret = create_key(path, "anna", requests_per_minute=1)
    front = client(service(rules(path), "Basic"), **basic(secret))
    assert [front.get("/models").status_code for _ in range(5)] == [200] * 5
    assert [front.post("/models").status_code for _ in range(2)] == [200, 429]
    api = client(service(rules(path), "Bearer"), **basic(secret))
    assert [api.get("/models").status_code for _ in range(2)] == [200, 429]


@given(
    per_minute=st.integers(1, 100),
    concurrent=st.integers(1, 5),
    steps=st.lists(st.tuples(st.floats(0, 90), st.booleans()), max_size=200),
)
def test_never_more_than_the_bucket_and_the_places_allow(per_minute, concurrent, steps):
    """Within any span of s seconds a bucket lets through its capacity and what flows in, and not one more."""
    clock = Clock()
    limits = KeyLimits(per_minute, concurrent, clock)
    key = Key(id="1", name="a", sha256="0" * 64, created="2030-01-01T00:00:00Z")
    running, begun = 0, []
    for seconds, ends in steps:
        clock.now += seconds
        if ends and running:
            limits.end(key)
            running -= 1
        try:
            told = limits.begin(key)
        except APIError as refusal:
            if running < concurrent:  # then the promise must be true
                clock.now += int(refusal.headers["Retry-After"])
                limits.begin(key)
                begun.append(clock.now)
                running += 1
        else:
            begun.append(clock.now)
            running += 1
            assert 0 <= int(told["x-ratelimit-remaining-requests"]) < per_minute
        assert running <= concurrent
    for first in range(len(begun)):
        for last in range(first, len(begun)):
            assert last - first + 1 <= per_minute + (begun[last] - begun[first]) * per_minute / 60 + 1e-6


def test_a_limit_of_a_key_goes_before_the_default():
    limits = KeyLimits(1, 1, Clock())
    key = Key(
        id="1", name="a", sha256="0" * 64, created="2030-01-01T00:00:00Z", requests_per_minute=9, concurrent_requests=3
    )
    assert [int(limits.begin(key)["x-ratelimit-remaining-requests"]) for _ in range(3)] == [8, 7, 6]
    with pytest.raises(APIError, match="3 requests of this key are running"):
        limits.begin(key)


@pytest.mark.parametrize(("seconds", "told"), [(0, "0ms"), (0.25, "250ms"), (1, "1s"), (11.2, "12s"), (60, "1m0s")])
def test_durations(seconds, told):
    assert duration(seconds) == told


ENDINGS = ("answers", "raises", "is cancelled", "is cancelled in mid-stream")


@settings(max_examples=50, deadline=None)
@given(order=st.lists(st.sampled_from(ENDINGS), min_size=1, max_size=30), kind=st.sampled_from(["http", "websocket"]))
def test_a_place_is_given_back_however_a_request_ends(tmp_path_factory, order, kind):
    """With two places at most: two requests are held open, a third is refused, both end, and so on."""
    path = tmp_path_factory.getbasetemp() / "places.json"
    path.unlink(missing_ok=True)
    _, secret = create_key(path, "anna", requests_per_minute=10_000, concurrent_requests=2)

    async def run() -> None:
        inside = 0
        gates: asyncio.Queue[tuple[asyncio.Event, str]] = asyncio.Queue()

        async def app(scope, receive, send):
            nonlocal inside
            inside += 1
            assert inside <= 2
            try:
                gate, ending = asyncio.Event(), scope["ending"]
                if ending == "is cancelled in mid-stream":
                    await send({"type": "http.response.start", "status": 200, "headers": []})
                await gates.put((gate, ending))
                await gate.wait()
                if ending == "raises":
                    raise RuntimeError("on purpose")
                await send({"type": "http.response.start", "status": 200, "headers": []})
            finally:
                inside -= 1

        check = KeyCheck(app, AccessRules(keys_file=path), "Bearer")
        sent = []

        async def send(message):
            sent.append(message)

        def request(ending: str):
            headers = [(b"authorization", f"Bearer {secret}".encode())]
            scope = {"type": kind, "method": "POST", "headers": headers, "ending": ending}
            return check(scope | ({"subprotocols": []} if kind == "websocket" else {}), None, send)

        for ending in order:
            tasks = [asyncio.create_task(request(ending)) for _ in range(2)]
            held = [await gates.get() for _ in tasks]
            sent.clear()
            await request("answers")
            assert sent[0]["status"] == 429
            for gate, _ in held:
                gate.set()
            if "cancelled" in ending:
                for task in tasks:
                    task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            kinds = {"answers": type(None), "raises": RuntimeError}
            assert all(isinstance(result, kinds.get(ending, asyncio.CancelledError)) for result in results)
        assert inside == 0

    asyncio.run(asyncio.wait_for(run(), 30))  # a place that is lost would be waited for without end


async def test_a_stream_counts_until_its_end(path):
    _, secret = create_key(path, "anna", concurrent_requests=1)
    going_on = asyncio.Event()
    app = FastAPI()
    guard(app, rules(path), "Bearer")

    @app.post("/stream")
    async def stream():
        async def pieces():
            yield b"one"
            await going_on.wait()
            yield b"two"

        return StreamingResponse(pieces())

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=bearer(secret)) as api:
        long = asyncio.create_task(api.post("/stream"))
        await asyncio.sleep(0)
        refused = await api.post("/stream")
        while refused.status_code != 429:  # the first has not begun yet
            refused = await api.post("/stream")
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert refused.headers["retry-after"] == "1"
        going_on.set()
        assert (await long).text == "onetwo"
        assert (await api.post("/stream")).status_code == 200


def test_elsewhere_than_on_loopback_nothing_starts_without_a_key(path, monkeypatch):
    monkeypatch.setenv("VOICECHAT_KEYS", str(path))
    from voicechat_platform.settings import settings as chosen

    chosen.cache_clear()
    try:
        for host in ("0.0.0.0", "::", "192.168.1.5", "example.com", "127.0.0.1.example.com"):
            with pytest.raises(InputError, match="voicechat keys create"):
                access_rules(Settings(host=host))
            with pytest.raises(InputError, match="voicechat keys create"):
                AccessRules(host=host)
        assert access_rules(Settings()) == AccessRules(keys_file=path)
        create_key(path, "anna")
        assert access_rules(Settings(host="0.0.0.0")).keys_required
        assert access_rules(Settings()).keys_required
        revoke_key(path, "anna")
        with pytest.raises(InputError, match="voicechat keys create"):
            access_rules(Settings(host="0.0.0.0"))
        assert access_rules(Settings()).keys_required
        path.write_text("{")
        with pytest.raises(InputError, match=r"keys\.json"):
            access_rules(Settings())
    finally:
        chosen.cache_clear()
    with pytest.raises(ValueError, match="no file"):
        AccessRules(host="0.0.0.0", keys_required=True)


PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization, content-type"}


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_allowed_origins_get_cors_headers_and_others_nothing(path, secret, host):
    origin = "https://chat.example.com"
    app = service(rules(path, host=host, keys_required=True, allowed_origins=(origin,)))
    allowed = client(app, origin=origin).options("/models", headers=PREFLIGHT)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == origin
    assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
    assert "access-control-allow-credentials" not in allowed.headers
    answer = client(app, origin=origin).post("/models", headers=bearer(secret))
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, origin)
    assert "x-ratelimit-remaining-requests" in answer.headers["access-control-expose-headers"]
    # A refusal can be read by the page as well.
    refused = client(app, origin=origin).post("/models")
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, origin)
    for other in ("https://evil.example", "http://chat.example.com", "https://chat.example.com.evil.example", "null"):
        for method, headers in (("OPTIONS", PREFLIGHT), ("POST", bearer(secret))):
            refused = client(app, origin=other).request(method, "/models", headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden_origin")
            assert "access-control-allow-origin" not in refused.headers


def test_without_the_setting_there_is_no_cors(path, secret):
    for host in ("127.0.0.1", "0.0.0.0"):
        app = service(rules(path, host=host, keys_required=True))
        own = client(app, origin="http://127.0.0.1:8000").get("/models", headers=bearer(secret))
        assert own.status_code == 200
        assert not [name for name in own.headers if name.startswith("access-control")]


def test_elsewhere_any_host_name_is_its_own_but_other_sites_pages_are_refused(path, secret):
    app = service(rules(path, host="0.0.0.0", keys_required=True))
    for host in ("192.168.1.5:8000", "chat.example.com", "[fe80::1]:8000"):
        for origin in (None, f"http://{host}", f"https://{host}"):
            headers = bearer(secret) | {"host": host} | ({"origin": origin} if origin else {})
            assert client(app).get("/models", headers=headers).status_code == 200
        for origin in ("https://evil.example", "null", "", "http://localhost:8000", "http://[", f"ftp://{host}"):
            headers = bearer(secret) | {"host": host, "origin": origin}
            assert client(app).get("/models", headers=headers).status_code == 403
            with pytest.raises(WebSocketDenialResponse) as refused:
                open_websocket(app, **headers)
            assert refused.value.status_code == 403


def test_on_loopback_other_names_are_refused_with_a_key_too(path, secret):
    app = service(rules(path))
    for headers in (
        {"host": "evil.example"},
        {"origin": "https://evil.example"},
        {"host": "["},
        {"origin": "http://["},
    ):
        assert client(app).get("/models", headers=bearer(secret) | headers).status_code == 403
    proxied = service(rules(path, allowed_origins=("https://chat.example.com",)), "Basic")
    headers = basic(secret) | {"host": "chat.example.com", "origin": "https://chat.example.com"}
    assert client(proxied).post("/models", headers=headers).status_code == 200


def test_settings_that_name_origins(monkeypatch):
    monkeypatch.setenv("VOICECHAT_ALLOWED_ORIGINS", "https://chat.example.com, http://localhost:3000")
    assert Settings().allowed_origins == ("https://chat.example.com", "http://localhost:3000")
    monkeypatch.setenv("VOICECHAT_ALLOWED_ORIGINS", "")
    assert Settings().allowed_origins == ()
    for wrong in ("*", "chat.example.com", "https://chat.example.com/", "https://Chat.example.com", "null", "https://"):
        monkeypatch.setenv("VOICECHAT_ALLOWED_ORIGINS", wrong)
        with pytest.raises(ValueError, match=r"an origin is written https://chat\.example\.com"):
            Settings()
