"""Which engine a model gets, and how its files are made ready for it."""

from pathlib import Path
from typing import Literal

from voicechat_platform.errors import InputError
from voicechat_serve.chat_tokenizer import ChatTokenizer
from voicechat_serve.engines.interface import Engine

EngineName = Literal["auto", "torch", "ctranslate2"]
"""auto: CTranslate2 for a folder that its converter wrote, torch for every other."""

Precision = Literal["auto", "float32", "bfloat16"]
"""auto: bfloat16 on a GPU, float32 on a CPU. Of the torch engine; CTranslate2 computes in int8 on a CPU."""


def make_engine(
    folder: Path, tokenizer: ChatTokenizer, engine: EngineName = "auto", precision: Precision = "auto", threads: int = 1
) -> Engine:
    """Loads a model into an engine.

    Args:
        folder: a Hugging Face model directory, or one that CTranslate2's converter wrote (with model.bin).
        tokenizer: the model's.
        engine: which one.
        precision: what the torch engine computes in.
        threads: CPU threads of one step.

    Raises:
        InputError: this engine cannot run this model.
    """
    is_converted = (folder / "model.bin").exists()
    if engine == "torch" and is_converted:
        raise InputError(f"{folder} is a CTranslate2 model, which the torch engine cannot read")
    # Imported here, so that a replica loads its own engine's library only, and the driver none.
    if is_converted or engine == "ctranslate2":
        from voicechat_serve.engines.ctranslate2_engine import CTranslate2Engine

        converted = folder if is_converted else converted_folder(folder)
        return CTranslate2Engine(converted, tokenizer.tokenizer, tokenizer.end_ids)

    import torch
    from transformers import AutoModelForCausalLM

    from voicechat_platform.models import GPTForCausalLM
    from voicechat_serve.engines.torch_engine import TorchEngine

    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
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
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from voicechat_platform.models import GPTForCausalLM
    from voicechat_platform.models.ctranslate2_conversion import convert_to_ctranslate2
    from voicechat_platform.models.folding import fold
    from voicechat_platform.settings import settings

    target = settings().folder("converted") / "-".join(folder.parts[-3:])
    if (target / "model.bin").exists():
        return target
    source = folder
    model = AutoModelForCausalLM.from_pretrained(folder)
    if isinstance(model, GPTForCausalLM):
        source = settings().folder("folded") / target.name
        fold(model).save_pretrained(source)
        AutoTokenizer.from_pretrained(folder).save_pretrained(source)
    convert_to_ctranslate2(source, target, quantization="int8")
    return target
