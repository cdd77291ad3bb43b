"""The routes at the root of the port: /health, /ready, /metrics, and the page, if there is one."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from ray import serve
from ray.serve.schema import DeploymentStatus, ReplicaState, ServeStatus

from voicechat_serve.api.access import AccessRules, guard
from voicechat_serve.api.errors import answer_errors_in_openai_form
from voicechat_serve.names import API, APPLICATIONS
from voicechat_serve.operations.exporters import cluster_metrics
from voicechat_serve.operations.flow_control import FlowControl
from voicechat_serve.operations.serve_private import listen_where_ray_listens

log = logging.getLogger("ray.serve.voicechat.front")

Page = Callable[[FastAPI], FastAPI]
"""Mounts a page on the front's application and returns the application to serve; called inside the replica."""

CONTROLLER_TIMEOUT_S = 5


class Controller:
    """Serve's controller, with one call at a time for any number of requests.

    A call blocks a thread as long as a dead controller needs to restart.
    """

    def __init__(self) -> None:
        self.asked: asyncio.Task[ServeStatus] | None = None

    async def status(self) -> ServeStatus:
        """Return the status.

        Raises:
            TimeoutError: the controller does not answer.
        """
        if self.asked is None or self.asked.done():
            self.asked = asyncio.create_task(asyncio.to_thread(serve.status))
        try:
            return await asyncio.wait_for(asyncio.shield(self.asked), CONTROLLER_TIMEOUT_S)
        except Exception:
            log.exception("Serve's controller does not answer")
            raise


def not_ready(status: ServeStatus) -> dict[str, str]:
    """Return the deployments without a loaded and warm replica -> Serve's message for each.

    One replica is enough: while Serve starts more, or replaces them one by one, the service answers requests.
    Applications of others on the same Serve do not count.
    """
    applications = {name: status.applications[name] for name in APPLICATIONS if name in status.applications}
    missing = {} if API in applications else {API: "not deployed"}
    return (
        missing
        | {
            name: deployment.status.value.lower()
            for application in applications.values()
            for name, deployment in application.deployments.items()
            if not deployment.replica_states.get(ReplicaState.RUNNING)
            # Healthy without a replica: there are no requests, and one starts for the next request.
            and (deployment.replica_states or deployment.status != DeploymentStatus.HEALTHY)
        }
        | {
            # For an application from a file, Serve learns its deployments later.
            name: application.status.value.lower()
            for name, application in applications.items()
            if not application.deployments
        }
    )


@serve.ingress()
class FrontIngress:
    def __init__(self, page: Page | None, access: AccessRules):
        listen_where_ray_listens()
        self.page, self.access = page, access

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_front(self.page, self.access)


def build_front(page: Page | None, access: AccessRules) -> FastAPI:
    app = FastAPI(title="llm-voice-chat", docs_url=None, redoc_url=None, openapi_url=None)
    guard(app, access, "Basic")
    app.add_middleware(FlowControl)
    answer_errors_in_openai_form(app)
    add_probes(app)
    return page(app) if page else app


def add_probes(app: FastAPI) -> None:
    controller = Controller()

    @app.api_route("/health", methods=["GET", "HEAD"])
    async def health() -> Any:
        """Whether to restart: this process answers, and Serve's controller does."""
        try:
            await controller.status()
        except Exception:
            return JSONResponse({"status": "unavailable", "reason": "Serve's controller does not answer"}, 503)
        return {"status": "ok"}

    @app.api_route("/ready", methods=["GET", "HEAD"])
    async def ready() -> Any:
        """Whether to send requests: every part is loaded and warmed up."""
        try:
            waiting = not_ready(await controller.status())
        except Exception:
            return JSONResponse({"status": "unavailable", "reason": "Serve's controller does not answer"}, 503)
        return JSONResponse(
            {"status": "unavailable" if waiting else "ready", "not_ready": waiting}, 503 if waiting else 200
        )

    @app.get("/tokenizer_info")
    @app.post("/tokenize")
    @app.post("/detokenize")
    async def at_the_api(request: Request) -> RedirectResponse:
        """Send clients of vLLM, where these have no /v1, to the API; not to a host, whose name a proxy may have
        changed."""
        query = f"?{request.url.query}" if request.url.query else ""
        return RedirectResponse(f"v1{request.url.path}{query}", 307)

    @app.api_route("/metrics", methods=["GET", "HEAD"])
    async def metrics() -> Response:
        return Response(await cluster_metrics(), media_type=CONTENT_TYPE_PLAIN_0_0_4)
