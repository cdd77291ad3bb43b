"""Notice that a machine is about to be taken away: Ray calls it a draining node."""

import ray


class Preempted(Exception):  # noqa: N818 (no error: the run goes on elsewhere)
    """The run kept its step and left its machine."""


def node_is_going() -> bool:
    """Whether the machine of this process has been told to go: a spot machine, or `ray drain-node`."""
    from ray._private.state import state

    return ray.get_runtime_context().get_node_id() in state.get_draining_nodes()
