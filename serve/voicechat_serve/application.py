"""Deploy the applications on Ray Serve, and wait until all deployments are ready.

Two applications share one port: the API at /v1, and at / the front with probes, metrics and the page. Ray must run
already; this module joins it. An application file names `api` and `front`, and Serve calls them.
"""

import importlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import ray
from ray import serve
from ray.serve.schema import ApplicationStatus, DeploymentStatus, LoggingConfig

from voicechat_platform.assets import locate_gguf
from voicechat_platform.errors import InputError
from voicechat_platform.settings import settings
from voicechat_serve.aliases import SYNTHESIS_MODEL, built_in, require_targets
from voicechat_serve.api.access import AccessRules, access_rules
from voicechat_serve.api.front import FrontIngress, Page
from voicechat_serve.api.ingress import APIIngress
from voicechat_serve.api.services import Services
from voicechat_serve.application_file import APIArguments, FrontArguments, Replicas
from voicechat_serve.generation.champions import Champions
from voicechat_serve.generation.embedding_model import EmbeddingModel
from voicechat_serve.generation.language_model import LanguageModel
from voicechat_serve.generation.served_model import ServedModel
from voicechat_serve.listed_models import served_models
from voicechat_serve.names import API, APPLICATIONS, FRONT
from voicechat_serve.operations.ports import require_free
from voicechat_serve.operations.upstream_key import upstream_key
from voicechat_serve.synthesis.synthesizer import Synthesis
from voicechat_serve.transcription.sentence_end import SENTENCE_END_MODEL
from voicechat_serve.transcription.short_context import CAUTIOUS, MEASURED
from voicechat_serve.transcription.smart_turn import find_smart_turn
from voicechat_serve.transcription.transcriber import Transcription
from voicechat_serve.transcription.whisper_files import find_whisper

log = logging.getLogger(__name__)

POLL_S = 0.25

REQUEST_TIMEOUT_S = 900.0

LOGGING = LoggingConfig(encoding="JSON", enable_access_log=False)
"""A replica logs one JSON object per line. api/request_log.py logs more about a request than Serve's access log."""

ReplicaState = Literal["starting", "ready", "failed"]


class DeploymentFailedError(RuntimeError):
    """A deployment cannot start. The message is that of its replica."""


@dataclass(frozen=True)
class DeploymentState:
    name: str
    """"transcription", "synthesis", "model NAME", "champions", "api" or "front"."""
    state: ReplicaState


def api(arguments: APIArguments) -> serve.Application:
    """Build the API's application for Serve from the arguments of a file. The file gives the address; the environment
    gives the keys (VOICECHAT_KEYS, …).

    Raises:
        InputError: a model's files are not found, or other machines could send requests without a key.
    """
    return api_application(served_models(arguments), arguments, rules_of_the_running_serve())


def front(arguments: FrontArguments) -> serve.Application:
    """Build the front's application for Serve from the arguments of a file. Raises the errors of `api`."""
    access = rules_of_the_running_serve()
    if not arguments.page:
        return front_application(None, access)
    module, _, function = arguments.page.partition(":")
    mount = getattr(importlib.import_module(module), function)
    key = settings().api_key.get_secret_value() or "none"
    return front_application(partial(mount, api_base_url=arguments.api, api_key=key), access)


def rules_of_the_running_serve() -> AccessRules:
    """Return the environment's rules for the address where Serve already listens when it builds from a file."""
    chosen = settings()
    client = serve.context._get_global_client(raise_if_no_controller_running=False) if ray.is_initialized() else None
    if client is not None:
        chosen = chosen.model_copy(update={"host": client.http_config.host})
    return access_rules(chosen)


