"""llama.cpp's C interface (its include/llama.h), as the wheel xllamacpp exports it.

The wheel contains llama.cpp's own server, too. We call the functions below it instead, because a server decides about
batches, sampling and scores by itself; here the engine of all models does (engines/batched_engine.py). So a seed,
a penalty or a score means the same for every engine.

A structure's layout belongs to one release of llama.cpp, so pyproject.toml pins the wheel, and `library` checks the
layouts by their default values before anything uses them.
"""

import ctypes
import functools
import logging
import os
from collections import deque
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int, c_int8, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

log = logging.getLogger("ray.serve.voicechat.llama_cpp")

ROOM = 256
"""Bytes after a structure that is passed by value, for fields that we do not know."""

last_words: deque[str] = deque(maxlen=3)
"""llama.cpp's last errors: its functions return only that they failed."""

LEVELS = {3: logging.WARNING, 4: logging.ERROR}
"""llama.cpp's log levels that we pass on, as Python's."""


class ModelParams(ctypes.Structure):
    """`llama_model_params`"""

    _fields_ = (
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int),
        ("load_mode", c_int),
        ("lazy_mode", c_int),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", c_void_p),
        ("vocab_only", c_bool),
        ("check_tensors", c_bool),
        ("use_extra_bufts", c_bool),
        ("no_host", c_bool),
        ("no_alloc", c_bool),
        ("load_mtp", c_bool),
        ("room", c_int8 * ROOM),
    )


class ContextParams(ctypes.Structure):
    """`llama_context_params`"""

    _fields_ = (
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32),
        ("n_outputs_max", c_uint32),
        ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("ctx_type", c_int),
        ("rope_scaling_type", c_int),
        ("pooling_type", c_int),
        ("attention_type", c_int),
        ("flash_attn_type", c_int),
        ("rope_freq_base", c_float),
        ("rope_freq_scale", c_float),
        ("yarn_ext_factor", c_float),
        ("yarn_attn_factor", c_float),
        ("yarn_beta_fast", c_float),
        ("yarn_beta_slow", c_float),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("type_k", c_int),
        ("type_v", c_int),
        ("callbacks", c_void_p * 3),
        ("embeddings", c_bool),
        ("offload_kqv", c_bool),
        ("no_perf", c_bool),
        ("op_offload", c_bool),
        ("swa_full", c_bool),
        ("kv_unified", c_bool),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("ctx_other", c_void_p),
        ("room", c_int8 * ROOM),
    )


class Batch(ctypes.Structure):
    """`llama_batch`: all pointers have `n_tokens` entries."""

    _fields_ = (
        ("n_tokens", c_int32),
        ("token", c_void_p),
        ("embd", c_void_p),
        ("pos", c_void_p),
        ("n_seq_id", c_void_p),
        ("seq_id", c_void_p),
        ("logits", c_void_p),
    )


LogCallback = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)

MODEL, CONTEXT, VOCAB, MEMORY, ADAPTER = (c_void_p,) * 5
SEQ, POS, TOKEN = (c_int32,) * 3

