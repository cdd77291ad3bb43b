"""All uses of Ray's private names in this package, checked with Ray 2.60; pyproject.toml bounds the version."""


def draining_nodes() -> set[str]:
    """Return the ids of the machines that are about to be preempted: spot machines, or after `ray drain-node`."""
    from ray._private.state import state

    return set(state.get_draining_nodes())


def type_of_unmanaged(node_id: str) -> str:
    """Return Ray's name of the type of a machine that its autoscaler did not start."""
    from ray.autoscaler._private.util import format_readonly_node_type

    return format_readonly_node_type(node_id)
