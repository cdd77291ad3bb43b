"""The deployments' handles for the routers, and the deployment of each model name."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from ray.serve.handle import DeploymentHandle, DeploymentResponse

from voicechat_platform.errors import InputError
from voicechat_serve.aliases import SYNTHESIS_MODEL, built_in, named_by
from voicechat_serve.api.errors import APIError, shortened
from voicechat_serve.api.request_log import current_request
from voicechat_serve.application_file import ToolServer
from voicechat_serve.generation.served_model import ServedModel
from voicechat_serve.operations.deadlines import LateError, answer_in_time, pieces_in_time
from voicechat_serve.transcription.languages import MULTILINGUAL, whisper_language

FIRST_PIECE_S = 180.0
"""For the first piece of a response: before it, the request waits in the queue, a version loads, the prompt is read."""

NEXT_PIECE_S = 120.0
"""Between two pieces: for a transcript, a window of half a minute, and those of the other sounds in between."""

WHOLE_S = 840.0
"""For a whole response: less than Serve's own limit (REQUEST_TIMEOUT_S), whose error is not in OpenAI's form."""

BRIEF_S = 60.0
"""For calls during a turn: the transcription of an utterance, the lookup of a version."""

CLASSIFIER_S = 5.0
"""For the end-of-turn classifier, whose result is useless later."""


@dataclass(frozen=True, kw_only=True)
class Services:
    models: dict[str, ServedModel]
    language_models: dict[str, DeploymentHandle]
    """By model id; each a `LanguageModel`, and the same one for a model and its adapters."""
    embedding_models: dict[str, DeploymentHandle] = field(default_factory=dict)
    """By model id; each an `EmbeddingModel`."""
    transcription: DeploymentHandle
    """A `Transcription`."""
    transcription_model: str
    """Its name."""
    transcription_languages: frozenset[str] = MULTILINGUAL
    """Whisper's codes of the languages that it knows."""
    synthesis: DeploymentHandle
    """A `Synthesis`."""
    champions: DeploymentHandle | None = None
    """A `Champions`; None if no model is of the registry."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Those of the application file, in addition to those that are built in."""
    realtime_sessions: int = 16
    """The most concurrent spoken conversations in each replica of the ingress."""
    tool_servers: tuple[ToolServer, ...] = ()

    def own_name(self, name: str) -> str:
        """Return the own name of the model that a request names, if that is an alias; a model comes before an alias."""
        own = {*self.models, *self.language_models, *self.embedding_models, self.transcription_model, SYNTHESIS_MODEL}
        if name in own or name.rpartition("@")[0] in own:
            return name
        return named_by(name, built_in(self.transcription_model) | self.aliases) or name

    def language_model(self, name: str) -> tuple[DeploymentHandle, str, int | None]:
        """Return the deployment of a language model, and the model's id and version of a name such as "shakespeare@3".

        Raises:
            APIError: 404, there is no such language model; 400, the model makes embeddings.
        """
        own_name = self.own_name(name)
        if own_name in self.embedding_models:
            known = ", ".join(self.language_models)
            message = (
                f"the model {own_name!r} makes embeddings, and no text: ask it at /v1/embeddings, or one of {known}"
            )
            raise APIError(400, message, param="model", code="invalid_value")
        model, at, number = own_name.rpartition("@")
        if not at or not (number.isascii() and number.isdigit() and len(number) < 10):
            model, number = own_name, ""
        if model not in self.language_models:
            raise unknown_model(name, self.language_models)
        current_request().model = model
        return self.language_models[model], model, int(number) if number else None

    def embedding_model(self, name: str) -> DeploymentHandle:
        """Return the deployment of a model of embeddings.

        Raises:
            APIError: 404, there is no such model; 400, the model makes text.
        """
        own_name = self.own_name(name)
        if own_name in self.embedding_models:
            current_request().model = own_name
            return self.embedding_models[own_name]
        known = ", ".join(self.embedding_models) or "none: an entry of the application file needs `task: embeddings`"
        if own_name in self.language_models or own_name.rpartition("@")[0] in self.language_models:
            message = f"the model {shortened(name, 100)!r} makes text, and no embeddings; for those there is {known}"
            raise APIError(400, message, param="model", code="invalid_value")
        raise unknown_model(name, (known,))

    def require_transcription(self, name: str) -> None:
        if self.own_name(name) != self.transcription_model:
            raise unknown_model(name, self.names_of(self.transcription_model))
        current_request().model = self.transcription_model

    def language_code(self, tag: str, param: str) -> str:
        """Return the transcription model's code for the language in the field `param`.

        Raises:
            APIError: 400, it is no language, or the model does not know it.
        """
        try:
            return whisper_language(tag, self.transcription_model, self.transcription_languages)
        except InputError as error:
            raise APIError(400, str(error), param=param, code="invalid_value") from error

    def require_synthesis(self, name: str) -> None:
        if self.own_name(name) != SYNTHESIS_MODEL:
            raise unknown_model(name, self.names_of(SYNTHESIS_MODEL))
        current_request().model = SYNTHESIS_MODEL

    def names_of(self, model: str) -> list[str]:
        """Return a model's own name and its aliases."""
        aliases = built_in(self.transcription_model) | self.aliases
        return [model, *(alias for alias, target in aliases.items() if target == model)]


def unknown_model(name: str, available) -> APIError:
    message = f"the model {shortened(name, 100)!r} does not exist here; there are {', '.join(available)}"
    return APIError(404, message, param="model", code="model_not_found")


async def answered(response: DeploymentResponse, within_s: float) -> Any:
    """Return the result of a replica's method; a cancellation also cancels the replica's work.

    Raises: the errors of the method; APIError: 504, it took longer than `within_s`.
    """
    try:
        return await answer_in_time(response, within_s)
    except LateError:
        raise late(within_s) from None


@contextlib.asynccontextmanager
async def streamed(handle: DeploymentHandle, method: str, *arguments: Any) -> AsyncIterator[AsyncIterator[Any]]:
    """Yield the stream of a replica's method; if the caller leaves the block, the replica's work is cancelled.

    The stream raises APIError, 504, if a piece or the whole is late.
    """
    stream = getattr(handle.options(stream=True), method).remote(*arguments)
    try:
        async with contextlib.aclosing(pieces_in_time(stream, FIRST_PIECE_S, NEXT_PIECE_S, WHOLE_S, late)) as pieces:
            yield pieces
    finally:
        stream.cancel()


def late(seconds: float) -> APIError:
    message = f"a model gave no answer within {seconds:g} s, and its work was ended: try again later"
    return APIError(504, message, code="timeout")
