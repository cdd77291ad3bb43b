"""Convert an adapter (LoRA) of a Llama from peft's folder to a GGUF file, which llama.cpp adds to the base at run time.

Letters: r rank, i inputs and o outputs of a linear layer.
"""

import re
from pathlib import Path

import numpy as np
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFType, GGUFWriter, Keys, get_tensor_name_map
from safetensors import SafetensorError
from safetensors.torch import load_file

from voicechat_platform.errors import InputError
from voicechat_platform.json_file import read_object
from voicechat_platform.models.gguf_export import interleaved, write_file

TENSOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
BLOCK = re.compile(r"\.layers\.(\d+)\.")

CONVERTIBLE = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "lora_dropout", "init_lora_weights"),
    *("r", "lora_alpha", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("megatron_core", "qalora_group_size"),  # never empty, and without effect on a plain adapter
}
"""The fields of adapter_config.json that a plain adapter may set; any other one means weights of another form."""

PLAIN_STARTS = (True, False, "gaussian")
"""Values of `init_lora_weights` with which the training leaves the base unchanged."""


def write_gguf_adapter(folder: Path, heads: int, kv_heads: int, path: Path) -> None:
    """Write the adapter in `folder` as the GGUF file `path`.

    Args:
        folder: adapter_config.json and adapter_model.safetensors, as peft writes them.
        heads: the base's number of attention heads.
        kv_heads: its number of heads for keys and values.

    Raises:
        InputError: the folder holds no adapter, a damaged one, or one of a form that llama.cpp does not know.
    """
    alpha = read_alpha(folder)
    weights = read_weights(folder)
    blocks = 1 + max((int(found[1]) for name, _ in weights if (found := BLOCK.search(name))), default=0)
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, blocks)
    writer = GGUFWriter(path, MODEL_ARCH_NAMES[MODEL_ARCH.LLAMA])
    writer.add_type(GGUFType.ADAPTER)
    writer.add_string(Keys.Adapter.TYPE, "lora")
    writer.add_float32(Keys.Adapter.LORA_ALPHA, alpha)
    for (name, part), weight in weights.items():
        ggml_name = names.get_name(name)
        if ggml_name is None:
            raise InputError(f"{folder}: {name} is no part of a Llama, so this adapter cannot be used for one")
        if part == "B" and name.endswith((".q_proj", ".k_proj")):
            num_heads = heads if name.endswith(".q_proj") else kv_heads
            if len(weight) % (2 * num_heads):
                raise InputError(
                    f"{folder}: {name} has {len(weight)} outputs, which {num_heads} heads of the base cannot share"
                )
            weight = interleaved(weight, len(weight) // num_heads)
        writer.add_tensor(f"{ggml_name}.weight.lora_{part.lower()}", np.ascontiguousarray(weight))
    write_file(writer)


def read_alpha(folder: Path) -> float:
    """Return `lora_alpha`; llama.cpp divides it by the rank, as peft does."""
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise InputError(f"{folder} holds no adapter: it has no adapter_config.json")
    config = read_object(path)
    if config.get("peft_type") != "LORA":
        raise InputError(f"{path}: only adapters of peft_type LORA can be served, not {config.get('peft_type')!r}")
    others = [name for name, value in config.items() if name not in CONVERTIBLE and value and value != "none"]
    if config.get("init_lora_weights", True) not in PLAIN_STARTS:
        others.append("init_lora_weights")
    if others:
        raise InputError(
            f"{path}: an adapter with {others[0]}: {config[others[0]]!r} cannot be added to a running model; "
            "merge it into the base (merge_and_unload of peft) and serve the result"
        )
    alpha = config.get("lora_alpha")
    if not isinstance(alpha, int | float) or alpha <= 0:
        raise InputError(f"{path} is damaged: lora_alpha must be a number above 0")
    return float(alpha)


def read_weights(folder: Path) -> dict[tuple[str, str], np.ndarray]:
    """Return the matrices A (r, i) and B (o, r) in float32 by the name of their layer and the letter."""
    path = folder / "adapter_model.safetensors"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is missing or damaged: {error}") from error
    weights = {}
    for name, weight in tensors.items():
        found = TENSOR.fullmatch(name)
        if found is None or weight.ndim != 2:
            raise InputError(
                f"{path}: {name} is no matrix of a linear layer's adapter, which is all that can be served"
            )
        weights[found[1], found[2]] = weight.float().numpy()
    layers = {name for name, _ in weights}
    for layer in layers:
        a, b = weights.get((layer, "A")), weights.get((layer, "B"))
        if a is None or b is None or a.shape[0] != b.shape[1]:
            raise InputError(f"{path} is damaged: the matrices A and B of {layer} do not fit together")
    if not layers:
        raise InputError(f"{path} holds no weights")
    return weights
