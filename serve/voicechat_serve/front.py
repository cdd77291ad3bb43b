"""What answers at the root of the port: /health, and the page where the caller brings one."""

import asyncio
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from ray import serve
from ray.serve.schema import ApplicationStatus

from voicechat_serve.api.access import AccessRules, guard
from voicechat_serve.api.errors import answer_errors_in_openai_form
from voicechat_serve.loopback import listen_where_ray_listens

Page = Callable[[FastAPI], FastAPI]
"""Mounts a page on the front's application and returns what is to be served; called inside the replica."""


@serve.ingress()
class FrontIngress:
    def __init__(self, page: Page | None, access: AccessRules):
        listen_where_ray_listens()
        self.page, self.access = page, access

    def __serve_build_asgi_app__(self) -> FastAPI:
        app = FastAPI(title="llm-voice-chat", docs_url=None, redoc_url=None, openapi_url=None)
        guard(app, self.access, "Basic")
        answer_errors_in_openai_form(app)

        @app.get("/health")
        async def health() -> Any:
            # It asks Serve's controller, and blocks while it waits.
            status = await asyncio.to_thread(serve.status)
            healthy = all(one.status == ApplicationStatus.RUNNING for one in status.applications.values())
            deployments = {
                name: deployment.status.value.lower()
                for application in status.applications.values()
                for name, deployment in application.deployments.items()
            }
            body = {"status": "ok" if healthy else "unavailable", "deployments": deployments}
            return JSONResponse(body, 200 if healthy else 503)

        return self.page(app) if self.page else app
