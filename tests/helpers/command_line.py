"""The `voicechat` command in this process: a process of its own would import torch, Ray and Gradio for each call."""

import io
import logging
import signal
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from voicechat_platform.settings import settings
from voicechat_ui.cli import main


def run_command(home: Path, *arguments: Any, **environment: str) -> CompletedProcess[str]:
    """What a shell would get from the command with this home: its exit code, stdout and stderr."""
    command = ["voicechat", *map(str, arguments)]
    stdout, stderr = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, as_it_was(), redirect_stdout(stdout), redirect_stderr(stderr):
        patch.setattr(sys, "argv", command)
        for name, value in {"VOICECHAT_HOME": str(home), **environment}.items():
            patch.setenv(name, value)
        settings.cache_clear()
        try:
            main()
            code: Any = 0
        except SystemExit as end:
            code = end.code or 0
    settings.cache_clear()
    return CompletedProcess(command, code, stdout.getvalue(), stderr.getvalue())


@contextmanager
def as_it_was():
    """Takes back what `main` sets for a whole process; it begins with a log that nobody has set up."""
    loggers = [logging.getLogger(name) for name in (None, "ray", *logging.root.manager.loggerDict)]
    levels = {logger: logger.level for logger in loggers}
    handlers, logging.root.handlers = logging.root.handlers, []
    signals = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        logging.root.handlers = handlers
        for logger, level in levels.items():
            logger.setLevel(level)
        for number, handler in signals.items():
            signal.signal(number, handler)
