"""What is deployed on Ray Serve, how to start it, and how to wait until all of it is ready.

Two applications share one port: the API at /v1, and at / the front with probes, metrics and the page. Ray must be
running (and is joined, not started, here).
"""

import errno
import logging
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ray import serve
from ray.serve.schema import ApplicationStatus, DeploymentStatus, LoggingConfig

from voicechat_platform.assets import locate
from voicechat_platform.errors import InputError
from voicechat_serve.api.access import AccessRules
from voicechat_serve.api.ingress import APIIngress
from voicechat_serve.api.services import RESERVED_NAMES, Services
from voicechat_serve.front import FrontIngress, Page
from voicechat_serve.language_model import LanguageModel, ServedModel
from voicechat_serve.synthesis import Synthesis
from voicechat_serve.transcription import Transcription

log = logging.getLogger(__name__)

API, FRONT = "api", "front"

# The CPU counts below only say how many replicas fit: two language models and all the rest fit on one core.

POLL_S = 0.25

LOGGING = LoggingConfig(encoding="JSON", enable_access_log=False)
"""A replica's log is one JSON object a line; api/request_log.py tells more of a request than Serve's access log."""

ReplicaState = Literal["starting", "ready", "failed"]


class DeploymentFailedError(RuntimeError):
    """A deployment cannot start; the message is its replica's."""


@dataclass(frozen=True)
class DeploymentState:
    name: str
    """"transcription", "synthesis", "model NAME", "api" or "front"."""
    state: ReplicaState


def deploy(
    models: Sequence[ServedModel],
    whisper: str,
    port: int,
    page: Page | None = None,
    access: AccessRules = AccessRules(),
) -> None:
    """Starts everything and returns at once; `wait_until_ready` tells when it answers.

    Args:
        models: the language models; at least one.
        whisper: "base" or "tiny.en".
        port: where to listen.
        page: mounts the page at /; must be importable in the replica.
        access: the address to listen on, and who is let in; by default loopback, without a key.

    Raises:
        InputError: two models of one name, the port is in use, a model's folder is not there, or an asset is missing.
    """
    require_free(port, access.host)
    ids = [model.id for model in models]
    if len(set(ids)) < len(ids) or set(ids) & RESERVED_NAMES:
        raise InputError(f"models must have names of their own, and none of {', '.join(sorted(RESERVED_NAMES))}: {ids}")
    for model in models:
        if not model.folder.is_dir():
            raise InputError(f"the model {model.id!r} has no folder {model.folder}")
    targets = [
        serve.RunTarget(api_application(models, whisper, access), name=API, route_prefix="/v1", logging_config=LOGGING),
        serve.RunTarget(front_application(page, access), name=FRONT, route_prefix="/"),
    ]
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # this process's; replicas keep theirs
    serve.start(proxy_location="HeadOnly", http_options={"host": access.host, "port": port})
    serve.run_many(targets, wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def api_application(models: Sequence[ServedModel], whisper: str, access: AccessRules) -> serve.Application:
    whisper_name = f"whisper-{whisper}"
    whisper_folder = locate(whisper_name)
    transcription = serve.deployment(
        Transcription,
        name="transcription",
        ray_actor_options={"num_cpus": 0.3},
        max_ongoing_requests=4,
        max_queued_requests=32,
    )
    synthesis = serve.deployment(
        Synthesis,
        name="synthesis",
        ray_actor_options={"num_cpus": 0.1},
        max_ongoing_requests=8,
        max_queued_requests=32,
    )
    language_models = {
        model.id: serve.deployment(
            LanguageModel,
            name=deployment_name(model),
            ray_actor_options={"num_cpus": 0.2},
            # The engine queues and refuses itself: it knows how many it can decode at once.
            max_ongoing_requests=256,
        ).bind(model)
        for model in models
    }
    services = Services(
        models={model.id: model for model in models},
        language_models=language_models,
        transcription=transcription.bind(whisper_folder),
        transcription_model=whisper_name,
        synthesis=synthesis.bind(),
    )
    ingress = serve.deployment(
        APIIngress, name=API, ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=512, max_queued_requests=512
    )
    return ingress.bind(services, access)


def front_application(page: Page | None, access: AccessRules) -> serve.Application:
    # One replica: the page keeps its sessions in the process.
    front = serve.deployment(
        FrontIngress, name=FRONT, ray_actor_options={"num_cpus": 0.1}, num_replicas=1, max_ongoing_requests=512
    )
    return front.bind(page, access)


def deployment_name(model: ServedModel) -> str:
    return f"model {model.id}"


def wait_until_ready(
    on_progress: Callable[[list[DeploymentState]], None] = lambda states: None, timeout_s: float = 300
) -> None:
    """Returns when every deployment has loaded and warmed up, and requests are answered.

    Args:
        on_progress: called with every deployment's state, several times a second.
        timeout_s: when to give up.

    Raises:
        DeploymentFailedError: a replica cannot start, with its own error (the whole of it is logged); or the
            time is up.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        applications = serve.status().applications.values()
        states = []
        for application in applications:
            for name, deployment in application.deployments.items():
                ready = deployment.status == DeploymentStatus.HEALTHY
                # Serve retries a replica that fails to start, in vain for anything that a deployment here does.
                failed = deployment.status == DeploymentStatus.DEPLOY_FAILED or "failed to start" in deployment.message
                states.append(DeploymentState(name, "ready" if ready else "failed" if failed else "starting"))
                if failed:
                    on_progress(states)
                    log.error("%s", deployment.message)
                    raise DeploymentFailedError(f"{name}: {last_line(deployment.message)}")
            if application.status == ApplicationStatus.DEPLOY_FAILED:
                raise DeploymentFailedError(application.message)
        on_progress(states)
        if applications and all(application.status == ApplicationStatus.RUNNING for application in applications):
            return
        if time.monotonic() > deadline:
            starting = ", ".join(state.name for state in states if state.state != "ready")
            raise DeploymentFailedError(f"not ready after {timeout_s:g} s: {starting}")
        time.sleep(POLL_S)


def last_line(message: str) -> str:
    """Of a stack trace: the exception itself."""
    return message.strip().rpartition("\n")[2]


def stop() -> None:
    """Takes everything down that `deploy` started; Ray goes on."""
    serve.shutdown()


def require_free(port: int, host: str = "127.0.0.1") -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise InputError(f"port {port} is in use; choose another with --port") from error
            raise InputError(f"cannot listen on {host}, port {port}: {error.strerror}") from error
