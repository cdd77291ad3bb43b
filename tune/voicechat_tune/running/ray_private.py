"""Names that Ray keeps to itself and this package needs, all in one place: read in Ray 2.60, which pyproject.toml
bounds."""


def draining_nodes() -> set[str]:
    """The ids of the machines that are about to go: spot machines, or after `ray drain-node`."""
    from ray._private.state import state

    return set(state.get_draining_nodes())


def type_of_unmanaged(node_id: str) -> str:
    """What Ray calls the type of a machine that its autoscaler has not started."""
    from ray.autoscaler._private.util import format_readonly_node_type

    return format_readonly_node_type(node_id)
