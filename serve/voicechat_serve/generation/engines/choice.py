"""Select a model's engine, and prepare its files for it."""

import logging
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from voicechat_platform.errors import InputError
from voicechat_platform.folders import file_identity, folder_name, made_once
from voicechat_platform.settings import settings
from voicechat_serve.generation.chat_tokenizer import ChatTokenizer
from voicechat_serve.generation.engines.interface import Engine
from voicechat_serve.generation.engines.memory import require_memory
from voicechat_serve.generation.served_model import EngineOptions

if TYPE_CHECKING:
    from voicechat_serve.generation.engines.llama_cpp.embedder import LlamaCppEmbedder

log = logging.getLogger("ray.serve.voicechat.choice")

GIB = 2**30


def open_model(path: Path, options: EngineOptions = EngineOptions()) -> tuple[ChatTokenizer, Engine]:
    """Return a model's tokenizer and the engine that runs it.

    Args:
        path: a Hugging Face model directory, or a GGUF file.
        options: the engine, and how to run it.

    Raises:
        InputError: as `make_engine`.
    """
    if path.is_file():
        from voicechat_serve.generation.engines.llama_cpp.trial import require_runnable

        require_runnable(path, layers_on_gpu(path, options))  # before anything of llama.cpp reads it in this process
    tokenizer = ChatTokenizer(path)
    return tokenizer, make_engine(path, tokenizer, options)


def make_engine(path: Path, tokenizer: ChatTokenizer, options: EngineOptions = EngineOptions()) -> Engine:
    """Load a model into an engine; a GGUF file must have passed its trial (`open_model`).

    Args:
        path: a Hugging Face model directory, or a GGUF file.
        tokenizer: the model's tokenizer.
        options: the engine, and how to run it.

    Raises:
        InputError: this engine cannot run this model or on this device, or a file is missing or damaged.
    """
    if path.is_dir() and torch_device(options)[0] == "cpu":
        require_memory(path, bytes_in_memory(path, options))  # before the weights are read, also for another format
    engine = options.engine
    if engine == "auto":
        engine = "llamacpp" if path.is_file() or is_better_in_llama_cpp(path, options) else "torch"
    if path.is_file() and engine != "llamacpp":
        raise InputError(f"{path} is a GGUF file, which the engine {engine} cannot read: use llamacpp, or auto")
    if engine == "vllm" and not find_spec("vllm"):
        raise InputError(
            "the engine vllm is not installed in the environment of this replica; docs/serving.md says how"
        )
    # Imported here, so that a replica loads only its own engine's library, and the driver none.
    if engine == "llamacpp":
        return llama_cpp_engine(path, tokenizer, options)
    return vllm_engine(path, tokenizer, options) if engine == "vllm" else torch_engine(path, tokenizer, options)


def bytes_in_memory(folder: Path, options: EngineOptions) -> int:
    """Return the size of a folder's weights on a CPU, where half precision becomes float32."""
    from voicechat_platform.checkpoints import load_config

    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    is_half = str(load_config(folder).dtype).removeprefix("torch.") in ("float16", "bfloat16")
    return size * 2 if is_half and torch_device(options)[1] == "float32" else size


def is_better_in_llama_cpp(folder: Path, options: EngineOptions) -> bool:
    """Return whether llama.cpp runs the model of a folder, and decodes it faster than PyTorch.

    A Llama on a CPU, such as a fine-tuned SmolLM2, is faster in llama.cpp; this project's small models are not
    (benchmarks/decode.py).
    """
    from voicechat_platform.checkpoints import load_config

    if load_config(folder).model_type != "llama" or torch_device(options)[0] != "cpu":
        return False
    try:
        exported_file(folder)
    except InputError as error:
        log.info("%s runs in PyTorch: %s", folder, error)
        return False
    return True


def llama_cpp_engine(path: Path, tokenizer: ChatTokenizer, options: EngineOptions) -> Engine:
    import torch

    from voicechat_serve.generation.engines.batched_engine import BatchedEngine
    from voicechat_serve.generation.engines.llama_cpp.decoder import LlamaCppDecoder

    if path.is_dir():
        path = exported_file(path)
    torch.set_num_threads(1)  # for sampling: more threads would wait for those of llama.cpp
    decoder = LlamaCppDecoder(
        path,
        context=options.context,
        cache_bytes=int(options.cache_gib * GIB),
        threads=options.threads or usable_cores(),
        gpu_layers=layers_on_gpu(path, options),
    )
    return BatchedEngine(decoder, tokenizer.vocabulary.decode, tokenizer.end_ids, lambda: tokenizer.grammars)


def open_embedder(path: Path, options: EngineOptions) -> "LlamaCppEmbedder":
    """Try a GGUF file, and load it as a model of embeddings. Raises the errors of `open_model`."""
    from voicechat_serve.generation.engines.llama_cpp.embedder import LlamaCppEmbedder
    from voicechat_serve.generation.engines.llama_cpp.trial import require_runnable

    gpu_layers = layers_on_gpu(path, options)
    require_runnable(path, gpu_layers, "embeddings")
    return LlamaCppEmbedder(
        path, context=options.context, threads=options.threads or usable_cores(), gpu_layers=gpu_layers
    )


