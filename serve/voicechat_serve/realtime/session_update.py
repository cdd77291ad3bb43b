"""Apply the settings that a client sends to a session, as many of them as can be applied."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import ValidationError

from voicechat_serve.realtime.beta_shape import present_shape
from voicechat_serve.realtime.errors import EventError
from voicechat_serve.realtime.session_settings import SessionSettings
from voicechat_serve.realtime.stages import Stages
from voicechat_serve.realtime.tool_settings import faults_of, misfit
from voicechat_serve.realtime.wire import error_of

Path = tuple[str | int, ...]


def changed(
    before: SessionSettings, patch: dict[str, Any], stages: Stages
) -> tuple[SessionSettings, list[dict[str, Any]]]:
    """Return the settings with the changes of a patch.

    A field whose value cannot be used here keeps its present value, and a tool that cannot be used is left out, so that
    a client of another server loses only these.

    Args:
        before: the present settings.
        patch: the changes as the client sent them, in the present shape or the beta's.
        stages: the models.

    Returns:
        The settings, and an error for each field that was left out: OpenAI's type, code, message and param.

    Raises:
        EventError: the patch is not what the protocol describes: it has an unknown field, or a value of a wrong type.
    """
    patch = copy.deepcopy(present_shape(patch, "session."))
    bodies = list[dict[str, Any]]()
    while True:
        try:
            settings = before.updated(patch)
            faults = without_effect(settings, patch) or unavailable(settings, patch, stages)
        except ValidationError as error:
            faults = unusable(error, patch)
        if not faults:
            break
        bodies += [fault.body if isinstance(fault, EventError) else stages.explain(fault) for fault in faults.values()]
        for path in reversed(faults):  # of a list's elements, the last first
            remove(patch, path)
    if isinstance(settings.tool_choice, dict) and misfit(settings.tool_choice, settings.tools):  # its tool is gone
        settings.tool_choice = "auto"
    if (transcription := settings.audio.input.transcription) and transcription.language:
        transcription.language = stages.language_code(transcription.language)
    return settings, bodies


def unusable(error: ValidationError, patch: dict[str, Any]) -> dict[Path, Exception]:
    """Return the fields whose values cannot be used.

    Raises:
        EventError: a field is unknown or missing, or has a value of a wrong type.
    """
    faults = dict[Path, EventError]()
    for detail in error.errors(include_url=False):
        fault, path = error_of(detail, "session."), path_in(patch, detail["loc"])
        if path not in faults or fault.body["code"] == "invalid_value":  # of a union, the type that fits best
            faults[path] = fault
    for path, fault in faults.items():
        if fault.body["code"] != "invalid_value" or not path:
            raise fault
    return {**faults}


def without_effect(settings: SessionSettings, patch: dict[str, Any]) -> dict[Path, Exception]:
    """Return the fields that have no effect with the other settings."""
    found = {path: (f"session.{'.'.join(path)}", reason) for path, reason in settings.without_effect(patch)}
    return {path: EventError("invalid_value", f"{param}: {reason}", param) for path, (param, reason) in found.items()}


def unavailable(settings: SessionSettings, patch: dict[str, Any], stages: Stages) -> dict[Path, Exception]:
    """Return the fields that name something that is not here, and the tools that cannot be used."""
    faults = dict[Path, Exception]()
    for path, require in requirements(settings, stages):
        if path_in(patch, path) == path:
            try:
                require()
            except Exception as error:
                faults[path] = error
    if "tools" in patch:
        for number, fault in faults_of(settings.tools, "session.", stages):
            faults["tools", number] = fault
    choice = settings.tool_choice  # "required" may come before the tools, as LiveKit sends it
    if "tool_choice" in patch and isinstance(choice, dict) and (reason := misfit(choice, settings.tools)):
        faults["tool_choice",] = EventError("invalid_value", f"session.tool_choice: {reason}", "session.tool_choice")
    return faults


def requirements(settings: SessionSettings, stages: Stages) -> Iterator[tuple[Path, Callable[[], Any]]]:
    """Yield the fields that name a model, a voice or a language, each with a function that raises if there is none."""
    yield ("model",), lambda: stages.require_model(settings.model)
    yield ("audio", "output", "voice"), lambda: stages.voice(settings.audio.output.voice_id, None)
    if transcription := settings.audio.input.transcription:
        path = ("audio", "input", "transcription")
        if model := transcription.model:
            yield (*path, "model"), lambda: stages.require_transcription(model)
        if language := transcription.language:
            yield (*path, "language"), lambda: stages.language_code(language)


def path_in(patch: dict[str, Any], path: Path) -> Path:
    """Return the beginning of a path that leads to a field of a patch, or to an object in a list, at most."""
    inner: Any = patch
    for length, step in enumerate(path):
        if isinstance(inner, list) and isinstance(step, int) and isinstance(inner[step], dict):
            return path[: length + 1]
        if not (isinstance(inner, dict) and step in inner):
            return path[:length]
        inner = inner[step]
    return path


def remove(patch: dict[str, Any], path: Path) -> None:
    """Remove a field, or a list's element, from a patch."""
    inner: Any = patch
    for step in path[:-1]:
        inner = inner[step]
    del inner[path[-1]]
