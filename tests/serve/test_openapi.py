"""The API against its own OpenAPI document: requests that the document allows, and such as it does not.

The document is what clients are generated from, so it has to be true; and whatever a client makes of it, right or
wrong, must not break the service.
"""

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from voicechat_serve.api.ingress import build
from voicechat_serve.api.services import Services

CHECKS = [not_a_server_error, status_code_conformance, response_schema_conformance, negative_data_rejection]

MODELS = {
    "/chat/completions": "shakespeare",
    "/completions": "shakespeare",
    "/responses": "shakespeare",
    "/embeddings": "vectors",
    "/tokenize": "shakespeare",
    "/detokenize": "shakespeare",
    "/audio/transcriptions": "whisper-1",
    "/audio/translations": "whisper-1",
    "/audio/speech": "tts-1",
}

EVERY_DAY = hypothesis.settings(derandomize=True, max_examples=40, deadline=None, database=None)
NIGHTLY = hypothesis.settings(max_examples=2000, deadline=None)


# The document does not depend on what is behind the API, which the fixture has.
schema = schemathesis.openapi.from_asgi(
    "/openapi.json",
    build(
        Services(
            models={}, language_models={}, transcription=None, transcription_model="whisper-tiny.en", synthesis=None
        )
    ),
    config=SchemathesisConfig(seed=0),
    headers={"host": "127.0.0.1"},
)
schema.config.update(base_url="http://127.0.0.1")


@pytest.fixture(scope="module")
def app(services_with_vectors):
    return build(services_with_vectors)


@schema.parametrize()
@EVERY_DAY
def test_no_request_breaks_the_api(case, app):
    check(case, app)


@pytest.mark.nightly
@schema.parametrize()
@NIGHTLY
def test_no_request_breaks_the_api_all_night(case, app):
    check(case, app)


def check(case, app) -> None:
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
        case.body["model"] = MODELS[case.path]  # a request for any other one ends at its name
    response = case.call(app=app)
    case.validate_response(response, checks=CHECKS)
    assert response.status_code < 500
    assert response.headers["x-request-id"]
    if response.status_code >= 400:  # the form itself is in the document
        assert response.json()["error"]["type"] == "invalid_request_error"
