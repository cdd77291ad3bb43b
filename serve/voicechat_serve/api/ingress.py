"""The API's deployment: builds the FastAPI application inside its replica, around the handles it is given."""

from fastapi import FastAPI
from ray import serve

from voicechat_serve.api import chat, completions, models, speech, transcriptions
from voicechat_serve.api.errors import answer_errors_in_openai_form
from voicechat_serve.api.limits import BodyLimit
from voicechat_serve.api.origins import LoopbackOnly
from voicechat_serve.api.request_log import RequestLog
from voicechat_serve.api.services import Services
from voicechat_serve.audio import DecodingLimits
from voicechat_serve.loopback import listen_where_ray_listens

FORM_BYTES = 64 * 1024
"""What a multipart body may have besides its file."""

JSON_BYTES = 2 * 1024 * 1024


def build(services: Services) -> FastAPI:
    """The API without its /v1: Serve's route prefix, or whoever mounts it, gives that."""
    app = FastAPI(title="llm-voice-chat", docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit, upload_bytes=DecodingLimits().upload_bytes + FORM_BYTES, json_bytes=JSON_BYTES)
    app.add_middleware(LoopbackOnly)
    app.add_middleware(RequestLog)  # the last one added is the outermost
    answer_errors_in_openai_form(app)
    for family in (models, chat, completions, transcriptions, speech):
        app.include_router(family.router(services))
    return app


@serve.ingress()
class APIIngress:
    def __init__(self, services: Services):
        listen_where_ray_listens()
        self.services = services

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build(self.services)
