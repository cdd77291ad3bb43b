"""A client for the lists of models and voices of the API, over HTTP. All else goes over /v1/realtime."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import openai

# The names of audio models, for servers without a "type" in their model list.
AUDIO_MODEL_PREFIXES = ("whisper-", "tts-", "gpt-4o-mini-")

PATIENCE_S = 10.0
"""For an answer of the API to `problem`."""

DEFAULT_VOICE = ("heart", "en")

NAMES = {"smollm2-135m-instruct": "SmolLM2"}
"""The names of models that differ from their ids."""

ORIGINS = {
    "packaged": ("packaged", "made for conversation, in English. It is small, so do not rely on its answers."),
    "tuned": ("tuned here", "continues in the style of the text on which it was tuned, and seldom answers a question."),
    "remote": ("on another server", "runs on another server: what you say goes there as text."),
}
"""A model's origin in this project's API -> the words of the page for it, and a description of the model."""


@dataclass(frozen=True)
class ListedModel:
    """A language model in the API's list."""

    id: str
    origin: str = ""
    """A key of ORIGINS; empty for other models and for servers of other kinds."""

    @property
    def label(self) -> str:
        name, (origin, _) = NAMES.get(self.id, self.id), ORIGINS.get(self.origin, ("", ""))
        return f"{name}, {origin}" if origin else name

    @property
    def about(self) -> str:
        """A description in one line."""
        return ORIGINS.get(self.origin, ("", ""))[1]


class ApiClient:
    """An OpenAI-compatible API.

    Every method raises `openai.OpenAIError` if the API does not answer or refuses. `explain` returns a message for it.

    Args:
        base_url: ends in /v1.
        api_key: for an API that requires a key.
    """

    def __init__(self, base_url: str, api_key: str = "none") -> None:
        self.base_url = base_url
        self._client = openai.AsyncOpenAI(
            base_url=base_url, api_key=api_key, timeout=openai.Timeout(30, connect=5), max_retries=1
        )

    async def language_models(self) -> list[ListedModel]:
        """Return the language models: the packaged one first, then all others in the API's order."""
        found = []
        with self.in_openais_form():
            for model in (await self._client.models.list()).data:
                more = model.model_extra or {}
                kind = more.get("type")
                if kind == "language" if kind else not model.id.startswith(AUDIO_MODEL_PREFIXES):
                    found.append(ListedModel(model.id, str(more.get("origin", ""))))
        return sorted(found, key=lambda model: model.origin != "packaged")

    async def require_model(self, name: str) -> None:
        """Check that the API serves a model, or a version of one.

        Raises:
            openai.NotFoundError: it does not.
        """
        await self._client.models.retrieve(name)

    async def voices(self) -> list[tuple[str, str]]:
        """Return the voices' ids and languages, the default first; only the default if the API has no list."""
        try:
            answer: Any = await self._client.get("/audio/voices", cast_to=object)
        except openai.NotFoundError:
            return [DEFAULT_VOICE]
        with self.in_openais_form():
            return [(voice["id"], voice["language"]) for voice in answer["data"]] or [DEFAULT_VOICE]

    @contextmanager
    def in_openais_form(self) -> Iterator[None]:
        """Wrap code that reads an answer: the openai package accepts any form, and fails only where it is used."""
        try:
            yield
        except (AttributeError, TypeError, KeyError, ValueError) as error:
            raise openai.OpenAIError(
                f"the answer from {self.base_url} is not in OpenAI's form; is this the base URL of an API, with /v1?"
            ) from error

    async def problem(self) -> str:
        """Return a message about the API's current problem; empty if the API answers."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self.language_models()
        except openai.OpenAIError as error:
            return self.explain(error)
        except TimeoutError:
            return f"The server at {self.base_url} has not answered for {PATIENCE_S:g} seconds."
        return ""

    def explain(self, error: Exception) -> str:
        """Return what went wrong and what to do, for the user of the page or of the terminal."""
        if isinstance(error, openai.APITimeoutError):
            return "The server took too long to answer."
        if isinstance(error, openai.APIConnectionError):
            return f"The server at {self.base_url} does not answer. Start it with `voicechat serve`."
        if isinstance(error, openai.APIStatusError):
            reason = error.body.get("message") if isinstance(error.body, dict) else None
            if error.status_code in (429, 503):
                return f"The server is busy ({reason or error.status_code}): wait a moment."
            if error.status_code == 401:
                return "The server requires a key: start this program with one in VOICECHAT_API_KEY."
            return f"The server refused the request: {reason or error.message}"
        return f"The server failed: {error}"