FUNCTIONS = {
    # name: (result, arguments)
    "llama_backend_init": (None, ()),
    "llama_log_set": (None, (LogCallback, c_void_p)),
    "llama_model_default_params": (ModelParams, ()),
    "llama_context_default_params": (ContextParams, ()),
    "llama_supports_gpu_offload": (c_bool, ()),
    "llama_model_load_from_file": (MODEL, (c_char_p, ModelParams)),
    "llama_model_free": (None, (MODEL,)),
    "llama_model_get_vocab": (VOCAB, (MODEL,)),
    "llama_model_n_ctx_train": (c_int32, (MODEL,)),
    "llama_model_n_params": (c_uint64, (MODEL,)),
    "llama_model_size": (c_uint64, (MODEL,)),
    "llama_model_n_embd": (c_int32, (MODEL,)),
    "llama_model_n_embd_out": (c_int32, (MODEL,)),
    "llama_model_n_layer": (c_int32, (MODEL,)),
    "llama_model_n_head": (c_int32, (MODEL,)),
    "llama_model_n_head_kv": (c_int32, (MODEL,)),
    "llama_model_has_encoder": (c_bool, (MODEL,)),
    "llama_model_has_decoder": (c_bool, (MODEL,)),
    "llama_model_meta_val_str": (c_int32, (MODEL, c_char_p, c_char_p, c_size_t)),
    "llama_model_chat_template": (c_char_p, (MODEL, c_char_p)),
    "llama_init_from_model": (CONTEXT, (MODEL, ContextParams)),
    "llama_free": (None, (CONTEXT,)),
    "llama_n_ctx_seq": (c_uint32, (CONTEXT,)),
    "llama_n_seq_max": (c_uint32, (CONTEXT,)),
    "llama_n_threads": (c_int32, (CONTEXT,)),
    "llama_encode": (c_int32, (CONTEXT, Batch)),
    "llama_decode": (c_int32, (CONTEXT, Batch)),
    "llama_get_logits": (POINTER(c_float), (CONTEXT,)),
    "llama_get_embeddings_seq": (POINTER(c_float), (CONTEXT, SEQ)),
    "llama_get_memory": (MEMORY, (CONTEXT,)),
    "llama_memory_clear": (None, (MEMORY, c_bool)),
    "llama_memory_seq_rm": (c_bool, (MEMORY, SEQ, POS, POS)),
    "llama_memory_seq_cp": (None, (MEMORY, SEQ, SEQ, POS, POS)),
    "llama_memory_seq_pos_max": (POS, (MEMORY, SEQ)),
    "llama_adapter_lora_init": (ADAPTER, (MODEL, c_char_p)),
    "llama_adapter_lora_free": (None, (ADAPTER,)),
    "llama_set_adapters_lora": (c_int32, (CONTEXT, POINTER(ADAPTER), c_size_t, POINTER(c_float))),
    "llama_vocab_n_tokens": (c_int32, (VOCAB,)),
    "llama_vocab_is_eog": (c_bool, (VOCAB, TOKEN)),
    "llama_vocab_get_attr": (c_int, (VOCAB, TOKEN)),
    "llama_vocab_type": (c_int, (VOCAB,)),
    "llama_vocab_get_text": (c_char_p, (VOCAB, TOKEN)),
    "llama_vocab_bos": (TOKEN, (VOCAB,)),
    "llama_vocab_eos": (TOKEN, (VOCAB,)),
    "llama_vocab_get_add_bos": (c_bool, (VOCAB,)),
    "llama_tokenize": (c_int32, (VOCAB, c_char_p, c_int32, c_void_p, c_int32, c_bool, c_bool)),
    "llama_token_to_piece": (c_int32, (VOCAB, TOKEN, c_char_p, c_int32, c_int32, c_bool)),
}

MODEL_DEFAULTS = {"n_gpu_layers": -1, "split_mode": 1, "vocab_only": False, "use_extra_bufts": True, "load_mtp": False}
CONTEXT_DEFAULTS = {
    **{"n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "n_threads": 4, "yarn_ext_factor": -1.0},
    **{"defrag_thold": -1.0, "type_k": 1, "type_v": 1, "embeddings": False, "offload_kqv": True, "no_perf": True},
    **{"op_offload": True, "swa_full": True, "kv_unified": False, "samplers": None, "n_samplers": 0, "ctx_other": None},
}


@functools.cache
def library() -> ctypes.CDLL:
    """Return llama.cpp with the types of its functions.

    Raises:
        RuntimeError: the installed wheel has another layout of the structures than this module.
    """
    # Threads that wait for the others must not keep their cores: beside one busy process, two spinning threads decode
    # at 2 tokens/s, and two sleeping ones at 11 to 30. The library of OpenMP reads this when it is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    for openmp in folder_of("torch").glob("lib/libgomp.so*"):  # the system may have none
        ctypes.CDLL(str(openmp))
    (path,) = folder_of("xllamacpp").glob("xllamacpp*.so")
    found = ctypes.CDLL(str(path))
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    require_layout(found.llama_model_default_params(), MODEL_DEFAULTS)
    require_layout(found.llama_context_default_params(), CONTEXT_DEFAULTS)
    found.llama_log_set(pass_on, None)
    found.llama_backend_init()
    return found


def folder_of(package: str) -> Path:
    """Return the folder of an installed package, without importing it."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def require_layout(params: ctypes.Structure, defaults: dict) -> None:
    for name, expected in defaults.items():
        if getattr(params, name) != expected:
            installed = version("xllamacpp")
            raise RuntimeError(
                f"xllamacpp {installed} is not the release that this project is made for (its {name} of "
                f"{type(params).__doc__} is elsewhere): pip install -r requirements/base.txt"
            )


def reason() -> str:
    """Return llama.cpp's words for its last failure."""
    return "; ".join(last_words) or "it gives no reason"


@LogCallback
def pass_on(level: int, text: bytes, _: c_void_p) -> None:
    """Pass llama.cpp's warnings and errors on to Python's log."""
    if level in LEVELS and text.strip(b".\n "):
        words = text.decode(errors="replace").rstrip()
        log.log(LEVELS[level], "%s", words)
        if LEVELS[level] == logging.ERROR:
            last_words.append(words)
