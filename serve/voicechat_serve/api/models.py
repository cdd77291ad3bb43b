"""/models: what can be asked for."""

from typing import Any

from fastapi import APIRouter

from voicechat_serve.api.services import (
    SYNTHESIS_ALIASES,
    SYNTHESIS_MODEL,
    TRANSCRIPTION_ALIASES,
    Services,
    unknown_model,
)


def router(services: Services) -> APIRouter:
    routes = APIRouter()
    created = {model.id: int(model.folder.stat().st_mtime) for model in services.models.values()}
    names = [*created, services.transcription_model, SYNTHESIS_MODEL]

    def card(name: str) -> dict[str, Any]:
        is_synthesis = name in (SYNTHESIS_MODEL, *SYNTHESIS_ALIASES)
        kind = "language" if name in created else "synthesis" if is_synthesis else "transcription"
        card = {"id": name, "object": "model", "created": created.get(name, 0), "owned_by": "llm-voice-chat"}
        return card | {"type": kind}  # not OpenAI's: for clients that offer a choice of models

    @routes.get("/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [card(name) for name in names]}

    # A path, because a model's name may hold a slash.
    @routes.get("/models/{name:path}")
    async def retrieve_model(name: str) -> dict[str, Any]:
        if name in (*names, *TRANSCRIPTION_ALIASES, *SYNTHESIS_ALIASES):
            return card(name)
        if name.rpartition("@")[0] not in created:
            raise unknown_model(name, names)
        handle, version = services.language_model(name)
        await handle.require_version.remote(version)
        return card(name)

    return routes
