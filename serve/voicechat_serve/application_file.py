"""The application file: the deployments, the number of their replicas, and the machines for them.

The format is Ray Serve's own; on a cluster, `serve deploy FILE` reads it. This module describes the `args` of the two
applications. `voicechat serve` and `voicechat up` read serve/applications/local.yaml.
"""

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from voicechat_platform.errors import InputError
from voicechat_platform.hub_address import parse_address
from voicechat_platform.paths import api_address
from voicechat_platform.strict_yaml import PathText, Strict, compose_yaml, line_of, validate
from voicechat_serve.aliases import require_form
from voicechat_serve.generation.introduction import (
    Words,
)
from voicechat_serve.generation.served_model import (
    MAX_TOKENS,
    Device,
    EngineName,
    EngineOptions,
    Precision,
    Task,
)
from voicechat_serve.names import API, FRONT
from voicechat_serve.operations.devices import ComputeType
from voicechat_serve.transcription.whisper_files import check_name

if TYPE_CHECKING:
    from voicechat_serve.serve_schema import ServeFile

HEALTH_CHECK_S = 2.0
"""The time between two checks of a replica. Serve replaces a replica after three failed checks; /ready must show it by
then."""


class Replicas(Strict):
    """The number of replicas of a deployment, and the resources of each."""

    num_cpus: float = Field(default=0.1, ge=0)
    """CPU cores to reserve; Ray uses them only to count how many replicas fit on a machine."""
    num_gpus: float = Field(default=0, ge=0)
    """GPUs to reserve; 0.25 lets four replicas share one."""
    min_replicas: int = Field(default=1, ge=0)
    """0: there is no replica while there are no requests; the next request waits until one is loaded."""
    max_replicas: int = Field(default=1, ge=1)
    target_ongoing_requests: float = Field(default=16, gt=0)
    """Concurrent requests per replica; above this number Serve adds a replica."""
    upscale_delay_s: float = Field(default=10, ge=0)
    downscale_delay_s: float = Field(default=300, ge=0)
    max_ongoing_requests: int = Field(default=256, ge=1)
    """Concurrent requests in one replica."""
    max_queued_requests: int = Field(default=256, ge=1)
    """Requests that wait for a replica, in each calling process; further requests receive 503."""

    @model_validator(mode="after")
    def are_in_order(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is more than max_replicas {self.max_replicas}")
        return self

    def options(self) -> dict[str, Any]:
        """Return the options for `serve.deployment`."""
        options: dict[str, Any] = {
            "ray_actor_options": {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus},
            "max_ongoing_requests": self.max_ongoing_requests,
            "max_queued_requests": self.max_queued_requests,
            "health_check_period_s": HEALTH_CHECK_S,
            # An idle replica stops at once; a busy one may finish its requests.
            "graceful_shutdown_wait_loop_s": 0.1,
            "graceful_shutdown_timeout_s": 20,
        }
        if self.min_replicas == self.max_replicas:
            return options | {"num_replicas": self.min_replicas}
        return options | {
            "autoscaling_config": {
                "min_replicas": self.min_replicas,
                "max_replicas": self.max_replicas,
                "target_ongoing_requests": self.target_ongoing_requests,
                "upscale_delay_s": self.upscale_delay_s,
                "downscale_delay_s": self.downscale_delay_s,
            }
        }


class SamplingDefaults(Strict):
    """Defaults for the sampling fields of requests."""

    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=10)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)


class Engines(Replicas):
    """How to run a language model."""

    num_cpus: float = Field(default=0.2, ge=0)
    engine: EngineName = "auto"
    """llamacpp (GGUF files, and checkpoints that can be folded), torch, vllm (a separate installation), auto: the
    engine that suits the files, or openai: the model of another server with OpenAI's API (only under `models`)."""
    precision: Precision = "auto"
    """For torch and vllm: float32, bfloat16, or auto: bfloat16 on a GPU."""
    device: Device = "auto"
    """cpu, cuda, or auto: a GPU if the engine finds one."""
    threads: int = Field(default=0, ge=0)
    """CPU threads of one decode step; 0: all cores for llamacpp, one for torch."""
    gpu_layers: int = Field(default=-1, ge=-1)
    """Layers of a GGUF file on the GPU, if there is one; -1: all."""
    context: int | None = Field(default=None, ge=16)
    """The most tokens of a prompt and its answer; null: the model's own, 4,096 at most."""
    cache_gib: float = Field(default=1.0, gt=0, le=1024)
    """Memory for the cache in each replica; it decides how many requests decode together, 32 at most."""
    max_tokens: int = Field(default=MAX_TOKENS, ge=1)
    """The most tokens of an answer in a chat whose request sets no limit."""
    sampling: SamplingDefaults = SamplingDefaults()
    """Fields that apply if a request does not set them."""

    def engine_options(self) -> EngineOptions:
        return EngineOptions(**{field.name: getattr(self, field.name) for field in fields(EngineOptions)})


class ChampionEngines(Engines):
    """How to run the champions, and what to say of them."""

    introductions: dict[str, Words] = Field(default_factory=dict)
    """By the model's name in the registry."""


