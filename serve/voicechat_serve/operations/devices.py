"""The device of Whisper and of the voices: what the file may say, and what this machine has.

A replica chooses its device when it starts, because on a cluster the driver may have no GPU. On one machine
`require_devices` finds what cannot work before Ray starts.
"""

from typing import TYPE_CHECKING, Literal

from voicechat_platform.errors import InputError
from voicechat_serve.generation.served_model import Device

if TYPE_CHECKING:
    from voicechat_serve.application_file import APIArguments, Engines

ComputeType = Literal[
    "auto", "int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16", "float16", "bfloat16", "float32"
]
"""CTranslate2's types; which of them work depends on the device."""


def gpus() -> int:
    """Return the number of GPUs that CTranslate2 can see."""
    import ctranslate2  # imported here, because the driver needs it only for a file that asks for a GPU

    return int(ctranslate2.get_cuda_device_count())


def whisper_device(device: Device) -> Literal["cpu", "cuda"]:
    """Return the device for Whisper.

    Raises:
        InputError: cuda was asked for, and there is no GPU.
    """
    if device != "cpu" and gpus():
        return "cuda"
    if device == "cuda":
        raise InputError(
            "transcription: device is cuda, but CTranslate2 sees no GPU here: set device to auto or cpu, or look at "
            "the driver and CUDA_VISIBLE_DEVICES (`voicechat doctor` shows the GPUs)"
        )
    return "cpu"


def whisper_compute_type(compute_type: ComputeType, device: Literal["cpu", "cuda"]) -> str:
    """Return the type to compute with.

    Raises:
        InputError: the device does not have the type.
    """
    import ctranslate2

    supported = ctranslate2.get_supported_compute_types(device)
    if compute_type == "auto":
        return "float16" if device == "cuda" and "float16" in supported else "int8"
    if compute_type not in supported:
        raise InputError(
            f"transcription: compute_type {compute_type} does not work on this machine's {device}: choose auto, or one "
            f"of {', '.join(sorted(supported))}"
        )
    return compute_type


def voices_on_gpu(device: Device) -> bool:
    """Return whether voices that can run on a GPU shall do so.

    Raises:
        InputError: cuda was asked for, and onnxruntime has no provider for it, or no voice can use it.
    """
    import onnxruntime

    from voicechat_serve.synthesis.voices import ONNX_ON_GPU, installed_voices

    is_possible = ONNX_ON_GPU in onnxruntime.get_available_providers()
    if device == "cuda" and not is_possible:
        raise InputError(
            f"synthesis: device is cuda, but this onnxruntime has no {ONNX_ON_GPU}: install onnxruntime-gpu in place "
            "of onnxruntime, or set device to auto or cpu"
        )
    if device == "cuda" and all(voice.engine == "hibari" for voice in installed_voices()):
        raise InputError(
            "synthesis: device is cuda, but hibari's voice runs only on a CPU, and no voice of Piper or Kokoro is "
            "installed: set device to auto or cpu"
        )
    return is_possible and device != "cpu"


def require_devices(arguments: "APIArguments") -> None:
    """Check that this machine has the devices that the file asks for, where all replicas run on this machine.

    Raises:
        InputError: it has not.
    """
    engines: dict[str, Engines] = {f"the model {model.id}": model for model in arguments.models}
    if arguments.champions is not None:
        engines["champions"] = arguments.champions
    for name, engine in engines.items():
        if engine.device == "cuda" and not gpus():
            raise InputError(f"{name}: device is cuda, but this machine has no GPU: set device to auto or cpu")
    parts = {"transcription": arguments.transcription, "synthesis": arguments.synthesis, "ingress": arguments.ingress}
    parts |= engines
    if shares := {name: part.num_gpus for name, part in parts.items() if part.num_gpus}:
        name, share = next(iter(shares.items()))
        if not gpus():
            raise InputError(
                f"{name}: num_gpus is {share:g}, but this machine has no GPU, so that the replica would wait for ever: "
                "leave num_gpus out"
            )
    hearing = arguments.transcription
    if (hearing.device, hearing.compute_type) != ("auto", "auto"):
        whisper_compute_type(hearing.compute_type, whisper_device(hearing.device))
    if arguments.synthesis.device == "cuda":
        voices_on_gpu("cuda")
