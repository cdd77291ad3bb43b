"""Client secrets: they open a conversation and nothing else, for a while, with their key's limits and no longer than
it; over ASGI, without Ray."""

import json
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.realtime import ClientSecretCreateResponse
from starlette.testclient import TestClient, WebSocketDenialResponse, WebSocketTestSession
from starlette.websockets import WebSocketDisconnect

from voicechat_platform.errors import InputError
from voicechat_serve.api.access import AccessRules
from voicechat_serve.api.ingress import build
from voicechat_serve.api.services import Services
from voicechat_serve.operations import client_secrets, keys
from voicechat_serve.operations.client_secrets import InvalidSecretError, make_client_secret, read_client_secret
from voicechat_serve.operations.keys import create_key, fingerprint, make_secret, read_keys, revoke_key

PAGE_KEY = make_secret()

SERVICES = Services(
    models={},
    language_models={"bard": None, "poet": None},
    transcription=None,
    transcription_model="whisper-tiny.en",
    synthesis=None,
)

SESSION = {"type": "realtime", "model": "poet", "instructions": "Speak in verse.", "audio": {"output": {"speed": 1.5}}}

PATH = "/realtime/client_secrets"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys.json"


@pytest.fixture
def key(path) -> str:
    return create_key(path, "anna", requests_per_minute=60, concurrent_requests=1)[1]


def service(path) -> TestClient:
    """One replica of the API; another one knows nothing of its requests."""
    rules = AccessRules(keys_file=path, page_key_sha256=fingerprint(PAGE_KEY))
    return TestClient(build(SERVICES, rules), base_url="http://127.0.0.1")


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def create(replica: TestClient, key: str, **body) -> dict:
    response = replica.post(PATH, json=body, headers=bearer(key))
    assert response.status_code == 200, response.text
    ClientSecretCreateResponse.model_validate(response.json(), strict=True)
    return response.json()


def refusal(response) -> dict:
    assert 400 <= response.status_code < 500, response.text
    return response.json()["error"] | {"status": response.status_code}


@contextmanager
def opened(
    replica: TestClient, secret: str, query: str = "", in_header: bool = False
) -> Iterator[WebSocketTestSession]:
    """Open a conversation as a browser does, or with a header."""
    protocols = None if in_header else ["realtime", f"openai-insecure-api-key.{secret}"]
    headers = bearer(secret) if in_header else {}
    address = f"ws://127.0.0.1/realtime?{query}"
    # Its end cancels the conversation.
    with (
        suppress(CancelledError),
        replica.websocket_connect(address, subprotocols=protocols, headers=headers) as socket,
    ):
        yield socket


def test_a_secret_opens_its_conversation_at_every_replica(path, key):
    made = create(service(path), key, session=SESSION)
    assert made["value"].startswith("ek_")
    assert made["expires_at"] == pytest.approx(time.time() + 600, abs=60)
    assert made["session"]["instructions"] == "Speak in verse."
    with opened(service(path), made["value"]) as socket:
        assert socket.accepted_subprotocol == "realtime"
        session = socket.receive_json()["session"]
        assert (session["model"], session["instructions"]) == ("poet", "Speak in verse.")
        assert session["audio"]["output"]["speed"] == 1.5
    with opened(service(path), made["value"], "model=bard") as socket:
        assert socket.receive_json()["session"]["model"] == "bard"
    with opened(service(path), made["value"], in_header=True) as socket:
        assert socket.receive_json()["session"]["model"] == "poet"


def test_a_secret_for_a_transcription(path, key):
    audio = {"input": {"transcription": {"model": "gpt-realtime-whisper", "language": "English"}}}
    made = create(service(path), key, session={"type": "transcription", "audio": audio})
    assert made["session"]["object"] == "realtime.transcription_session"
    for query in ("", "intent=transcription", "model=whisper-1"):
        with opened(service(path), made["value"], query) as socket:
            session = socket.receive_json()["session"]
            assert session["type"] == "transcription"
            expected = "whisper-1" if query == "model=whisper-1" else "gpt-realtime-whisper"
            assert session["audio"]["input"]["transcription"] | {"prompt": None} == {
                **{"model": expected, "language": "en", "prompt": None}
            }
    conversation = create(service(path), key, session=SESSION)
    with opened(service(path), conversation["value"], "intent=transcription") as socket:
        assert socket.receive_json()["error"]["param"] == "intent"


def test_a_secret_opens_nothing_else(path, key):
    replica = service(path)
    secret = create(replica, key)["value"]
    for method, address in (("GET", "/models"), ("POST", "/chat/completions"), ("POST", PATH)):
        error = refusal(replica.request(method, address, headers=bearer(secret)))
        assert (error["status"], error["code"]) == (401, "invalid_api_key")
        assert "/v1/realtime alone" in error["message"]


def test_the_secrets_of_a_key_share_its_limits(path, key):
    replica = service(path)
    secrets = [create(replica, key)["value"] for _ in range(2)]
    with opened(replica, secrets[0]) as socket:
        socket.receive_json()
        with pytest.raises(WebSocketDenialResponse) as refused, opened(replica, secrets[1]):
            pass
        assert refused.value.status_code == 429
        assert replica.post(PATH, json={}, headers=bearer(key)).status_code == 429


