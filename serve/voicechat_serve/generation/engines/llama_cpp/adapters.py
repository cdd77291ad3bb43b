"""The adapters (LoRA) that are added to a model of llama.cpp while it serves."""

import ctypes
import itertools
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

from voicechat_platform.errors import InputError
from voicechat_serve.generation.engines.llama_cpp.library import last_words, reason
from voicechat_serve.generation.engines.llama_cpp.model import LlamaModel


class Adapters:
    """Each has a number, which no later one gets: the cache may still hold texts of one that was removed."""

    def __init__(self, model: LlamaModel):
        self.model, self.llama = model, model.llama
        self.pointers: dict[int, int] = {}
        self.leaving: list[int] = []
        """Removed ones that are still in memory: only the thread that decodes may free them."""
        self.numbers = itertools.count(1)
        self.changing = threading.Lock()
        """llama.cpp goes through a model's adapters without a lock, also while it decodes."""
        self.used = 0

    def add(self, path: Path) -> int:
        """Load an adapter, a GGUF file or a folder of peft's, and return its number; any thread may call this.

        Raises:
            InputError: it is damaged, or made for another model.
        """
        if path.is_dir():
            return self.add_folder(path)
        with self.changing:
            last_words.clear()
            pointer = self.llama.llama_adapter_lora_init(self.model.pointer, str(path).encode())
            if not pointer:
                raise InputError(f"llama.cpp cannot add the adapter {path} to {self.model.path}: {reason()}")
            number = next(self.numbers)
            self.pointers[number] = pointer
        return number

    def add_folder(self, folder: Path) -> int:
        # Imported here, so that a replica without such a folder does not load transformers.
        from voicechat_platform.models.gguf_adapter import write_gguf_adapter

        architecture = self.model.described("general.architecture")
        if architecture != "llama":
            raise InputError(
                f"{folder}: only an adapter of a Llama can be converted, and {self.model.path} is a {architecture}: "
                "convert it with llama.cpp's convert_lora_to_gguf.py, and name the GGUF file"
            )
        heads, kv_heads = (
            int(self.model.described(f"llama.attention.{name}") or 0) for name in ("head_count", "head_count_kv")
        )
        with TemporaryDirectory() as temporary:
            path = Path(temporary) / f"{folder.name}.gguf"
            write_gguf_adapter(folder, heads, kv_heads or heads, path)
            return self.add(path)

    def remove(self, number: int) -> None:
        """Free an adapter before the next call; any thread may call this."""
        with self.changing:
            self.leaving.append(number)

    def use(self, context: int, number: int) -> None:
        """Compute the context's next calls with an adapter, or with none (0); only the thread that decodes calls
        this."""
        if self.leaving:
            self.free(context)
        if number not in self.pointers:
            number = 0  # it was removed: the request has left, and nobody reads what this call computes for it
        if number == self.used:
            return
        pointers = (ctypes.c_void_p * 1)(self.pointers.get(number))
        status = self.llama.llama_set_adapters_lora(context, pointers, bool(number), (ctypes.c_float * 1)(1.0))
        if status:
            raise RuntimeError(f"llama.cpp could not change the adapter: {status}")
        self.used = number

    def free(self, context: int) -> None:
        """Free the removed adapters. The context leaves them first: a later one may get the same address."""
        self.llama.llama_set_adapters_lora(context, None, 0, None)
        self.used = 0
        with self.changing:
            for number in self.leaving:
                self.llama.llama_adapter_lora_free(self.pointers.pop(number))
            self.leaving.clear()
