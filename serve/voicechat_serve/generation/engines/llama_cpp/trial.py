"""Run a GGUF file once in a process of its own: llama.cpp ends the whole process for some damaged files.

`python -m voicechat_serve.generation.engines.llama_cpp.trial FILE GPU_LAYERS TASK` loads the file, and decodes a
token or embeds it.
"""

import contextlib
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from voicechat_platform.errors import InputError
from voicechat_platform.folders import file_identity, folder_name, made_once
from voicechat_platform.gguf_file import all_parts, read_gguf
from voicechat_platform.settings import settings
from voicechat_serve.generation.engines.memory import require_memory
from voicechat_serve.generation.served_model import Task

LONGEST_TRIAL_S = 600.0
"""For a model of many gigabytes on a slow disk."""

TEMPLATE_S = 20

EVERY_BYTE = "".join(map(chr, [*range(1, 0x800), 0x20AC, 0x4F60, 0xFFFD, 0x1F600, 0x40000, 0x80000, 0x10FFFF]))
"""Characters whose UTF-8 has every byte that there can be."""


def require_runnable(path: Path, gpu_layers: int, task: Task = "text") -> None:
    """Check that llama.cpp runs the file for a task, once for each file.

    Raises:
        InputError: it does not, its header is damaged, or the weights are larger than the memory.
    """
    size = read_gguf(path).size_bytes
    if gpu_layers == 0:
        require_memory(path, size)
    path = path.resolve()
    identity = [path, *file_identity(all_parts(path)), gpu_layers, task, version("xllamacpp")]

    def attempt(_: Path) -> None:
        command = [sys.executable, "-m", __name__, str(path), str(gpu_layers), task]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_TRIAL_S)
        except subprocess.TimeoutExpired:
            raise InputError(f"llama.cpp did not load {path} within {LONGEST_TRIAL_S:g} s") from None
        if ended.returncode == 0:
            return
        words = ended.stderr.strip().splitlines()
        reason = words[-1] if words else "it gives no reason"
        if ended.returncode < 0:
            reason = f"its process ended with {signal.Signals(-ended.returncode).name}; at last it said: {reason}"
        raise InputError(f"llama.cpp cannot run {path}: {reason}")

    made_once(settings().folder("tried") / folder_name(path.name, identity), attempt)


def run_once(path: Path, gpu_layers: int, task: str) -> None:
    """Load the file, encode every kind of character, render the chat template, and decode a token, or embed it."""
    from voicechat_serve.generation.chat_tokenizer import ChatTokenizer

    tokenizer = ChatTokenizer(path)
    tokenizer.vocabulary.encode(EVERY_BYTE)
    if task == "embeddings":
        from voicechat_serve.generation.engines.llama_cpp.embedder import LlamaCppEmbedder

        embedder = LlamaCppEmbedder(path, context=64, gpu_layers=gpu_layers)
        embedder.embed([[0]])
        return embedder.close()
    import torch

    from voicechat_serve.generation.engines.llama_cpp.decoder import LlamaCppDecoder

    signal.signal(signal.SIGALRM, lambda *_: sys.exit(f"its chat template does not end within {TEMPLATE_S} s"))
    signal.alarm(TEMPLATE_S)
    with contextlib.suppress(InputError):  # it may refuse such a conversation
        tokenizer.render([{"role": "user", "content": "Hi"}])
    signal.alarm(0)
    decoder = LlamaCppDecoder(path, slots=1, context=64, gpu_layers=gpu_layers)
    decoder.prefill(0, torch.tensor([0]), 0)
    decoder.close()


if __name__ == "__main__":
    try:
        run_once(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    except InputError as error:
        sys.exit(str(error))
