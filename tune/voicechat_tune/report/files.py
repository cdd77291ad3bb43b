"""The file names of a report and of a checkpoint's heads, so that a command can check them before any computation."""

from pathlib import Path

from voicechat_platform.paths import given_path, writable_folder

REPORT_FILES = ("report.html", "report.md", "findings.json")
HEADS_FILES = ("spectra.png", "scores.png", "eigenbasis.png", "distances.png", "attention.png", "heads.json")


def report_folder(given: Path) -> Path:
    """Return a report's folder, absolute.

    Raises:
        InputError: a report cannot be written there.
    """
    writable_folder(given_path(given) / "figures")
    return writable_folder(given, *REPORT_FILES)