def deploy(
    models: Sequence[tuple[ServedModel, Replicas]],
    arguments: APIArguments,
    port: int,
    page: Page | None = None,
    access: AccessRules = AccessRules(),
) -> None:
    """Start all deployments and return at once; `wait_until_ready` waits for them.

    Args:
        models: the models of texts with the resources of each; at least one makes text.
        arguments: the settings of all other deployments.
        port: the port to listen on.
        page: mounts the page at /; the replica must be able to import it.
        access: the address to listen on, and the keys; by default loopback, without a key.

    Raises:
        InputError: two models have one name, the port or an application's name is in use, a model's folder does not
            exist, or an asset is missing.
    """
    join_serve(port, access.host)
    targets = [
        serve.RunTarget(
            api_application(models, arguments, access), name=API, route_prefix=APPLICATIONS[API], logging_config=LOGGING
        ),
        serve.RunTarget(front_application(page, access), name=FRONT, route_prefix=APPLICATIONS[FRONT]),
    ]
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # of this process; replicas keep theirs
    http_options = {"host": access.host, "port": port, "request_timeout_s": REQUEST_TIMEOUT_S}
    serve.start(proxy_location="HeadOnly", http_options=http_options)
    serve.run_many(targets, wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def join_serve(port: int, host: str) -> None:
    """Check that our applications can be added to the Serve of a joined Ray, if one runs.

    Raises:
        InputError: Serve listens at another address, or applications of others use our names or routes; or no Serve
            runs and the port is in use.
    """
    # Without a running Serve, this call would start one.
    client = serve.context._get_global_client(raise_if_no_controller_running=False) if ray.is_initialized() else None
    if client is None:
        return require_free(port, host)
    its = client.http_config
    if (its.host, its.port) != (host, port):
        raise InputError(f"a Serve runs on this Ray and listens on {its.host}, port {its.port}: give that with --port")
    for name, other in client.get_serve_details()["applications"].items():
        route = other["route_prefix"]
        if name not in APPLICATIONS and route in APPLICATIONS.values():
            raise InputError(f"the application {name!r} of the Serve on this Ray already has the route {route}")
        if name in APPLICATIONS and name not in (other["deployments"] or APPLICATIONS):
            raise InputError(f"the Serve on this Ray has an application {name!r} that is none of ours")


def api_application(
    models: Sequence[tuple[ServedModel, Replicas]], arguments: APIArguments, access: AccessRules
) -> serve.Application:
    """Build the application of the API and its models.

    Raises:
        InputError: there is no model, two models have one name, a model's folder does not exist, or an asset is
            missing.
    """
    served = [each for model, _ in models for each in (model, *model.adapters)]
    ids = [model.id for model in served]
    whisper, classifier = find_whisper(arguments.whisper), locate_gguf(SENTENCE_END_MODEL)
    of_audio = {whisper.id, SYNTHESIS_MODEL}
    reserved = {*of_audio, *built_in(whisper.id)}
    if len(set(ids)) < len(ids) or set(ids) & reserved:
        raise InputError(f"models must have names of their own, and none of {', '.join(sorted(reserved))}: {ids}")
    require_targets(arguments.aliases, {*ids, *of_audio}, whisper.id)
    for model, _ in models:
        if model.path and not model.path.exists():
            raise InputError(f"the model {model.id!r} has no files: {model.path} does not exist")
    if all(model.task != "text" for model in served):
        raise InputError(
            "there is no language model to serve: promote one (`voicechat promote`), or name one in `models`"
        )
    for server in arguments.tools:
        if server.key_env:
            upstream_key(server.key_env, server.url)  # before any work starts; the replica reads it again
    champions = None
    if any(model.version is not None for model in served):
        champions = serve.deployment(
            Champions,
            name="champions",
            ray_actor_options={"num_cpus": 0.05},
            max_ongoing_requests=10_000,  # every replica of every language model waits in it
            graceful_shutdown_wait_loop_s=0.1,
            graceful_shutdown_timeout_s=0.5,  # no client waits for it any more
        ).bind({model.id: model.words for model in served if model.version is not None})

    def bound(model: ServedModel, replicas: Replicas) -> serve.Application:
        deployment = serve.deployment(LanguageModel, name=deployment_name(model), **replicas.options())
        follows = any(each.version is not None for each in (model, *model.adapters))
        return deployment.bind(model, champions if follows else None)

    transcription = serve.deployment(Transcription, name="transcription", **arguments.transcription.options())
    synthesis = serve.deployment(Synthesis, name="synthesis", **arguments.synthesis.options())
    language_models: dict[str, Any] = {}
    embedding_models: dict[str, Any] = {}
    for model, replicas in models:
        if model.task == "embeddings":
            deployment = serve.deployment(EmbeddingModel, name=deployment_name(model), **replicas.options())
            embedding_models[model.id] = deployment.bind(model)
            continue
        deployment = bound(model, replicas)
        language_models |= {each.id: deployment for each in (model, *model.adapters)}
    services = Services(
        models={model.id: model for model in served},
        language_models=language_models,
        embedding_models=embedding_models,
        transcription=transcription.bind(
            whisper.folder,
            chat_model=classifier,
            smart_turn=find_smart_turn(),
            gates=MEASURED if whisper.is_measured else CAUTIOUS,
            device=arguments.transcription.device,
            compute_type=arguments.transcription.compute_type,
        ),
        transcription_model=whisper.id,
        transcription_languages=whisper.languages,
        synthesis=synthesis.bind(arguments.synthesis.device),
        champions=champions,
        aliases=arguments.aliases,
        realtime_sessions=arguments.realtime_sessions,
        tool_servers=arguments.tools,
    )
    ingress = serve.deployment(APIIngress, name=API, **arguments.ingress.options())
    return ingress.bind(services, access)


def front_application(page: Page | None, access: AccessRules) -> serve.Application:
    # One replica, because the page keeps its sessions in the process.
    front = serve.deployment(
        FrontIngress,
        name=FRONT,
        ray_actor_options={"num_cpus": 0.1},
        num_replicas=1,
        max_ongoing_requests=512,
        graceful_shutdown_wait_loop_s=0.1,  # when idle it goes at once
    )
    return front.bind(page, access)


def deployment_name(model: ServedModel) -> str:
    return f"model {model.id}"


def wait_until_ready(
    on_progress: Callable[[list[DeploymentState]], None] = lambda states: None, timeout_s: float = 300
) -> None:
    """Return when every deployment has loaded and warmed up, and the service answers requests.

    Args:
        on_progress: receives every deployment's state, several times per second.
        timeout_s: the longest time to wait.

    Raises:
        DeploymentFailedError: a replica cannot start (the message is its error; the log has all of it), or the time is
            over.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        found = serve.status().applications
        applications = [found[name] for name in APPLICATIONS if name in found]
        states = []
        for application in applications:
            for name, deployment in application.deployments.items():
                ready = deployment.status == DeploymentStatus.HEALTHY
                # Serve starts a failed replica again and again. No failure of our deployments ends by that.
                failed = deployment.status == DeploymentStatus.DEPLOY_FAILED or "failed to start" in deployment.message
                states.append(DeploymentState(name, "ready" if ready else "failed" if failed else "starting"))
                if failed:
                    on_progress(states)
                    log.error("%s", deployment.message)
                    raise DeploymentFailedError(f"{name}: {last_line(deployment.message)}")
            if application.status == ApplicationStatus.DEPLOY_FAILED:
                raise DeploymentFailedError(application.message)
        on_progress(states)
        if len(applications) == len(APPLICATIONS) and all(
            each.status == ApplicationStatus.RUNNING for each in applications
        ):
            return
        if time.monotonic() > deadline:
            starting = ", ".join(state.name for state in states if state.state != "ready")
            raise DeploymentFailedError(f"not ready after {timeout_s:g} s: {starting}")
        time.sleep(POLL_S)


def last_line(message: str) -> str:
    """Return the exception of a stack trace."""
    return message.strip().rpartition("\n")[2]


def stop() -> None:
    """Delete our applications after their replicas have finished their requests. Ray keeps running, and so does Serve
    if it has other applications."""
    if not ray.is_initialized() or serve.context._get_global_client(raise_if_no_controller_running=False) is None:
        return  # otherwise this call would start Serve
    if set(serve.status().applications) <= set(APPLICATIONS):
        serve.shutdown()
    else:
        for name in APPLICATIONS:
            serve.delete(name)
