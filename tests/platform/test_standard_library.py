"""The folder `platform/` must never hide the standard library's module of that name."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_platform_is_the_standard_librarys_from_the_repository_root():
    code = "import platform; print(platform.system(), platform.__file__)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    system, file = result.stdout.split()
    assert system in ("Linux", "Darwin", "Windows")
    assert not Path(file).is_relative_to(ROOT / "platform")


def test_no_file_makes_the_folder_a_module():
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert not (ROOT / "platform.py").exists()
