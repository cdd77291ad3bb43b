"""The machines' resources for a sweep's runs."""

import logging
from pathlib import Path

import ray

from voicechat_platform.errors import InputError
from voicechat_platform.settings import settings
from voicechat_platform.strict_yaml import compose_yaml
from voicechat_tune.running.ray_private import type_of_unmanaged
from voicechat_tune.search.sweep_file import SweepFile

log = logging.getLogger(__name__)

CLUSTER_FILE = Path("~/ray_bootstrap_config.yaml")
"""The place of the cluster's configuration on the head node; `ray up` writes it."""


def check_resources(sweep: SweepFile) -> None:
    """Check that the machines have the resources for a run. A cluster that grows may start the machine later.

    Raises:
        InputError: no machine can ever have the resources; Ray would wait for them forever.
    """
    here = alive()
    if have_room(here, sweep):
        return
    coming = may_come(len(here))
    head = [machine for machine in here if "node:__internal_head__" in machine]
    machines = [*head, *coming] if coming else here  # the possible machines include those that have joined
    if coming is None or have_room(machines, sweep):
        log.info("no machine has the resources for a run yet: waiting for the cluster to grow")
        return
    where = "this machine has" if settings().ray_address == "local" else "the cluster's largest machine has"
    for kind, amount in needed_by_worker(sweep).items():
        most = max(machine.get(kind, 0) for machine in machines)
        if amount > most:
            raise InputError(
                f"{kind.lower()}s_per_trial is {amount:g}, but {where} {most:g} {kind}s: give less, or connect to a "
                f"larger cluster with --address"
            )
        total = sum(machine.get(kind, 0) for machine in machines)
        if amount * sweep.workers_per_trial > total:
            raise InputError(
                f"workers_per_trial ({sweep.workers_per_trial}) needs {amount * sweep.workers_per_trial:g} {kind}s "
                f"in total, but there are {total:g}: give fewer workers"
            )
    both = f"{sweep.cpus_per_trial:g} CPUs and {sweep.gpus_per_trial:g} GPUs"
    raise InputError(f"no machine has both {both}: give less")


def needed_by_worker(sweep: SweepFile) -> dict[str, float]:
    return {"CPU": sweep.cpus_per_trial, "GPU": sweep.gpus_per_trial}


def have_room(machines: list[dict[str, float]], sweep: SweepFile) -> bool:
    """Return whether one machine has the resources for a worker, and all machines together those for a run."""
    needed = needed_by_worker(sweep)
    one = any(all(machine.get(kind, 0) >= amount for kind, amount in needed.items()) for machine in machines)
    total = {kind: sum(machine.get(kind, 0) for machine in machines) for kind in needed}
    return one and all(amount * sweep.workers_per_trial <= total[kind] for kind, amount in needed.items())


def may_come(joined: int) -> list[dict[str, float]] | None:
    """Return the resources of all machines that the cluster may start, from the configuration of `ray up`.

    Args:
        joined: the number of machines now, including the head node.

    Returns:
        None if they are not known on this machine. An empty list if all have joined, or if the cluster does not grow.
    """
    if not grows():
        return []
    path = CLUSTER_FILE.expanduser()
    if not path.exists():  # this is not the head node
        return None
    try:
        values, _ = compose_yaml(path)
        types = values["available_node_types"].values()
    except (AttributeError, KeyError):
        raise InputError(f"{path} has no available_node_types: was it written by `ray up`?") from None
    machines = [kind.get("resources", {}) for kind in types for _ in range(kind.get("max_workers", 0))]
    if joined > len(machines):  # all have joined, and the head node is one more
        return []
    return machines if all(machines) else None  # the resources of an on-premise machine are unknown before it joins


def room_for(sweep: SweepFile) -> int:
    """Return how many runs may be active at a time. If the cluster can grow, one more: this run makes it grow."""
    if sweep.concurrent is not None:
        return sweep.concurrent
    needed = needed_by_worker(sweep)
    room = 0
    for machine in alive():
        room += min(int(machine.get(kind, 0) / amount + 1e-6) for kind, amount in needed.items() if amount)
    return max(1, room // sweep.workers_per_trial + grows())


def alive() -> list[dict[str, float]]:
    """Return the resources of each active machine of the cluster."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def grows() -> bool:
    """Return whether the cluster starts machines automatically. Their types are then in its configuration."""
    from ray.autoscaler.v2.sdk import get_cluster_status

    if settings().ray_address == "local":
        return False
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    nodes = [*status.active_nodes, *status.idle_nodes]
    return any(node.ray_node_type_name != type_of_unmanaged(node.node_id) for node in nodes)
