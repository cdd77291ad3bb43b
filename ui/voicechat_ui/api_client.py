"""A client for the lists of models and voices of the API, over HTTP. All else goes over /v1/realtime."""

import asyncio
import time
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

INSTRUCTIONS = "Answer in one or two short sentences."
"""The system prompt for a model whose server names none."""

ORIGINS = {"packaged": "packaged", "tuned": "tuned here", "elsewhere": "yours", "remote": "on another server"}
"""A model's origin in this project's API -> the words for it."""

UNITS_S = (("year", 31_557_600), ("month", 2_629_800), ("day", 86_400), ("hour", 3600), ("minute", 60))


@dataclass(frozen=True)
class ListedModel:
    """A language model of the API, for people."""

    id: str
    title: str
    origin: str = ""
    """In words: "packaged", "tuned here 5 minutes ago"; empty for servers of other kinds."""
    about: str = ""
    """What to expect, in one line."""
    instructions: str = INSTRUCTIONS
    """The system prompt with which a conversation begins."""
    tools: tuple[str, ...] = ()
    """The labels of the servers of tools that the operator lets it use."""

    @property
    def session_tools(self) -> list[dict[str, str]]:
        """The tools of a session with this model. The operator has listed what may be called."""
        return [{"type": "mcp", "server_label": label, "require_approval": "never"} for label in self.tools]

    @property
    def label(self) -> str:
        return f"{self.title}, {self.origin}" if self.origin else self.title


def listed(card: Any) -> ListedModel:
    """Convert a card of /models. The fields that only this project's API has may be missing."""
    more = card.model_extra or {}
    title, origin = more.get("title") or card.id, ORIGINS.get(more.get("origin", ""), "")
    _, at, number = card.id.rpartition("@")
    if at and origin:
        title, origin = f"{title}, version {number}", "from the registry"
    elif "tuned_at" in more:
        origin = f"{origin} {ago(time.time() - more['tuned_at'])}"
    prompt = more.get("system_prompt")
    instructions = INSTRUCTIONS if prompt is None else prompt
    return ListedModel(card.id, title, origin, more.get("about", ""), instructions, tuple(more.get("tools", ())))


def ago(seconds: float) -> str:
    """Return for example "5 minutes ago"."""
    for unit, unit_s in UNITS_S:
        if seconds >= unit_s:
            number = int(seconds // unit_s)
            return f"{number} {unit}{'s' if number > 1 else ''} ago"
    return "just now"


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
        """Return the language models in the API's order: this project's begins with those that converse."""
        found = []
        with self.in_openais_form():
            for model in (await self._client.models.list()).data:
                kind = (model.model_extra or {}).get("type")
                if kind == "language" if kind else not model.id.startswith(AUDIO_MODEL_PREFIXES):
                    found.append(listed(model))
        return found

    async def model(self, name: str) -> ListedModel:
        """Return a model that the API serves, or a version of one.

        Raises:
            openai.NotFoundError: it does not serve it.
        """
        card = await self._client.models.retrieve(name)
        with self.in_openais_form():
            return listed(card)

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
