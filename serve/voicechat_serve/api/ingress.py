"""The API's deployment: it builds the FastAPI application inside its replica, with the given handles."""

from fastapi import FastAPI
from ray import serve

from voicechat_serve.api import (
    chat,
    client_secrets,
    completions,
    embeddings,
    models,
    realtime,
    responses,
    speech,
    tokenization,
    tools,
    transcriptions,
)
from voicechat_serve.api.access import AccessRules, guard
from voicechat_serve.api.errors import DOCUMENTED, answer_errors_in_openai_form
from voicechat_serve.api.request_log import RequestLog
from voicechat_serve.api.services import Services
from voicechat_serve.operations.flow_control import FlowControl
from voicechat_serve.operations.serve_private import listen_where_ray_listens


def build(services: Services, access: AccessRules = AccessRules()) -> FastAPI:
    """Build the API without its /v1, which Serve's route prefix or the mounting application adds."""
    app = FastAPI(title="llm-voice-chat", docs_url=None, redoc_url=None, responses=DOCUMENTED)
    guard(app, access, "Bearer")
    app.add_middleware(RequestLog)
    app.add_middleware(FlowControl)  # the last one added is the outermost
    answer_errors_in_openai_form(app)
    for family in (
        *(models, chat, completions, responses, embeddings, tokenization),
        *(transcriptions, speech, realtime, client_secrets, tools),
    ):
        app.include_router(family.router(services))
    return app


@serve.ingress()
class APIIngress:
    def __init__(self, services: Services, access: AccessRules):
        listen_where_ray_listens()
        self.services, self.access = services, access

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build(self.services, self.access)