def address_without_password(given: str) -> str:
    if "@" in given:  # not quoted: a message may end in a log
        raise ValueError("a URL with an @ would show a password: put the key into the environment, see `key_env`")
    return given and api_address(given)


def name_of_a_variable(given: str) -> str:
    if given and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", given):  # not quoted: it may be a key
        raise ValueError("write the NAME of an environment variable, such as UPSTREAM_KEY, and never the key itself")
    return given


OtherServer = Annotated[str, AfterValidator(address_without_password)]
KeyVariable = Annotated[str, AfterValidator(name_of_a_variable)]


class ModelEntry(Words, Engines):
    """A language model with its own name in the API."""

    id: PathText = Field(max_length=200)
    """The name in requests, without an @, because NAME@NUMBER means a version of a champion's model."""
    task: Task = "text"
    """text, or embeddings: the model, a GGUF file, makes vectors of texts at /v1/embeddings, and no text."""
    source: str = ""
    """A GGUF file, a folder, NAME@NUMBER, the name of an added or a packaged model, or an address of the Hugging Face
    hub: hf:OWNER/REPO[@REVISION][:FILE or QUANTISATION]; by default `id`."""
    url: OtherServer = ""
    """For the engine openai: the base URL of the server, such as http://127.0.0.1:11434/v1."""
    model: str = Field(default="", max_length=200)
    """For the engine openai: the model's name there; by default `id`."""
    key_env: KeyVariable = ""
    """For the engine openai: the NAME of the environment variable that holds the key for that server, never the key."""
    adapters: dict[PathText, str] = Field(default_factory=dict)
    """Fine-tunes of this model (LoRA) that share its memory: the name of each in requests, and where its adapter is: a
    GGUF file, a folder of peft's, or NAME@NUMBER of the registry."""

    @field_validator("id")
    @classmethod
    def names_no_version(cls, given: str) -> str:
        if "@" in given:
            raise ValueError(f"{given!r} has an @: choose another id, and put the model to serve under `source`")
        return given

    @field_validator("adapters")
    @classmethod
    def name_no_version(cls, given: dict[str, str]) -> dict[str, str]:
        if named := [name for name in given if "@" in name]:
            raise ValueError(f"{named[0]!r} has an @: choose another name, and put NAME@NUMBER behind it")
        return given

    @field_validator("source")
    @classmethod
    def is_written_right(cls, given: str) -> str:
        parse_address(given)
        return given

    @model_validator(mode="after")
    def is_here_or_elsewhere(self) -> Self:
        given = self.model_fields_set
        if self.task == "embeddings":
            if self.engine not in ("auto", "llamacpp"):
                raise ValueError(f"`task: embeddings` runs on the engine llamacpp, not on {self.engine}")
            if wrong := sorted(given & TEXT_ONLY):
                raise ValueError(f"a model with `task: embeddings` has no `{wrong[0]}`: it makes no text")
        if self.engine == "openai":
            if not self.url:
                raise ValueError(
                    "the engine openai needs `url`, the base URL of a server such as http://127.0.0.1:11434/v1"
                )
            if wrong := sorted(given & HERE_ONLY):
                raise ValueError(f"the engine openai has no `{wrong[0]}`: the other server decides it")
        elif wrong := sorted(given & {"url", "model", "key_env"}):
            raise ValueError(f"`{wrong[0]}` needs `engine: openai`")
        return self


HERE_ONLY = {"source", "adapters", *(field.name for field in fields(EngineOptions))} - {"engine"}
"""Fields that say how a model runs on this machine."""


TEXT_ONLY = {"adapters", "cache_gib", "max_tokens", "precision", "sampling", "system_prompt"}
"""Fields of a model that makes text."""


class Transcribers(Replicas):
    """How to run Whisper."""

    device: Device = "auto"
    """cpu, cuda, or auto: a GPU if the replica sees one that works."""
    compute_type: ComputeType = "auto"
    """The numbers to compute with, one of CTranslate2's types; auto: float16 on a GPU, int8 on a CPU."""


class Synthesizers(Replicas):
    """How to run the voices."""

    device: Device = "auto"
    """For Piper's and Kokoro's voices: cpu, cuda, or auto: a GPU if onnxruntime has a provider for it. hibari's voice
    runs on a CPU, always."""


class ToolServer(Strict):
    """A server of tools (MCP) that conversations may use: this service calls them."""

    label: Annotated[str, Field(pattern=r"^[a-zA-Z][a-zA-Z0-9_-]{0,63}$")]
    """Its name in sessions and messages; clients cannot name an address."""
    url: OtherServer
    """The server's address (streamable HTTP), such as http://127.0.0.1:8765/mcp."""
    allow: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | Literal["*"]
    """The names of the tools that may be called, or "*" for all that the server lists."""
    key_env: KeyVariable = ""
    """The NAME of the environment variable that holds the key for that server, never the key."""
    timeout_s: float = Field(default=5, gt=0, le=60)
    """The longest time for a call; the connection and the list have as much."""
    tool_choice: Literal["auto", "required"] = "auto"
    """required: the model must begin each answer with one call; for small models, which do not choose a tool."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names in `allow`."""
        return () if self.allow == "*" else self.allow

    def allows(self, name: str) -> bool:
        return self.allow == "*" or name in self.allow


