"""Which engine a model gets, and how its files are made ready for it."""

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
    """Loads a model into an engine.

    Args:
        folder: a Hugging Face model directory, or one that CTranslate2's converter wrote (with model.bin).
        tokenizer: the model's.
        engine: which one.
        precision: what torch and vLLM compute in.
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
    # Imported here, so that a replica loads its own engine's library only, and the driver none.
    if is_converted or engine == "ctranslate2":
        from voicechat_serve.generation.engines.ctranslate2_engine import CTranslate2Engine

        converted = folder if is_converted else converted_folder(folder)
        try:
            return CTranslate2Engine(converted, tokenizer.tokenizer, tokenizer.end_ids)
        except (RuntimeError, OSError, ValueError, KeyError) as error:  # CTranslate2's, and of its config.json
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
    if not isinstance(model, GPTForCausalLM):  # one of ours is rounded after its weights are laid out
        model = model.to(dtype)
    return TorchEngine(model.to(device), tokenizer.decode, tokenizer.end_ids, dtype=dtype)


def converted_folder(folder: Path) -> Path:
    """A checkpoint folded into a Llama and converted, once; beside it, where the registry's files are never touched.

    Raises:
        InputError: the model has no stock equivalent.
    """
    from voicechat_platform.checkpoints import load_model
    from voicechat_platform.models.ctranslate2_conversion import convert_to_ctranslate2

    stock = folded_folder(folder)

    def make(whole: Path) -> None:
        if stock == folder:
            load_model(folder)  # the converter would unpickle, and does not say what is missing
        convert_to_ctranslate2(stock, whole, quantization="int8")

    return prepared("converted", folder, make)


def folded_folder(folder: Path) -> Path:
    """A checkpoint of ours folded into a stock model, once; the folder itself where it is no model of ours.

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
    """What is made from a checkpoint, once; and anew when a file of the checkpoint is another one."""
    folder = folder.resolve()
    files = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
    # The time of a change besides the one of the contents, which copying tools set as they like.
    identity = [folder, *((name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in files)]
    return made_once(settings().folder(kind) / folder_name(folder.name, identity), make)
