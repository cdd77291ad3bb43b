"""A language model's versions in memory: how many there are at once, and what is said when one cannot be had.

The registry is a table of this process; the models are real.
"""

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from voicechat_platform.errors import InputError, RegistryError
from voicechat_platform.registry import NoSuchVersionError
from voicechat_serve.api.errors import api_error
from voicechat_serve.generation import language_model
from voicechat_serve.generation.engines.interface import UnavailableError, UnknownVersionError
from voicechat_serve.generation.language_model import MOST_VERSIONS, LanguageModel
from voicechat_serve.generation.loaded_model import GenerationOptions
from voicechat_serve.generation.served_model import ServedModel
from voicechat_serve.operations.load import OverloadedError

SECRET_PLACE = "/srv/registry/secret"


class Replica(LanguageModel):
    """Counts what is in memory, or on its way there."""

    def load(self, number: int | None, folder: Path):
        self.now = getattr(self, "now", 0) + 1
        self.most = max(getattr(self, "most", 0), self.now)
        model = super().load(number, folder)
        close = model.engine.close

        def close_and_count() -> None:
            close()
            self.now -= 1

        model.engine.close = close_and_count
        return model


@pytest.fixture
async def replica(tiny_model, tmp_path, monkeypatch) -> AsyncIterator[Replica]:
    """One that serves version 1 of 60, of which 51 to 60 are broken each in its way."""
    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    (broken / "model.safetensors").write_text("Ay me!")

    class Registry:
        def version(self, name: str, number: int):
            if number == 51:
                raise RegistryError(f"the registry in {SECRET_PLACE} does not answer")
            if number == 52:
                raise RuntimeError(f"what nobody thought of in {SECRET_PLACE}")
            if not 0 < number <= 60:
                raise NoSuchVersionError(f"there is no model version {name}@{number}")
            return Version(number)

    class Version(SimpleNamespace):
        def __init__(self, number: int):
            super().__init__(number=number)

        def __str__(self) -> str:
            return f"romeo@{self.number}"

        def checkpoint(self) -> Path:
            if self.number == 53:
                raise InputError(f"the files are not at {SECRET_PLACE} any more")
            if self.number == 54:
                raise RegistryError(f"{SECRET_PLACE} cannot be fetched")
            return broken if self.number > 50 else tiny_model

    monkeypatch.setattr(language_model, "Registry", Registry)
    monkeypatch.setattr(language_model, "IDLE_POLL_S", 0.01)
    replica = Replica(ServedModel(id="romeo", path=tiny_model, version=1))
    yield replica
    for model in replica.versions.values():
        model.engine.close()


async def answer(replica: Replica, number: int | None) -> str:
    deltas = [
        delta
        async for delta in replica.complete("ROMEO:\n", GenerationOptions(sampling={"max_tokens": 3}, version=number))
    ]
    return "".join(delta.text for delta in deltas)


async def test_requests_for_fifty_versions_load_no_more_than_are_kept(replica):
    asked = [answer(replica, number) for number in range(1, 51)]
    answers = await asyncio.gather(*asked, answer(replica, None), return_exceptions=True)
    refused = [told for told in answers if not isinstance(told, str)]
    assert {type(told) for told in refused} <= {OverloadedError}
    assert len(answers) - len(refused) >= MOST_VERSIONS
    assert replica.most == MOST_VERSIONS
    assert replica.now == len(replica.versions) <= MOST_VERSIONS
    assert await answer(replica, 50)  # and later there is room for any
    assert replica.most == MOST_VERSIONS


async def test_the_champion_comes_although_all_places_answer(replica):
    for number in (2, 3):
        await replica.version(number)
    models = dict(replica.versions)
    for model in models.values():
        model.users += 1
    with pytest.raises(OverloadedError):
        await replica.version(4)
    coming = asyncio.create_task(replica.version(4, urgent=True))
    while 2 in replica.versions:
        await asyncio.sleep(0)
    assert not coming.done()  # the version that leaves ends what it has begun
    assert replica.now == MOST_VERSIONS
    models[2].users -= 1
    await coming
    assert set(replica.versions) == {1, 3, 4}
    assert replica.most == MOST_VERSIONS


async def test_a_version_that_does_not_exist_drives_none_out(replica):
    for number in (2, 3):
        await replica.version(number)
    with pytest.raises(UnknownVersionError, match="no model version romeo@99"):
        await replica.version(99)
    assert set(replica.versions) == {1, 2, 3}


@pytest.mark.parametrize("number", [51, 52, 53, 54, 55])
async def test_what_the_server_cannot_do_is_503_logged_and_tells_no_path(replica, number, caplog):
    """The registry is away, or fails; the files are gone, cannot be fetched, or are damaged."""
    with caplog.at_level(logging.ERROR), pytest.raises(UnavailableError) as told:
        await answer(replica, number)
    assert any(record.exc_info for record in caplog.records)
    refusal = api_error(told.value)
    assert (refusal.status_code, refusal.code) == (503, "unavailable")
    assert "/" not in refusal.detail
    assert set(replica.versions) == {1}
    assert await answer(replica, None)


@pytest.mark.parametrize(("number", "error"), [(51, UnavailableError), (99, UnknownVersionError)])
async def test_a_look_at_a_version_says_the_same(replica, number, error):
    with pytest.raises(error) as told:
        await replica.introduce(number)
    assert SECRET_PLACE not in str(told.value)
    assert api_error(told.value).status_code == (404 if error is UnknownVersionError else 503)
