"""/models: the available models."""

import logging
from typing import Any

from fastapi import APIRouter

from voicechat_serve.aliases import SYNTHESIS_MODEL
from voicechat_serve.api.services import BRIEF_S, Services, answered, unknown_model
from voicechat_serve.generation.introduction import Introduction
from voicechat_serve.generation.served_model import ServedModel

log = logging.getLogger("ray.serve.voicechat.models")

CHAMPIONS_S = 2.0
"""For the introductions of the current champions; later, the list has those from the start of the service."""


def router(services: Services) -> APIRouter:
    routes = APIRouter()
    served = services.models
    created = {model.id: int(model.path.stat().st_mtime) if model.path else 0 for model in served.values()}
    labels = [server.label for server in services.tool_servers]
    audio = {services.transcription_model: "transcription", SYNTHESIS_MODEL: "synthesis"}

    def language_card(name: str, model: ServedModel, introduction: Introduction) -> dict[str, Any]:
        """Return OpenAI's description of a model of texts, with more fields for clients that offer a choice of models.

        Args:
            name: the name in requests: "shakespeare", or "shakespeare@3" for a version.
        """
        more: dict[str, Any] = {
            "type": "language" if model.task == "text" else model.task,
            "origin": origin(model),
            "title": introduction.title or name,
            "about": introduction.about,
            "system_prompt": introduction.system_prompt,
            "tools": labels if introduction.converses else [],
        }
        if introduction.tuned_at is not None:
            more["tuned_at"] = introduction.tuned_at
        return card(name, introduction.tuned_at or created[model.id]) | more

    async def introductions() -> dict[str, Introduction]:
        found = {model.id: model.introduction for model in served.values()}
        if services.champions is None:
            return found
        try:
            return found | await answered(services.champions.introduced.remote(), CHAMPIONS_S)
        except Exception:  # its replica is starting again, say
            log.exception("the current champions are not known; the list has those from the start")
            return found

    @routes.get("/models")
    async def list_models() -> dict[str, Any]:
        """List the models, those first with which a person should begin; aliases are not listed."""
        known = await introductions()
        ordered = sorted(served.values(), key=lambda model: place(model, known[model.id]))
        cards = [language_card(model.id, model, known[model.id]) for model in ordered]
        cards += [card(name) | {"type": kind} for name, kind in audio.items()]
        return {"object": "list", "data": cards}

    # A path, because a model's name may contain a slash.
    @routes.get("/models/{name:path}")
    async def retrieve_model(name: str) -> dict[str, Any]:
        """Return a model's card; for an alias the card of its model, with the alias as its id."""
        own_name = services.own_name(name)
        return await card_of(own_name) | ({} if own_name == name else {"id": name, "alias_of": own_name})

    async def card_of(name: str) -> dict[str, Any]:
        if name in audio:
            return card(name) | {"type": audio[name]}
        if name in served:
            return language_card(name, served[name], (await introductions())[name])
        model = name.rpartition("@")[0]
        if model not in served or served[model].task != "text":
            raise unknown_model(name, (*served, services.transcription_model, SYNTHESIS_MODEL))
        handle, _, version = services.language_model(name)
        return language_card(name, served[model], await answered(handle.introduce.remote(version, model), BRIEF_S))

    return routes


def card(name: str, created: int = 0) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "llm-voice-chat"}


def place(model: ServedModel, introduction: Introduction) -> tuple[bool, bool, bool, bool]:
    """Return a model's place in the list: chat models that were not tuned here, then those that were, then what else
    was tuned here, then the rest, and the models of embeddings at the end."""
    is_tuned = model.version is not None
    begins_with = is_tuned or not introduction.converses
    return model.task != "text", begins_with, not is_tuned, not introduction.converses


def origin(model: ServedModel) -> str:
    """Return the origin of a model: "packaged" with this project, "tuned" by it, "remote" on
    another server, or from "elsewhere"."""
    if model.path is None:
        return "remote"
    if model.version is not None:
        return "tuned"
    return "packaged" if model.is_packaged else "elsewhere"
