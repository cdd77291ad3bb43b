"""What the page asks of the API over HTTP: which models and voices there are. All else goes over /v1/realtime."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import openai

# How servers without a "type" in their model list call what is no language model.
AUDIO_MODEL_PREFIXES = ("whisper-", "tts-", "gpt-4o-mini-")

PATIENCE_S = 10.0
"""With an API that is only asked whether it is there."""

DEFAULT_VOICE = ("heart", "en")

NAMES = {"smollm2-135m-instruct": "SmolLM2"}
"""What people call a model, where that is not its id."""

ORIGINS = {
    "packaged": ("packaged", "made for conversation, in English; it is small, so do not rely on what it says."),
    "tuned": ("tuned here", "goes on in the style of the text that it was tuned on, and seldom answers a question."),
}
"""What this project's API says of where a model comes from -> the same for people, and what to expect of it."""


@dataclass(frozen=True)
class ListedModel:
    """A model that can write a reply."""

    id: str
    origin: str = ""
    """A key of ORIGINS; others, and servers of other kinds, say nothing of it."""

    @property
    def label(self) -> str:
        name, (origin, _) = NAMES.get(self.id, self.id), ORIGINS.get(self.origin, ("", ""))
        return f"{name}, {origin}" if origin else name

    @property
    def about(self) -> str:
        """A line on what to expect."""
        return ORIGINS.get(self.origin, ("", ""))[1]


class ApiClient:
    """An OpenAI-compatible API.

    Args:
        base_url: ends in /v1.
        api_key: for an API that asks for one.

    Every method raises `openai.OpenAIError` where the API does not answer or refuses; `explain` turns that into words.
    """

    def __init__(self, base_url: str, api_key: str = "none") -> None:
        self.base_url = base_url
        self._client = openai.AsyncOpenAI(
            base_url=base_url, api_key=api_key, timeout=openai.Timeout(30, connect=5), max_retries=1
        )

    async def language_models(self) -> list[ListedModel]:
        """Those that can write a reply: the one for a person to begin with comes first, then all in the API's order."""
        found = []
        with self.in_openais_form():
            for model in (await self._client.models.list()).data:
                more = model.model_extra or {}
                kind = more.get("type")
                if kind == "language" if kind else not model.id.startswith(AUDIO_MODEL_PREFIXES):
                    found.append(ListedModel(model.id, str(more.get("origin", ""))))
        return sorted(found, key=lambda model: model.origin != "packaged")

    async def require_model(self, name: str) -> None:
        """Asks whether the API serves a model, or a version of one; raises `openai.NotFoundError` where it does not."""
        await self._client.models.retrieve(name)

    async def voices(self) -> list[tuple[str, str]]:
        """The voices' ids and languages, the default first; only the default where the API has no list of them."""
        try:
            answer: Any = await self._client.get("/audio/voices", cast_to=object)
        except openai.NotFoundError:
            return [DEFAULT_VOICE]
        with self.in_openais_form():
            return [(voice["id"], voice["language"]) for voice in answer["data"]] or [DEFAULT_VOICE]

    @contextmanager
    def in_openais_form(self) -> Iterator[None]:
        """Put around what reads an answer: the openai package takes any, and fails where one is used."""
        try:
            yield
        except (AttributeError, TypeError, KeyError, ValueError) as error:
            raise openai.OpenAIError(
                f"what answers at {self.base_url} has not OpenAI's form; is this the base URL of an API, with its /v1?"
            ) from error

    async def problem(self) -> str:
        """What is wrong with the API just now, for a person; empty for one that answers."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self.language_models()
        except openai.OpenAIError as error:
            return self.explain(error)
        except TimeoutError:
            return f"The server at {self.base_url} has not answered for {PATIENCE_S:g} seconds."
        return ""

    def explain(self, error: Exception) -> str:
        """What went wrong and what to do about it, for the person at the page or at the terminal."""
        if isinstance(error, openai.APITimeoutError):
            return "The server took too long to answer."
        if isinstance(error, openai.APIConnectionError):
            return f"The server at {self.base_url} does not answer. Start it with `voicechat serve`."
        if isinstance(error, openai.APIStatusError):
            said = error.body.get("message") if isinstance(error.body, dict) else None
            if error.status_code in (429, 503):
                return f"The server is busy ({said or error.status_code}): wait a moment."
            if error.status_code == 401:
                return "The server wants a key: start this program with one in VOICECHAT_API_KEY."
            return f"The server refused the request: {said or error.message}"
        return f"The server failed: {error}"
