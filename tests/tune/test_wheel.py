"""The wheel that a cluster installs for a job: whole, the same each time, and without requirements."""

import base64
import hashlib
import subprocess
import sys
from zipfile import ZipFile

import pytest

from voicechat_tune.running.wheel import PACKAGES, build_wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(tmp_path_factory.mktemp("wheel") / "new")


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The wheel installed as Ray does it, without a package index."""
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", f"--target={target}", str(wheel)]
    subprocess.run(pip, check=True)
    return target


def run(installed, code: str) -> list[str]:
    """Run code with the installed wheel before this environment's own packages; the lines that it prints."""
    code = f"import sys; sys.path.insert(0, {str(installed)!r})\n{code}"
    done = subprocess.run([sys.executable, "-c", code], cwd=installed.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_pip_installs_it_without_fetching_anything(installed):
    found = run(
        installed,
        "import voicechat_tune, voicechat_tune.search.sweep_file as file; from importlib.metadata import version\n"
        "file.read_sweep(file.quickstart())\n"
        "print(voicechat_tune.__file__, file.quickstart(), version('llm-voice-chat'), sep='\\n')",
    )
    assert found[0] == str(installed / "voicechat_tune" / "__init__.py")
    assert found[1] == str(installed / "voicechat_tune" / "sweeps" / "quickstart.yaml")
    assert "+g" in found[2]


def test_it_holds_the_packages_and_nothing_else(wheel):
    with ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert {name.split("/")[0] for name in names} == {
        *PACKAGES,
        wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info",
    }
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]
    assert {"voicechat_ui/page/style.css", "voicechat_ui/page/main.js", "voicechat_tune/running/wheel.py"} <= set(names)
    assert "Requires-Dist" not in metadata


def test_its_record_is_true(wheel):
    with ZipFile(wheel) as archive:
        record = next(name for name in archive.namelist() if name.endswith("RECORD"))
        listed = dict(line.split(",", 1) for line in archive.read(record).decode().splitlines())
        assert listed.pop(record) == ","
        for name in set(archive.namelist()) - {record}:
            data = archive.read(name)
            checksum = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
            assert listed.pop(name) == f"sha256={checksum},{len(data)}"
    assert not listed


def test_the_same_files_make_the_same_wheel_and_others_another(wheel, installed, tmp_path):
    """Built from where the wheel is installed: other dates, other folders, compiled files beside."""
    imports = "from pathlib import Path; from voicechat_tune.running.wheel import build_wheel"
    build = f"{imports}\nbuild_wheel(Path({str(tmp_path)!r}))"
    run(installed, build)
    again = tmp_path / wheel.name
    assert again.read_bytes() == wheel.read_bytes()
    page = installed / "voicechat_ui" / "page" / "style.css"
    page.write_text(page.read_text() + "\n")
    run(installed, build)
    assert len(list(tmp_path.glob("*.whl"))) == 2
