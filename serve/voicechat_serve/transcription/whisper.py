"""faster-whisper that can stop between two windows of a long sound, on a CPU or a GPU."""

import ctypes
import logging
import threading
from importlib.util import find_spec
from pathlib import Path

import ctranslate2
import numpy as np
from faster_whisper import WhisperModel
from faster_whisper.feature_extractor import FeatureExtractor
from numpy.typing import NDArray

from voicechat_platform.errors import InputError
from voicechat_serve.generation.served_model import Device
from voicechat_serve.operations.devices import ComputeType, whisper_compute_type, whisper_device

log = logging.getLogger(__name__)

CUBLAS = ("libcublasLt.so.12", "libcublas.so.12")
"""What CTranslate2 opens on a GPU, in the order in which one needs the other."""


class AbandonedError(Exception):
    """The client does not wait for the transcript any more."""


class Whisper(WhisperModel):
    """The model, with a cancellation between windows.

    `transcribe` yields segments on demand, but a segment after minutes of music comes only after all windows of the
    music. So the cancellation must be checked in each window.

    Args:
        folder: a CTranslate2 Whisper.
        device: "cpu" or "cuda".
        compute_type: one of CTranslate2's.
        threads: on a CPU.
    """

    feature_extractor: FeatureExtractor
    abandoned = threading.Event()
    """For the sound in transcription; set it before asking for a segment."""

    def __init__(self, folder: Path, device: str, compute_type: str, threads: int):
        super().__init__(str(folder), device=device, compute_type=compute_type, cpu_threads=threads)
        # A conversion of large-v3 or turbo without preprocessor_config.json would get 80 bands, and needs 128.
        if len(self.feature_extractor.mel_filters) != self.model.n_mels:
            self.feature_extractor = FeatureExtractor(feature_size=self.model.n_mels)

    def encode(self, features: NDArray[np.float32]) -> ctranslate2.StorageView:
        """Encode one window, of 30 s or an utterance's length, or several; this is the first step of each window.

        Raises:
            AbandonedError: `abandoned` is set.
        """
        if self.abandoned.is_set():
            raise AbandonedError
        return super().encode(features)


def load_whisper(folder: Path, device: Device, compute_type: ComputeType, threads: int) -> Whisper:
    """Load the model on the device that the file asks for. `auto` takes the CPU, with a warning in the log, where a GPU
    is seen but does not work.

    Raises:
        InputError: there is no such device, it does not have the compute type, or the files cannot be read.
    """
    chosen = whisper_device(device)
    if chosen == "cuda" and device == "auto":
        try:
            return loaded(folder, "cuda", compute_type, threads)
        except InputError as error:
            log.warning("Whisper runs on the CPU: %s", error)
            chosen = "cpu"
    return loaded(folder, chosen, compute_type, threads)


def loaded(folder: Path, device: str, compute_type: ComputeType, threads: int) -> Whisper:
    exact = whisper_compute_type(compute_type, "cuda" if device == "cuda" else "cpu")
    if device == "cuda":
        open_packaged_cublas()
    try:
        model = Whisper(folder, device, exact, threads)
        if device == "cuda":  # a missing library shows at the first product
            model.encode(np.zeros((model.model.n_mels, 2), np.float32))
    except (RuntimeError, ValueError, OSError) as error:
        advice = "; CTranslate2 needs CUDA 12: pip install nvidia-cublas-cu12" if "libcu" in str(error) else ""
        raise InputError(f"the Whisper in {folder} cannot be loaded on {device} ({exact}): {error}{advice}") from error
    log.info("Whisper runs on %s, in %s", device, exact)
    return model


def open_packaged_cublas() -> None:
    """Open cuBLAS from NVIDIA's Python package, if it is installed: CTranslate2 asks for it by name, and the linker
    does not look there."""
    found = find_spec("nvidia")
    for place in (found.submodule_search_locations or ()) if found else ():
        for name in CUBLAS:
            if (path := Path(place, "cublas", "lib", name)).exists():
                ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