def layers_on_gpu(path: Path, options: EngineOptions) -> int:
    """Return the layers for llama.cpp's GPU; -1 for all.

    Raises:
        InputError: there is no GPU, and `device` is cuda.
    """
    from voicechat_serve.generation.engines.llama_cpp.library import library

    has_gpu = library().llama_supports_gpu_offload()
    if options.device == "cuda" and not has_gpu:
        raise InputError(
            f"{path}: device is cuda, but this xllamacpp has no GPU: install its CUDA wheel (docs/serving.md), or "
            "use device: cpu"
        )
    return options.gpu_layers if has_gpu and options.device != "cpu" else 0


def torch_engine(folder: Path, tokenizer: ChatTokenizer, options: EngineOptions) -> Engine:
    import torch

    from voicechat_platform.checkpoints import load_model
    from voicechat_platform.models import GPTForCausalLM
    from voicechat_serve.generation.engines.batched_engine import BatchedEngine
    from voicechat_serve.generation.engines.torch_decoder import make_torch_decoder

    device, precision = torch_device(options)
    torch.set_num_threads(options.threads or 1)  # the step of a small model is too short for several
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    model = load_model(folder, torch.float32)
    if not isinstance(model, GPTForCausalLM):  # our own model is rounded after its weights are prepared
        model = model.to(dtype)
    decoder = make_torch_decoder(
        model.to(device), context=options.context, cache_bytes=int(options.cache_gib * GIB), dtype=dtype
    )
    return BatchedEngine(decoder, tokenizer.vocabulary.decode, tokenizer.end_ids, lambda: tokenizer.grammars)


def vllm_engine(folder: Path, tokenizer: ChatTokenizer, options: EngineOptions) -> Engine:
    from voicechat_platform.checkpoints import load_config
    from voicechat_serve.generation.engines.vllm_engine import VLLMEngine

    stock = folded_folder(folder)
    longest = load_config(stock).get_text_config().max_position_embeddings
    return VLLMEngine(
        stock,
        min(longest, options.context or longest),
        tokenizer.vocabulary.decode,
        tokenizer.end_ids,
        torch_device(options)[1],
        options.threads or 1,
    )


def torch_device(options: EngineOptions) -> tuple[str, str]:
    """Return the device and the precision for PyTorch and vLLM.

    Raises:
        InputError: there is no GPU.
    """
    import torch

    has_gpu = torch.cuda.is_available()
    if options.device == "cuda" and not has_gpu:
        raise InputError("device is cuda, but PyTorch finds no GPU in this replica: set num_gpus, or device: cpu")
    device = "cuda" if has_gpu and options.device != "cpu" else "cpu"
    precision = options.precision
    if precision == "auto":
        precision = "bfloat16" if device == "cuda" else "float32"
    return device, precision


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def folded_folder(folder: Path) -> Path:
    """Return our checkpoint folded into a stock model, once; other models' folders are returned as they are.

    Raises:
        InputError: the model has no stock equivalent, or a file of it is missing or damaged.
    """
    from voicechat_platform.checkpoints import load_checkpoint, load_config
    from voicechat_platform.models import GPTConfig
    from voicechat_platform.models.folding import fold, save_folded

    if not isinstance(load_config(folder), GPTConfig):
        return folder

    def make(whole: Path) -> None:
        model, tokenizer = load_checkpoint(folder)
        save_folded(fold(model), tokenizer, whole)

    return prepared("folded", folder, make)


def exported_file(folder: Path) -> Path:
    """Return a checkpoint of ours, or any Llama, as a GGUF file, written once.

    Raises:
        InputError: llama.cpp has no equivalent of the model, or a file of it is missing or damaged.
    """
    from voicechat_platform.checkpoints import load_checkpoint
    from voicechat_platform.models import GPTForCausalLM
    from voicechat_platform.models.folding import fold
    from voicechat_platform.models.gguf_export import write_gguf

    def make(whole: Path) -> None:
        model, tokenizer = load_checkpoint(folder)
        is_ours = isinstance(model, GPTForCausalLM)
        # The rounding of a Llama's weights to half precision is small, and it decodes twice as fast.
        write_gguf(
            fold(model) if is_ours else model,
            tokenizer,
            whole / "model.gguf",
            name=folder.name,
            precision="float32" if is_ours else "float16",
        )

    return prepared("gguf", folder, make) / "model.gguf"


def prepared(kind: str, folder: Path, make: Callable[[Path], None]) -> Path:
    """Return the folder of files derived from a checkpoint, made once, and again when a file of the checkpoint
    changes."""
    folder = folder.resolve()
    identity = [folder, *file_identity(path for path in sorted(folder.iterdir()) if path.is_file())]
    return made_once(settings().folder(kind) / folder_name(folder.name, identity), make)
