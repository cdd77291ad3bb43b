"""How well a run uses its device: model FLOPs, the device's own peak, memory."""

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


@torch.no_grad()
def training_flops(model: nn.Module, context: int) -> float:
    """Floating-point operations that one training token needs (as in arXiv 2204.02311, but counted, not estimated).

    A forward pass's products over one context, attention over all positions, as often as training needs them: once
    forward, once for the gradients of activations, once for those of the weights that learn.
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
    """All but the tables that are looked up: of tokens, and of learned positions."""
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    return model.num_parameters() - sum(table.weight.numel() for table in tables)


def cache_bytes_per_token(config: PreTrainedConfig) -> int:
    """What a decoding cache in float32 keeps of one token, over all layers."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    tensors = 1 if getattr(config, "values", "") == "tied" else 2
    return config.num_hidden_layers * heads * width * tensors * 4


@cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """What this device reaches in large products, in operations a second: measured, so that it is its own.

    Of a device that nobody else loads: what is left beside other runs is no peak.
    """
    size = 1024 if device.type == "cpu" else 8192
    left, right = (torch.full((size, size), 0.5, device=device, dtype=dtype) for _ in range(2))  # draws nothing
    best = float("inf")
    for _ in range(6):
        started = time.perf_counter()
        product = left @ right
        product[0, 0].item()  # waits for a GPU
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def peak_memory(device: torch.device) -> float:
    """MiB: on a GPU of tensors since the start, on a CPU the whole process's resident memory at its highest."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:  # getrusage would count what the process was forked from, too
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**10  # type: ignore[index]
    except (OSError, TypeError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
