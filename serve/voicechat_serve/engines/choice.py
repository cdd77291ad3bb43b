"""Which engine a model gets, and how its files are made ready for it."""

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from voicechat_platform.assets import appearing_whole
from voicechat_platform.errors import InputError
from voicechat_serve.chat_tokenizer import ChatTokenizer
from voicechat_serve.engines.interface import Engine

EngineName = Literal["auto", "torch", "ctranslate2", "vllm"]
"""auto: CTranslate2 for a folder that its converter wrote, torch for every other."""

Precision = Literal["auto", "float32", "bfloat16"]
"""auto: bfloat16 on a GPU, float32 on a CPU. Of torch and vllm; CTranslate2 computes in int8 on a CPU."""


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
        InputError: this engine cannot run this model.
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
        from voicechat_serve.engines.ctranslate2_engine import CTranslate2Engine

        converted = folder if is_converted else converted_folder(folder)
        return CTranslate2Engine(converted, tokenizer.tokenizer, tokenizer.end_ids)

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from voicechat_platform.models import GPTForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if engine == "vllm":
        from voicechat_serve.engines.vllm_engine import VLLMEngine

        stock = folded_folder(folder)
        context = AutoConfig.from_pretrained(stock).get_text_config().max_position_embeddings
        chosen = precision if precision != "auto" else "bfloat16" if device == "cuda" else "float32"
        return VLLMEngine(stock, context, tokenizer.decode, tokenizer.end_ids, chosen, threads)

    from voicechat_serve.engines.torch_engine import TorchEngine

    torch.set_num_threads(threads)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(
        precision, torch.bfloat16 if device == "cuda" else torch.float32
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if not isinstance(model, GPTForCausalLM):  # one of ours is rounded after its weights are laid out
        model = model.to(dtype)
    return TorchEngine(model.to(device), tokenizer.decode, tokenizer.end_ids, dtype=dtype)


def converted_folder(folder: Path) -> Path:
    """A checkpoint folded into a Llama and converted, once; beside it, where the registry's files are never touched.

    Raises:
        InputError: the model has no stock equivalent.
    """
    from voicechat_platform.models.ctranslate2_conversion import convert_to_ctranslate2
    from voicechat_platform.settings import settings

    target = settings().folder("converted") / prepared_name(folder)
    if not (target / "model.bin").exists():
        convert_to_ctranslate2(folded_folder(folder), target, quantization="int8")
    return target


def folded_folder(folder: Path) -> Path:
    """A checkpoint of ours folded into a stock model, once; the folder itself where it is no model of ours.

    Raises:
        InputError: the model has no stock equivalent.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from voicechat_platform.models import GPTConfig
    from voicechat_platform.models.folding import fold
    from voicechat_platform.settings import settings

    if not isinstance(AutoConfig.from_pretrained(folder), GPTConfig):
        return folder
    target = settings().folder("folded") / prepared_name(folder)
    if not target.exists():
        with appearing_whole(target) as whole:
            fold(AutoModelForCausalLM.from_pretrained(folder)).save_pretrained(whole)
            AutoTokenizer.from_pretrained(folder).save_pretrained(whole)
    return target


def prepared_name(folder: Path) -> str:
    """Of what is made from a checkpoint; another one when the checkpoint is written anew."""
    written = max(file.stat().st_mtime_ns for file in folder.glob("*.safetensors"))
    return "-".join([*folder.parts[-3:], f"{written:x}"])
