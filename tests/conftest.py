"""Read before every test module. `make test` shares the files out among two processes (pytest-xdist)."""

import fcntl
import os
import tempfile
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling

# These files share one running service, so one process takes them all.
SERVICE_FILES = {
    f"tests/serve/test_{name}.py"
    for name in ("api", "clients", "living_service", "metrics", "realtime", "transcriptions")
}

FOLDER = Path(tempfile.gettempdir(), f"voicechat-tests-{os.getuid()}")

# Each process starts clusters of its own. The path is short, because Ray's sockets are in it.
os.environ["RAY_TMPDIR"] = str(FOLDER / os.environ.get("PYTEST_XDIST_WORKER", "main"))
Path(os.environ["RAY_TMPDIR"]).mkdir(parents=True, exist_ok=True)

# Some test modules import ray first, and Ray reads our variables when it is imported.
import voicechat_platform  # noqa: E402, F401


@contextmanager
def locked(name: str, kind: int) -> Iterator[None]:
    with (FOLDER / name).open("w") as file:
        fcntl.flock(file, kind)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # also where a child process has inherited the file


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests with the marker `gpu` on a machine without one."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch  # imported here: most files of tests/ui do not need it

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="PyTorch finds no GPU"))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Run a test with the marker `alone` when no other test runs.

    It holds the lock "next" while it waits for the tests that run already, so that no other test begins before it.
    """
    kind = fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH
    with ExitStack() as running:
        with locked("next.lock", fcntl.LOCK_EX):
            running.enter_context(locked("running.lock", kind))
        return (yield)


class SharedService(LoadFileScheduling):
    def _split_scope(self, nodeid: str) -> str:
        """Return the name of the tests that stay in one process."""
        file = super()._split_scope(nodeid)
        return "the running service" if file in SERVICE_FILES else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> SharedService:
    return SharedService(config, log)
