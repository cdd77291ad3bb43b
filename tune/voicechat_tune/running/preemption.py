"""Detect that a machine is about to be preempted; Ray calls it a draining node."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from voicechat_platform.training.loop import Training
from voicechat_tune.running.ray_private import draining_nodes

log = logging.getLogger(__name__)
SECONDS_BETWEEN_LOOKS = 5


class Preempted(Exception):  # noqa: N818 (no error: the run goes on elsewhere)
    """The run saved its step and left its machine."""


def node_is_going() -> bool:
    """Return whether this process's machine is about to be preempted: a spot machine, or after `ray drain-node`."""
    return ray.get_runtime_context().get_node_id() in draining_nodes()


@contextmanager
def stopping_on_notice(training: Training) -> Iterator[None]:
    """Stop the run after its current step when its machine is about to be preempted, so that the step is saved."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(SECONDS_BETWEEN_LOOKS):
            if node_is_going():
                log.info("the machine is about to be preempted: saving step %d", training.step)
                training.stop()
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