def test_a_secret_ends_with_its_key(path, key, monkeypatch):
    monkeypatch.setattr(keys, "REREAD_S", 0.05)
    replica = service(path)
    secret = create(replica, key)["value"]
    with opened(replica, secret) as socket:
        socket.receive_json()
        revoke_key(path, "anna")
        with pytest.raises(WebSocketDisconnect) as ended:
            socket.receive_json()
        assert "revoked" in ended.value.reason
    with pytest.raises(WebSocketDenialResponse) as refused, opened(service(path), secret):
        pass
    assert refused.value.status_code == 401


def test_a_secret_expires(path, key, monkeypatch):
    replica = service(path)
    made = create(replica, key, expires_after={"anchor": "created_at", "seconds": 10})
    monkeypatch.setattr(client_secrets.time, "time", lambda: made["expires_at"])
    with pytest.raises(WebSocketDenialResponse) as refused, opened(replica, made["value"]):
        pass
    assert refused.value.status_code == 401
    assert "expired" in refused.value.json()["error"]["message"]


def test_without_keys_a_secret_still_holds_its_session(tmp_path):
    """A client that always creates one works on one's own machine, too."""
    replica = service(tmp_path / "none.json")
    made = create(replica, "none", session=SESSION)
    with opened(replica, made["value"]) as socket:
        assert socket.receive_json()["session"]["model"] == "poet"
    create_key(tmp_path / "none.json", "anna")
    with pytest.raises(WebSocketDenialResponse), opened(service(tmp_path / "none.json"), made["value"]):
        pass


def test_the_key_of_the_page_creates_none(path, key):
    error = refusal(service(path).post(PATH, json={}, headers=bearer(PAGE_KEY)))
    assert error["status"] == 403


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"expires_after": {"seconds": 9}}, "expires_after.seconds"),
        ({"expires_after": {"seconds": 7201}}, "expires_after.seconds"),
        ({"expires_after": {"anchor": "now"}}, "expires_after.anchor"),
        ({"expires_after": {"hours": 1}}, "expires_after.hours"),
        ({"session": "poet"}, "session"),
        ({"session": {"instuctions": "x"}}, "session.instuctions"),
        ({"session": {"type": "transcription", "instructions": "x"}}, "session.instructions"),
        ({"session": {"model": "gpt-realtime"}}, "model"),
        ({"session": {"audio": {"output": {"voice": "bob"}}}}, "session.audio.output.voice"),
        ({"session": {"audio": {"input": {"transcription": {"model": "bard"}}}}}, "model"),
        ({"model": "poet"}, "model"),
    ],
)
def test_wrong_requests(path, key, body, param):
    error = refusal(service(path).post(PATH, json=body, headers=bearer(key)))
    assert (error["status"] in (400, 404), error["param"]) == (True, param)


def test_a_session_that_no_browser_could_send(path, key):
    noise = "".join(map(chr, range(0x4E00, 0x4E00 + 8000)))
    error = refusal(service(path).post(PATH, json={"session": {"instructions": noise}}, headers=bearer(key)))
    assert (error["param"], error["code"]) == ("session", "invalid_value")
    assert "session.update" in error["message"]
    usual = "You are a helpful assistant of a shop. Answer briefly. " * 150
    assert create(service(path), key, session={"instructions": usual})["session"]["instructions"] == usual


def test_with_the_client_of_openai(path, key):
    with service(path) as replica:
        client = openai.OpenAI(base_url="http://127.0.0.1", api_key=key, http_client=replica, max_retries=0)
        made = client.realtime.client_secrets.create(
            session=SESSION, expires_after={"seconds": 60, "anchor": "created_at"}
        )
    assert made.session.type == "realtime"
    assert made.expires_at <= time.time() + 60


CHANGES = st.text("abcdef0123456789._-", max_size=8)


@given(st.integers(0, 200), CHANGES, st.integers(0, 12))
def test_no_other_text_is_a_secret(tmp_path_factory, place, change, removed):
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    key, _ = create_key(path, "anna")
    secret = make_client_secret(key, 2**33, SESSION)
    changed = "ek_" + (secret[3:][:place] + change + secret[3:][place + removed :])
    stored = read_keys(path)
    if changed == secret:
        assert read_client_secret(changed, stored).session == SESSION
        return
    with pytest.raises(InvalidSecretError):
        read_client_secret(changed, stored)
    with pytest.raises(InvalidSecretError):
        read_client_secret(changed, None)


def packed(text: str) -> str:
    return client_secrets.encoded(zlib.compress(text.encode()))


@pytest.mark.parametrize(
    "content",
    [
        *("", "a", "ab.c", "\N{SNOWMAN}", client_secrets.encoded(b"no zlib")),
        *(packed("[" * 100_000), packed("[1]"), packed("null"), packed(" " * 10**7 + "{}")),
    ],
)
def test_without_keys_anybody_can_sign_and_nothing_breaks(content):
    signed = f".{2**33}.{content}"
    secret = f"ek_{signed}.{client_secrets.signature(None, signed)}"
    with pytest.raises(InvalidSecretError):
        read_client_secret(secret, None)


def test_the_secret_is_not_the_key(path, key):
    (stored,) = read_keys(path)
    secret = make_client_secret(stored, 2**33, {})
    assert key not in secret
    assert stored.sha256 not in secret
    with pytest.raises(InputError):
        make_client_secret(stored, 2**33, {"instructions": json.dumps([hash((n, "x")) for n in range(2000)])})