class APIArguments(Strict):
    """`args` of the application `api`."""

    champions: ChampionEngines | None = ChampionEngines()
    """How to run the champions of the registry, each under its model's name; null for none. A champion with an
    adapter of a model in `models` that is a GGUF file is served by that model's replicas."""
    models: Annotated[tuple[ModelEntry, ...], Field(strict=False)] = ()
    """Additional language models."""
    aliases: dict[PathText, PathText] = Field(default_factory=dict)
    """Other names for models in requests, such as gpt-4o-mini -> smollm2-135m-instruct. A * at the end of a name stands
    for any rest. Names of OpenAI's audio models need no entry."""
    whisper: PathText = "base"
    """The transcription model: a size of Whisper (tiny, base.en, large-v3, turbo, …), a folder with a CTranslate2
    Whisper, or OWNER/NAME of the Hugging Face hub. Only base and tiny.en are packaged."""
    transcription: Transcribers = Transcribers(num_cpus=0.3, max_ongoing_requests=16, max_queued_requests=32)
    """Sounds take turns after each window of 30 s, so that a conversation need not wait for the end of a lecture."""
    synthesis: Synthesizers = Synthesizers(max_ongoing_requests=8, max_queued_requests=32)
    ingress: Replicas = Replicas(max_ongoing_requests=512, max_queued_requests=512)
    """The HTTP API. Each of its replicas counts the limits of keys by itself."""
    realtime_sessions: int = Field(default=16, ge=1)
    """The most concurrent spoken conversations in each replica of the ingress."""
    tools: Annotated[tuple[ToolServer, ...], Field(strict=False)] = ()
    """Servers whose tools spoken conversations may call. Nothing is called that is not listed here."""

    @field_validator("champions")
    @classmethod
    def run_here(cls, champions: Engines | None) -> Engines | None:
        if champions and champions.engine == "openai":
            raise ValueError("champions are models of the registry, which the engine openai cannot read")
        return champions

    @field_validator("whisper")
    @classmethod
    def may_be_a_whisper(cls, given: str) -> str:
        return check_name(given)

    @field_validator("aliases")
    @classmethod
    def have_the_form_of_names(cls, aliases: dict[str, str]) -> dict[str, str]:
        for alias in aliases:
            require_form(alias)
        return aliases

    @field_validator("models")
    @classmethod
    def have_names_of_their_own(cls, models: tuple[ModelEntry, ...]) -> tuple[ModelEntry, ...]:
        ids = [name for model in models for name in (model.id, *model.adapters)]
        if twice := sorted({name for name in ids if ids.count(name) > 1}):
            raise ValueError(f"two models have the id {twice[0]!r}")
        return models

    @field_validator("tools")
    @classmethod
    def have_labels_of_their_own(cls, tools: tuple[ToolServer, ...]) -> tuple[ToolServer, ...]:
        labels = [server.label for server in tools]
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"two servers of tools have the label {twice[0]!r}")
        return tools


class FrontArguments(Strict):
    """`args` of the application `front`."""

    page: str = ""
    """The function that mounts the page, as module:function; empty for no page."""
    api: str = "http://127.0.0.1:8000/v1"
    """The address of the API for the page's process. VOICECHAT_API_KEY is its key there."""

    @field_validator("api")
    @classmethod
    def is_an_address(cls, given: str) -> str:
        return api_address(given)


ARGUMENTS: dict[str, type[Strict]] = {API: APIArguments, FRONT: FrontArguments}


@dataclass(frozen=True)
class ApplicationFile:
    """An application file that passed Serve's own schema and ours."""

    serve: "ServeFile"
    api: APIArguments


def local_application() -> Path:
    """The packaged file that `voicechat serve` deploys."""
    package = Path(__file__).parent
    installed = package / "applications" / "local.yaml"
    return installed if installed.exists() else package.parent / "applications" / "local.yaml"


def read_application(path: Path) -> ApplicationFile:
    """Read and validate an application file.

    Raises:
        InputError: there is no such file, Serve does not accept it, or `args` have unknown or impossible fields.
    """
    values, root = compose_yaml(path)
    from voicechat_serve.serve_schema import ServeFile  # it imports Ray; a misspelt path gives its error before that

    file = validate(values, ServeFile, str(path), root)
    names = [application.name for application in file.applications]
    if API not in names:
        raise InputError(f"{path}: there is no application named {API}; it has {', '.join(names) or 'none'}")
    found: dict[str, Strict] = {}
    for number, (name, application) in enumerate(zip(names, file.applications, strict=True)):
        if application.deployments:
            line = line_of(root, ["applications", number, "deployments"])
            raise InputError(f"{path}:{line}: {name}: set the resources of deployments in `args`, not in `deployments`")
        if name in ARGUMENTS:
            place = ("applications", number, "args")
            found[name] = validate(application.args, ARGUMENTS[name], str(path), root, place)
    arguments = found[API]
    assert isinstance(arguments, APIArguments)
    return ApplicationFile(serve=file, api=arguments)
