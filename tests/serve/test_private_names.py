"""Names of libraries that are private or not documented: an upgrade may lose them, and then this says which.

What is missing has to be looked up in the library's new version, and its upper bound in pyproject.toml raised.
"""

import importlib.metadata
import inspect
import pkgutil
import re
import tomllib
from pathlib import Path

import pytest
import ray

REPOSITORY = Path(__file__).parents[2]

NAMES = {
    "ray._private.services:resolve_ip_for_localhost": "platform/voicechat_platform/cluster.py",
    "ray.serve._private.replica:add_port_to_grpc_server": "serve/voicechat_serve/operations/serve_private.py",
    "ray.serve._private.constants:SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER": (
        "serve/voicechat_serve/operations/serve_private.py"
    ),
    "uvicorn.config:HTTP_PROTOCOLS": "serve/voicechat_serve/api/proxy.py",
    "uvicorn.protocols.http.h11_impl:H11Protocol._should_upgrade": "serve/voicechat_serve/api/proxy.py",
    "uvicorn.protocols.http.h11_impl:H11Protocol.send_400_response": "serve/voicechat_serve/api/proxy.py",
    "faster_whisper.transcribe:get_compression_ratio": "serve/voicechat_serve/transcription/short_context.py",
    "faster_whisper.transcribe:get_suppressed_tokens": "serve/voicechat_serve/transcription/short_context.py",
    "faster_whisper:WhisperModel.get_prompt": "serve/voicechat_serve/transcription/short_context.py",
    "faster_whisper:WhisperModel.encode": "serve/voicechat_serve/transcription/whisper.py",
    "faster_whisper.feature_extractor:FeatureExtractor": "serve/voicechat_serve/transcription/whisper.py",
    "faster_whisper:WhisperModel.generate_with_fallback": "serve/voicechat_serve/transcription/batched.py",
    "faster_whisper:BatchedInferencePipeline.generate_segment_batched": (
        "serve/voicechat_serve/transcription/batched.py"
    ),
    "faster_whisper:BatchedInferencePipeline.forward": "serve/voicechat_serve/transcription/batched.py",
    "faster_whisper.transcribe:TranscriptionOptions": "serve/voicechat_serve/transcription/batched.py",
    "huggingface_hub.file_download:http_get": "platform/voicechat_platform/hub.py",
    "huggingface_hub.constants:DOWNLOAD_CHUNK_SIZE": "platform/voicechat_platform/hub.py",
    "transformers:PreTrainedConfig._attn_implementation": "platform/voicechat_platform/models/attention.py",
}


@pytest.mark.parametrize("name", NAMES)
def test_the_library_still_has_it(name):
    library = re.split(r"\W", name)[0].replace("_", "-")
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        version = importlib.metadata.version(library)
        pytest.fail(f"{library} {version} has no {name} any more, which {NAMES[name]} uses")
    assert name.rpartition(":")[2].rpartition(".")[2] in (REPOSITORY / NAMES[name]).read_text()


def test_ray_still_takes_the_address_of_its_node():
    assert "_node_ip_address" in inspect.getsource(ray.init)


@pytest.mark.parametrize("library", ["ray", "uvicorn", "faster-whisper", "huggingface-hub", "transformers"])
def test_the_library_has_an_upper_bound(library):
    dependencies = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    (bounds,) = [each for each in dependencies if re.match(rf"{library}(\[|>|$)", each)]
    assert "<" in bounds


def test_no_other_module_takes_what_is_private():
    found = {
        str(path.relative_to(REPOSITORY))
        for area in ("platform", "serve", "ui")
        for path in (REPOSITORY / area).rglob("*.py")
        if re.search(r"(from|import) \S*\._|(from|import) \S+ import _", path.read_text())
    }
    assert found == {where for name, where in NAMES.items() if "._private" in name}
