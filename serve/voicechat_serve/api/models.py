"""/models: the available models."""

from typing import Any

from fastapi import APIRouter

from voicechat_serve.api.services import (
    BRIEF_S,
    SYNTHESIS_ALIASES,
    SYNTHESIS_MODEL,
    TRANSCRIPTION_ALIASES,
    Services,
    answered,
    unknown_model,
)
from voicechat_serve.generation.served_model import ServedModel


def router(services: Services) -> APIRouter:
    routes = APIRouter()
    created = {model.id: int(model.path.stat().st_mtime) for model in services.models.values()}
    names = [*created, services.transcription_model, SYNTHESIS_MODEL]

    def card(name: str, model: str | None = None) -> dict[str, Any]:
        """Return OpenAI's description of a model.

        Args:
            name: the name in requests.
            model: the model's name if it differs: "shakespeare@3" is a version of shakespeare.
        """
        model = model or name
        is_synthesis = model in (SYNTHESIS_MODEL, *SYNTHESIS_ALIASES)
        kind = "language" if model in created else "synthesis" if is_synthesis else "transcription"
        card = {"id": name, "object": "model", "created": created.get(model, 0), "owned_by": "llm-voice-chat"}
        card["type"] = kind  # this and the next are not OpenAI's: for clients that offer a choice of models
        return card | {"origin": origin(services.models[model])} if model in created else card

    @routes.get("/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [card(name) for name in names]}

    # A path, because a model's name may contain a slash.
    @routes.get("/models/{name:path}")
    async def retrieve_model(name: str) -> dict[str, Any]:
        if name in (*names, *TRANSCRIPTION_ALIASES, *SYNTHESIS_ALIASES):
            return card(name)
        model = name.rpartition("@")[0]
        if model not in created:
            raise unknown_model(name, names)
        handle, _, version = services.language_model(name)
        await answered(handle.require_version.remote(version, model), BRIEF_S)
        return card(name, model)

    return routes


def origin(model: ServedModel) -> str:
    """Return the origin of a language model: "packaged" with this project, "tuned" by it, or "elsewhere"."""
    if model.version is not None:
        return "tuned"
    return "packaged" if model.is_packaged else "elsewhere"
