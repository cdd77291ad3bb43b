"""The registry: sweeps put checkpoints into it, and the service reads them from it. MLflow, by default with SQLite and
a folder.

Every trial is a run. A trial's checkpoint is a version of a registered model. The served version has the alias
`champion`.
"""

import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from voicechat_platform.checkpoint_files import adapter_folder, read_run
from voicechat_platform.errors import InputError, RegistryError
from voicechat_platform.folders import folder_name, locked, made_once
from voicechat_platform.paths import file_address, path_at, sqlite_address
from voicechat_platform.settings import settings
from voicechat_platform.training.recipe import read_recipe

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
# MLflow's own default is four minutes of attempts, while a person waits.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it logs what it raises

CHAMPION = "champion"

PREVIOUS = "previous"
"""The alias of the previous champion, to which a rollback returns."""

NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""MLflow's codes for an object that does not exist, or whose name is impossible."""


REMEDY = (
    "restore a copy, or move it away: the next command makes a new one, and `voicechat sweep FILE` registers there "
    "what that sweep has finished"
)


class NoSuchVersionError(InputError):
    """The registry has no version of that name and number."""


@contextmanager
def registry_errors() -> Iterator[None]:
    """Wrap every call to the registry.

    Raises:
        RegistryError: instead of the errors of MLflow, its database and the network.
    """
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, RequestException) as error:
        reason = str(error).strip().partition("\n")[0]
        remedy = f": mlflow.db is damaged; {REMEDY}" if "(sqlite3.DatabaseError)" in reason else ""
        raise RegistryError(
            f"the registry {registry_place()} does not answer as it should: {reason}{remedy}"
        ) from error


def registry_place() -> str:
    """Return the address of the registry without a password."""
    uri = settings().registry_uri
    return f"at {urlsplit(uri).hostname or uri}" if uri else f"in {settings().home / 'registry'}"


@dataclass(frozen=True)
class Version:
    """One checkpoint in the registry."""

    name: str
    number: int
    source: str
    """The folder or address where MLflow keeps the files."""
    is_champion: bool
    origin: str
    """The sweep and trial, or the run, that produced it."""
    attention: str
    parameters: int
    nats_per_character: float
    created: int = 0
    """Unix time in seconds of its registration."""
    base: str = ""
    """The model that its adapter (LoRA) was trained on, as the recipe names it; empty if it has no adapter."""

    def __str__(self) -> str:
        return f"{self.name}@{self.number}"

    def facts(self) -> dict[str, Any]:
        return {"version": str(self), **asdict(self)}

    def checkpoint(self) -> Path:
        """Return the checkpoint's folder on this machine; download it once if the registry is a remote one.

        Raises:
            InputError: the files do not exist any more.
            RegistryError: the files cannot be downloaded.
        """
        folder = path_at(self.source)
        if folder is None:
            fetched = settings().folder("registry", "versions")
            return made_once(fetched / folder_name(str(self), [settings().registry_uri, self.source]), self.fetch)
        if not folder.is_dir():
            raise InputError(
                f"the files of {self} are not at {folder} any more; the registry stores absolute paths, so put the "
                "home folder back where it was, or tune again with another VOICECHAT_HOME"
            )
        return folder

    def adapter(self) -> Path | None:
        """Return the folder of the adapter alone, in peft's format; None if there is none. Errors as `checkpoint`."""
        return adapter_folder(self.checkpoint())

    def fetch(self, folder: Path) -> None:
        """Download the checkpoint's files into an empty folder."""
        from mlflow.artifacts import download_artifacts

        with registry_errors():
            uri = settings().registry_uri or None
            fetched = Path(
                download_artifacts(artifact_uri=self.source, dst_path=str(folder / "download"), tracking_uri=uri)
            )
        for path in fetched.iterdir():
            path.rename(folder / path.name)
        shutil.rmtree(folder / "download")


