"""The use of the device by a run: model FLOPs, the device's peak rate, memory."""

import re
import resource
import sys
import time
from functools import cache
from pathlib import Path

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig, PreTrainedModel

from voicechat_platform.models import GPTConfig
from voicechat_platform.models.attention import ATTENTION_CLASSES


@torch.no_grad()
def training_flops(model: nn.Module, context: int) -> float:
    """Return the floating-point operations per training token (as in arXiv 2204.02311, but counted, not estimated).

    This counts the products of a forward pass over one context, with attention over all positions, as often as training
    needs them: once forward, once for the gradients of activations, once for those of the trainable weights.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(input_ids=torch.zeros(1, context, dtype=torch.long, device=device), use_cache=False)
    model.train(was_training)
    weights = list(model.parameters())
    learning = sum(weight.numel() for weight in weights if weight.requires_grad)
    passes = 2 + learning / sum(weight.numel() for weight in weights)
    return passes * counter.get_total_flops() / context


def non_embedding_parameters(model: PreTrainedModel) -> int:
    """Return the number of parameters without the lookup tables of tokens and of learned positions."""
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    return model.num_parameters() - sum(table.weight.numel() for table in tables)


def cache_bytes_per_token(config: PreTrainedConfig, dtype: torch.dtype = torch.float32) -> int:
    """Return the bytes per token of a decoding cache, over all layers."""
    if isinstance(config, GPTConfig):
        shapes = ATTENTION_CLASSES[config.attention].cached_shapes(config)
    else:
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shapes = [(heads, width)] * 2  # keys and values
    return config.num_hidden_layers * sum(heads * width for heads, width in shapes) * dtype.itemsize


@cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the rate of this device in large products, in operations per second.

    No other run may load the device during the measurement.
    """
    size = 1024 if device.type == "cpu" else 8192
    # Constant matrices: they draw no random numbers.
    left, right = (torch.full((size, size), 0.5, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        started = time.perf_counter()
        product = left @ right
        product[0, 0].item()  # waits for a GPU
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def peak_memory(device: torch.device) -> float:
    """Return MiB: on a GPU the peak of tensors since the start, on a CPU the peak resident memory of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:  # getrusage would also count the memory of the parent process before the fork
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**10  # type: ignore[index]
    except (OSError, TypeError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
