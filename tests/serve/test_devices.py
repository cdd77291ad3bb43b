"""Devices: what the file may ask for, what this machine has, and the words in which the difference is told."""

import ctranslate2
import pytest

from voicechat_platform.assets import locate
from voicechat_platform.errors import InputError
from voicechat_serve.application_file import APIArguments, ChampionEngines, ModelEntry, Synthesizers, Transcribers
from voicechat_serve.operations import devices
from voicechat_serve.operations.devices import require_devices, voices_on_gpu, whisper_compute_type, whisper_device
from voicechat_serve.synthesis.voices import HEART, ONNX_ON_GPU, Voice
from voicechat_serve.transcription import whisper
from voicechat_serve.transcription.whisper import load_whisper

TINY = locate("whisper-tiny.en")
PROVIDERS = "onnxruntime.get_available_providers"
NO_GPU = "transcription: device is cuda, but CTranslate2 sees no GPU here"


@pytest.fixture
def machine(monkeypatch):
    """A machine with so many GPUs that have these types."""

    def with_gpus(count: int, *types: str) -> None:
        own = ctranslate2.get_supported_compute_types("cpu")
        monkeypatch.setattr(ctranslate2, "get_cuda_device_count", lambda: count)
        monkeypatch.setattr(
            ctranslate2, "get_supported_compute_types", lambda device: set(types) if device == "cuda" else own
        )

    return with_gpus


def test_auto_takes_a_gpu_if_there_is_one(machine):
    machine(0)
    assert (whisper_device("auto"), whisper_compute_type("auto", "cpu")) == ("cpu", "int8")
    machine(1, "float16", "float32", "int8")
    assert (whisper_device("auto"), whisper_device("cpu"), whisper_device("cuda")) == ("cuda", "cpu", "cuda")
    assert whisper_compute_type("auto", "cuda") == "float16"
    assert whisper_compute_type("int8", "cuda") == "int8"
    machine(1, "float32", "int8")  # an old GPU
    assert whisper_compute_type("auto", "cuda") == "int8"


def test_what_the_machine_lacks_is_told(machine):
    machine(0)
    with pytest.raises(InputError, match=NO_GPU):
        load_whisper(TINY, "cuda", "auto", 1)
    with pytest.raises(InputError, match=r"compute_type int8_float16 does not work on this machine's cpu.*float32"):
        load_whisper(TINY, "auto", "int8_float16", 1)


@pytest.mark.parametrize("compute_type", sorted(ctranslate2.get_supported_compute_types("cpu")))
def test_every_type_of_a_cpu_loads(compute_type):
    model = load_whisper(TINY, "cpu", compute_type, 1).model
    assert model.device == "cpu"
    assert model.compute_type.startswith(compute_type)  # int8 becomes int8_float32


def test_a_gpu_that_does_not_work(machine, monkeypatch, caplog):
    """As without cuBLAS: `auto` takes the CPU, and `cuda` is an error with its reason."""
    machine(1, "float16")
    made = whisper.Whisper

    def make(folder, device, compute_type, threads):
        if device == "cuda":
            raise RuntimeError("Library libcublas.so.12 is not found or cannot be loaded")
        return made(folder, device, compute_type, threads)

    monkeypatch.setattr(whisper, "Whisper", make)
    assert load_whisper(TINY, "auto", "auto", 1).model.device == "cpu"
    assert "Whisper runs on the CPU: " in caplog.text
    with pytest.raises(InputError, match=r"on cuda \(float16\): Library libcublas.*pip install nvidia-cublas-cu12"):
        load_whisper(TINY, "cuda", "auto", 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"transcription": Transcribers(device="cuda")}, NO_GPU),
        (
            {"transcription": Transcribers(num_gpus=0.25)},
            "transcription: num_gpus is 0.25, but this machine has no GPU",
        ),
        ({"transcription": Transcribers(compute_type="int8_bfloat16")}, "compute_type int8_bfloat16 does not work"),
        ({"synthesis": Synthesizers(num_gpus=1)}, "synthesis: num_gpus is 1, but"),
        ({"champions": ChampionEngines(num_gpus=0.5)}, "champions: num_gpus is 0.5, but"),
        ({"models": (ModelEntry(id="gpt", num_gpus=1),)}, "the model gpt: num_gpus is 1, but"),
        ({"synthesis": Synthesizers(device="cuda")}, f"this onnxruntime has no {ONNX_ON_GPU}: install onnxruntime-gpu"),
    ],
)
def test_a_machine_without_a_gpu_says_so_before_it_starts(machine, monkeypatch, fields, message):
    machine(0)
    monkeypatch.setattr(PROVIDERS, lambda: ["CPUExecutionProvider"])
    with pytest.raises(InputError) as refused:
        require_devices(APIArguments(**fields))
    assert message in str(refused.value)


def test_a_file_that_asks_for_nothing_looks_at_no_gpu(monkeypatch):
    monkeypatch.setattr(devices, "gpus", lambda: pytest.fail("looked"))
    require_devices(APIArguments(transcription=Transcribers(device="cpu")))
    require_devices(APIArguments())


def test_voices_use_a_gpu_where_one_of_them_can(monkeypatch):
    monkeypatch.setattr(PROVIDERS, lambda: ["CPUExecutionProvider"])
    assert not voices_on_gpu("auto")
    monkeypatch.setattr(PROVIDERS, lambda: [ONNX_ON_GPU, "CPUExecutionProvider"])
    assert voices_on_gpu("auto")
    assert not voices_on_gpu("cpu")
    installed = "voicechat_serve.synthesis.voices.installed_voices"
    monkeypatch.setattr(installed, lambda: (HEART,))
    with pytest.raises(InputError, match="hibari's voice runs only on a CPU, and no voice of Piper or Kokoro is"):
        voices_on_gpu("cuda")
    monkeypatch.setattr(installed, lambda: (HEART, Voice("joe", "en", "piper")))
    assert voices_on_gpu("cuda")
