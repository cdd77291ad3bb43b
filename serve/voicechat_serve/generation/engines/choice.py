"""Select a model's engine, and prepare its files for it."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from voicechat_platform.errors import InputError
from voicechat_platform.folders import folder_name, made_once
from voicechat_platform.settings import settings
from voicechat_serve.generation.chat_tokenizer import ChatTokenizer
from voicechat_serve.generation.engines.interface import Engine
from voicechat_serve.generation.served_model import EngineName, Precision


def make_engine(
    folder: Path, tokenizer: ChatTokenizer, engine: EngineName = "auto", precision: Precision = "auto", threads: int = 1
) -> Engine:
    """Load a model into an engine.

    Args:
        folder: a Hugging Face model directory, or one of CTranslate2's converter (with model.bin).
        tokenizer: the model's tokenizer.
        engine: the engine's name.
        precision: the type in which torch and vLLM compute.
        threads: CPU threads of one step.

    Raises:
        InputError: this engine cannot run this model, or a file of it is missing or damaged.
    """
    is_converted = (folder / "model.bin").exists()
    if engine in ("torch", "vllm") and is_converted:
        raise InputError(f"{folder} is a CTranslate2 model, which the engine {engine} cannot read")
    if engine == "vllm" and not find_spec("vllm"):
        raise InputError(
            "the engine vllm is not installed in the environment of this replica; docs/serving.md says how"
        )
    # Imported here, so that a replica loads only its own engine's library, and the driver none.
    if is_converted or engine == "ctranslate2":
        from voicechat_serve.generation.engines.ctranslate2_engine import CTranslate2Engine

        converted = folder if is_converted else converted_folder(folder)
        try:
            return CTranslate2Engine(converted, tokenizer.tokenizer, tokenizer.end_ids)
        except (RuntimeError, OSError, ValueError, KeyError) as error:  # from CTranslate2, and for its config.json
            raise InputError(f"the CTranslate2 model in {converted} cannot be read: {error!r}") from error

    import torch

    from voicechat_platform.checkpoints import load_config, load_model
    from voicechat_platform.models import GPTForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if precision == "auto":
        precision = "bfloat16" if device == "cuda" else "float32"
    if engine == "vllm":
        from voicechat_serve.generation.engines.vllm_engine import VLLMEngine

        stock = folded_folder(folder)
        context = load_config(stock).get_text_config().max_position_embeddings
        return VLLMEngine(stock, context, tokenizer.decode, tokenizer.end_ids, precision, threads)

    from voicechat_serve.generation.engines.torch_engine import TorchEngine

    torch.set_num_threads(threads)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    model = load_model(folder, torch.float32)
    if not isinstance(model, GPTForCausalLM):  # our own model is rounded after its weights are prepared
        model = model.to(dtype)
    return TorchEngine(model.to(device), tokenizer.decode, tokenizer.end_ids, dtype=dtype)


def converted_folder(folder: Path) -> Path:
    """Return a checkpoint folded into a Llama and converted, once, in a separate folder: the registry's files never
    change.

    Raises:
        InputError: the model has no stock equivalent.
    """
    from voicechat_platform.checkpoints import load_model
    from voicechat_platform.models.ctranslate2_conversion import convert_to_ctranslate2

    stock = folded_folder(folder)

    def make(whole: Path) -> None:
        if stock == folder:
            load_model(folder)  # the converter would unpickle, and does not name missing files
        convert_to_ctranslate2(stock, whole, quantization="int8")

    return prepared("converted", folder, make)


def folded_folder(folder: Path) -> Path:
    """Return our checkpoint folded into a stock model, once; other models' folders are returned as they are.

    Raises:
        InputError: the model has no stock equivalent, or a file of it is missing or damaged.
    """
    from voicechat_platform.checkpoints import load_checkpoint, load_config
    from voicechat_platform.models import GPTConfig
    from voicechat_platform.models.folding import fold

    if not isinstance(load_config(folder), GPTConfig):
        return folder

    def make(whole: Path) -> None:
        model, tokenizer = load_checkpoint(folder)
        fold(model).save_pretrained(whole)
        tokenizer.save_pretrained(whole)

    return prepared("folded", folder, make)


def prepared(kind: str, folder: Path, make: Callable[[Path], None]) -> Path:
    """Return the folder of files derived from a checkpoint, made once, and again when a file of the checkpoint
    changes."""
    folder = folder.resolve()
    files = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
    # The status change time, in addition to the modification time, which copying tools may set to any value.
    identity = [folder, *((name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in files)]
    return made_once(settings().folder(kind) / folder_name(folder.name, identity), make)
