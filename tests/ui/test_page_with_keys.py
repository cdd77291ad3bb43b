"""The page where keys are needed, in headless Chromium: a person's key is a password, the page has one of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from playwright.sync_api import Browser

from voicechat_serve.api.access import AccessRules, guard
from voicechat_serve.operations.keys import create_key, fingerprint, make_secret
from voicechat_ui.page import mount_page


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home") / "keys.json"


@pytest.fixture(scope="module")
def secret(keys_file: Path) -> str:
    """Of a person who may send few requests: enough for a conversation, and not for the files of a page."""
    return create_key(keys_file, "anna", requests_per_minute=20, concurrent_requests=4)[1]


@pytest.fixture(scope="module")
def rules(keys_file: Path, secret: str) -> tuple[AccessRules, str]:
    """And the page's own key."""
    page_key = make_secret()
    return AccessRules(keys_file=keys_file, keys_required=True, page_key_sha256=fingerprint(page_key)), page_key


@pytest.fixture(scope="module")
def alone(
    rules: tuple[AccessRules, str], realtime: Any, serve: Callable[..., Any], free_port: Callable[[], int]
) -> str:
    """A page whose API is elsewhere, and wants a key too."""
    access, page_key = rules
    api = realtime.app()
    guard(api, access, "Bearer")
    front = FastAPI()
    guard(front, access, "Basic")
    return serve(mount_page(front, f"{serve(api, free_port()).url}/v1", page_key), free_port()).url


@pytest.fixture(scope="module")
def together(
    rules: tuple[AccessRules, str], realtime: Any, serve: Callable[..., Any], free_port: Callable[[], int]
) -> str:
    """A page on the API's own port, as under `voicechat up`."""
    access, page_key = rules
    port = free_port()
    app = realtime.app()
    guard(app, access, "Basic")
    return serve(mount_page(app, f"http://127.0.0.1:{port}/v1", page_key), port).url


@pytest.mark.parametrize("where", ["alone", "together"])
def test_a_person_with_a_key_talks(
    where: str, open_page: Callable[..., Any], secret: str, request: pytest.FixtureRequest, realtime: Any
) -> None:
    url = request.getfixturevalue(where)
    talk = open_page(url, http_credentials={"username": "anybody", "password": secret})
    talk.type("Who art thou?")
    talk.wait_for_said("assistant", 1)
    talk.press("Start conversation")
    talk.wait_for_said("assistant", 2)
    assert talk.said("assistant")[0] == "Good morrow to thee."
    assert len(realtime.sessions) == 1


def test_without_a_key_a_browser_is_asked_for_one_and_shown_nothing(browser: Browser, alone: str) -> None:
    context = browser.new_context()
    answer = context.request.get(alone)
    assert answer.status == 401
    assert answer.headers["www-authenticate"].startswith("Basic realm=")
    context.close()
    for path in (
        "/",
        "/config",
        "/gradio_api/info",
        "/gradio_api/queue/data?session_hash=x",
        "/theme.css",
        "/talk/models",
    ):
        for auth in (None, ("anybody", "wrong")):
            assert httpx.get(alone + path, auth=auth).status_code == 401
    assert httpx.post(f"{alone}/gradio_api/queue/join", json={}).status_code == 401
    assert httpx.post(f"{alone}/gradio_api/upload", files={"files": b"x"}).status_code == 401
    upgrade = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    key = {"sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ=="}
    assert httpx.get(f"{alone}/v1/realtime?model=bard", headers=upgrade | key).status_code == 401