def make_database(path: Path) -> None:
    """Create MLflow's tables, all or none: MLflow cannot use a database whose creation was killed."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    half = path.with_suffix(".half")
    with locked(path):
        if not path.exists():  # another process may have created it meanwhile
            half.unlink(missing_ok=True)
            SqlAlchemyStore(sqlite_address(half), file_address(path.parent / "artifacts")).engine.dispose()
            half.replace(path)


class Registry:
    """A connection to the registry: the MLflow server of the settings, or SQLite in the home folder.

    Raises (all its methods, too):
        RegistryError: the registry does not respond.
    """

    @registry_errors()
    def __init__(self):
        from mlflow import MlflowClient

        uri, self.artifacts = settings().registry_uri, None
        if not uri:
            home = settings().folder("registry")
            uri, self.artifacts = sqlite_address(home / "mlflow.db"), file_address(home / "artifacts")
            database = home / "mlflow.db"
            if not database.exists():
                make_database(database)
            if not database.stat().st_size:  # MLflow would silently treat it as a new one
                raise RegistryError(f"{database} is empty, so it has lost its versions: {REMEDY}")
        self.client = MlflowClient(uri, uri)

    @registry_errors()
    def record(
        self,
        group: str,
        run_name: str,
        parameters: dict[str, Any],
        history: list[dict[str, float]],
        checkpoint: Path,
        status: str = "FINISHED",
    ) -> Version:
        """Record a run permanently. A second call for the same run changes nothing.

        Args:
            group: the name of its sweep; becomes the MLflow experiment.
            run_name: a trial's id, unique in the group among runs of the same parameters: after a loss of its index, a
                sweep may draw another trial of that number.
            parameters: the choices of the trial, flat.
            history: metrics at each evaluation, each with its "step".
            checkpoint: becomes a version of the model that its recipe names.
            status: FINISHED, or KILLED for a run that was stopped early.
        """
        from mlflow.entities import Metric, Param

        chosen = {key: str(value) for key, value in parameters.items()}
        experiment = self.client.get_experiment_by_name(group)
        experiment_id = (
            experiment.experiment_id
            if experiment
            else self.client.create_experiment(group, self.artifacts and f"{self.artifacts}/{quote(group, safe='')}")
        )
        for known in self.client.search_runs([experiment_id], f"tags.run_name = '{run_name}'"):
            if known.data.params and known.data.params != chosen:
                continue
            found = self.client.search_model_versions(f"run_id = '{known.info.run_id}'")
            if found:
                return self.version(found[0].name, int(found[0].version))
            self.client.delete_run(known.info.run_id)  # its recording was interrupted
        run = self.client.create_run(experiment_id, run_name=run_name, tags={"run_name": run_name})
        now = int(time.time() * 1000)
        metrics = [
            Metric(key, float(value), now, int(point["step"]))
            for point in history
            for key, value in point.items()
            if key != "step" and value is not None
        ]
        params = [Param(key, value) for key, value in chosen.items()]
        self.client.log_batch(run.info.run_id, metrics=metrics, params=params)
        version = self.register(run.info.run_id, run.info.artifact_uri, f"{group}/{run_name}", checkpoint)
        self.client.set_terminated(run.info.run_id, status)
        return version

    @registry_errors()
    def register(self, run_id: str, artifact_uri: str, origin: str, checkpoint: Path) -> Version:
        from mlflow.exceptions import MlflowException

        facts, recipe = read_run(checkpoint), read_recipe(checkpoint)
        name = recipe.name
        self.client.log_artifacts(run_id, str(checkpoint), "checkpoint")
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        tags = {
            "origin": origin,
            "attention": recipe.model.attention,
            "parameters": str(facts["parameters"]),
            "nats_per_character": str(facts["metrics"].get("nats_per_character", "nan")),
            "corpus_sha256": facts["corpus"]["sha256"],
            "commit": str(facts["commit"]),
        }
        if adapter_folder(checkpoint):
            tags["base"] = str(recipe.init_from)
        made = self.client.create_model_version(name, f"{artifact_uri}/checkpoint", run_id, tags=tags)
        return self.version(name, int(made.version))

    @registry_errors()
    def version(self, name: str, number: int) -> Version:
        """Return one version.

        Raises:
            NoSuchVersionError: no version has that name and number.
        """
        from mlflow.exceptions import MlflowException

        try:
            found = self.client.get_model_version(name, str(number))
        except MlflowException as error:
            if error.error_code not in NOT_THERE:
                raise
            others = [] if "'" in name else self.client.search_model_versions(f"name = '{name}'", max_results=20)
            known = ", ".join(f"{name}@{each.version}" for each in others)
            hint = known or "none yet of that name; `voicechat models` lists what there is"
            raise NoSuchVersionError(f"there is no model version {name}@{number}; there are: {hint}") from None
        return as_version(found, str(self.client.get_registered_model(name).aliases.get(CHAMPION)))

    @registry_errors()
    def versions(self) -> list[Version]:
        """Return every version of every model, newest first."""
        champions = self._champion_numbers()
        found = self.client.search_model_versions(max_results=10_000)
        versions = [as_version(version, champions.get(version.name)) for version in found]
        return sorted(versions, key=lambda version: (version.name, -version.number))

    @registry_errors()
    def champions(self) -> list[Version]:
        """Return the promoted version of each model that has one."""
        numbers = sorted(self._champion_numbers().items())
        return [as_version(self.client.get_model_version(name, number), number) for name, number in numbers]

    def _champion_numbers(self) -> dict[str, str]:
        """Return the champion's number for each model. search_model_versions omits the aliases, registered models have
        them."""
        models = self.client.search_registered_models(max_results=1000)
        return {model.name: str(model.aliases[CHAMPION]) for model in models if CHAMPION in model.aliases}

    @registry_errors()
    def history(self, version: Version, metrics: Sequence[str]) -> list[dict[str, float]]:
        """Return the evaluations of the run that produced a version, each with its "step" and those of `metrics` that
        it has."""
        run_id = self.client.get_model_version(version.name, str(version.number)).run_id
        evaluations: dict[int, dict[str, float]] = {}
        for name in metrics:
            for point in self.client.get_metric_history(run_id, name):
                evaluations.setdefault(point.step, {"step": point.step})[name] = point.value
        return [evaluations[step] for step in sorted(evaluations)]

    @registry_errors()
    def newest_group(self, sweep: str) -> str | None:
        """Return the newest group of the sweep of that name (NAME-1a2b3c), or None."""
        found = self.client.search_experiments(max_results=1000, order_by=["creation_time DESC"])
        return next(
            (each.name for each in found if re.fullmatch(rf"{re.escape(sweep)}-[0-9a-f]{{6}}", each.name)), None
        )

    @registry_errors()
    def promote(self, version: Version) -> Version:
        """Make this the served version of its model, and remember the version before it for a rollback."""
        aliases = self.client.get_registered_model(version.name).aliases
        before = aliases.get(CHAMPION)
        if before is not None and int(before) != version.number:
            self.client.set_registered_model_alias(version.name, PREVIOUS, str(before))
        elif before is None and aliases.get(PREVIOUS) == str(version.number):
            self.client.delete_registered_model_alias(version.name, PREVIOUS)  # a champion cannot roll back to itself
        self.client.set_registered_model_alias(version.name, CHAMPION, str(version.number))
        return self.version(version.name, version.number)

    @registry_errors()
    def roll_back(self, name: str) -> Version:
        """Make the previous champion the champion again; a second call undoes the first.

        Raises:
            InputError: there is no such model, or it had no earlier champion.
        """
        from mlflow.exceptions import MlflowException

        try:
            aliases = self.client.get_registered_model(name).aliases
        except MlflowException as error:
            if error.error_code not in NOT_THERE:
                raise
            aliases = {}
        if PREVIOUS not in aliases:
            raise InputError(f"{name!r} has no earlier champion to go back to; `voicechat models` lists what there is")
        return self.promote(self.version(name, int(aliases[PREVIOUS])))


def as_version(found: Any, champion: str | None) -> Version:
    """Convert MLflow's object to ours.

    Args:
        champion: the number of its model's champion.
    """
    tags = found.tags
    return Version(
        name=found.name,
        number=int(found.version),
        source=found.source,
        is_champion=champion == str(found.version),
        origin=tags.get("origin", ""),
        attention=tags.get("attention", ""),
        parameters=int(tags.get("parameters", 0)),
        nats_per_character=float(tags.get("nats_per_character", "nan")),
        created=found.creation_timestamp // 1000,
        base=tags.get("base", ""),
    )


def parse_version(text: str) -> tuple[str, int]:
    """Convert "shakespeare@3" to ("shakespeare", 3).

    Raises:
        InputError: the text does not have that form.
    """
    found = re.fullmatch(r"(.+)@([0-9]{1,9})", text)
    if found is None:
        raise InputError(f"{text!r} does not name a version: write NAME@NUMBER, such as shakespeare@3")
    return found[1], int(found[2])
