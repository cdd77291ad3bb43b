"""The models of texts to deploy: those that an application file lists, and the champions of the registry."""

from dataclasses import replace
from pathlib import Path

from voicechat_platform.assets import CATALOGUE, EMBEDDING_MODELS, LANGUAGE_MODELS
from voicechat_platform.checkpoint_files import find_adapter
from voicechat_platform.errors import InputError
from voicechat_platform.gguf_file import require_adapter
from voicechat_platform.model_store import find_checkpoint, find_model
from voicechat_platform.paths import given_path
from voicechat_platform.registry import Registry, Version
from voicechat_serve.application_file import APIArguments, ChampionEngines, ModelEntry, Replicas
from voicechat_serve.generation.introduction import (
    Words,
    introduce_adapter,
    introduce_embedding_model,
    introduce_listed,
    introduce_remote,
    introduce_version,
)
from voicechat_serve.generation.served_model import EngineName, Remote, ServedModel


def served_models(arguments: APIArguments) -> list[tuple[ServedModel, Replicas]]:
    """Return the language models to deploy, the registry's champions first.

    Raises:
        InputError: a model's files are not found, or the key of a model elsewhere; or an introduction names no
            champion.
    """
    how = arguments.champions
    if how is None:
        return [*listed_models(arguments)]
    champions = Registry().champions()
    names = [version.name for version in champions]
    for name in how.introductions:
        if name not in names:
            known = ", ".join(names) or "none"
            raise InputError(f"champions.introductions: {name!r} has no champion in the registry; there are: {known}")
    listed = listed_models(arguments)
    alone: list[tuple[ServedModel, Replicas]] = []
    for version in champions:
        champion = served_version(version, how)
        base = next((place for place, listing in enumerate(listed) if can_adapt(*listing, version)), None)
        if base is None:
            alone.append((champion, how))
        else:
            model, entry = listed[base]
            listed[base] = replace(model, adapters=(*model.adapters, replace(champion, base=version.base))), entry
    return [*alone, *listed]


def listed_models(arguments: APIArguments) -> list[tuple[ServedModel, ModelEntry]]:
    """Return the models that the file lists; download those of the hub. Raises the errors of `served_models`."""
    found: list[tuple[ServedModel, ModelEntry]] = []
    # A wrong name in the file is found before a long download begins.
    for entry in sorted(arguments.models, key=lambda entry: entry.source.startswith("hf:")):
        given = entry.sampling.model_dump(exclude_none=True)
        if entry.engine == "openai":
            remote = Remote(url=entry.url, model=entry.model or entry.id, key_env=entry.key_env)
            remote.key()  # before any work starts; the replica reads it again
            far = ServedModel(
                id=entry.id,
                remote=remote,
                sampling=given,
                max_tokens=entry.max_tokens,
                introduction=introduce_remote(entry.id, entry),
            )
            found.append((far, entry))
            continue
        source = entry.source or entry.id
        adapter_paths = {name: adapter_at(place) for name, place in entry.adapters.items()}  # before a long download
        if source in EMBEDDING_MODELS and entry.task != "embeddings":
            raise InputError(
                f"the model {entry.id!r} makes embeddings, and no text: its entry needs `task: embeddings`"
            )
        path = model_path(source, entry.engine)
        is_packaged = source in (*LANGUAGE_MODELS, *EMBEDDING_MODELS)
        if entry.task == "embeddings":
            if not path.is_file():
                raise InputError(f"the model {entry.id!r} has `task: embeddings`, which needs a GGUF file: {path}")
            embedding_model = ServedModel(
                id=entry.id,
                task="embeddings",
                path=path,
                is_packaged=is_packaged,
                options=entry.engine_options(),
                introduction=introduce_embedding_model(entry.id, entry),
            )
            found.append((embedding_model, entry))
            continue
        served = ServedModel(
            id=entry.id,
            path=path,
            options=entry.engine_options(),
            sampling=(CATALOGUE[source].sampling if is_packaged else {}) | given,
            max_tokens=entry.max_tokens,
            introduction=introduce_listed(entry.id, path, is_packaged, entry),
        )
        adapters = [
            replace(served, id=name, path=adapter, introduction=introduce_adapter(name, served.introduction))
            for name, adapter in adapter_paths.items()
        ]
        found.append((replace(served, is_packaged=is_packaged, adapters=tuple(adapters)), entry))
    in_order = [entry.id for entry in arguments.models]
    return sorted(found, key=lambda each: in_order.index(each[0].id))


def can_adapt(model: ServedModel, entry: ModelEntry, champion: Version) -> bool:
    """Return whether the champion is an adapter of this model, a GGUF file, which llama.cpp runs."""
    is_gguf_file = model.path is not None and model.path.is_file()
    return entry.task == "text" and champion.base == (entry.source or entry.id) and is_gguf_file


def adapter_at(place: str) -> Path:
    """Return what a model entry names as an adapter: a GGUF file, a folder of peft's, or a checkpoint with one.

    Raises:
        InputError: there is no adapter.
    """
    path = given_path(place)
    found = path if path.exists() else find_checkpoint(place)
    adapter = find_adapter(found)
    if adapter is None:
        raise InputError(f"{place} holds no adapter: neither adapter_config.json nor a folder `adapter`")
    if adapter.is_file():
        require_adapter(adapter)
    return found


def served_version(version: Version, how: ChampionEngines) -> ServedModel:
    words = how.introductions.get(version.name, Words())
    return ServedModel(
        id=version.name,
        path=version.checkpoint(),
        version=version.number,
        options=how.engine_options(),
        sampling=how.sampling.model_dump(exclude_none=True),
        max_tokens=how.max_tokens,
        words=words,
        introduction=introduce_version(version, words),
    )


def model_path(source: str, engine: EngineName) -> Path:
    """Return the files of a model. A packaged chat model has two forms: one for llama.cpp, one for the other
    engines."""
    is_folder = source in LANGUAGE_MODELS and engine not in ("auto", "llamacpp")
    return find_checkpoint(source) if is_folder else find_model(source)
