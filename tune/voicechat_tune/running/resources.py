"""What the machines can give to a sweep's runs."""

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
"""Where `ray up` puts the cluster's configuration on the head."""


def check_resources(sweep: SweepFile) -> None:
    """
    Raises:
        InputError: no machine can ever give a run what it asks for; Ray would wait for it for ever. A cluster that
            grows may have to start one first, and is given the time.
    """
    here = alive()
    if have_room(here, sweep):
        return
    coming = may_come(len(here))
    head = [machine for machine in here if "node:__internal_head__" in machine]
    machines = [*head, *coming] if coming else here  # those that have come are among those that may
    if coming is None or have_room(machines, sweep):
        log.info("no machine has room for a run yet: waiting for the cluster to grow")
        return
    where = "this machine has" if settings().ray_address == "local" else "the cluster's largest machine has"
    for kind, amount in needed_by_worker(sweep).items():
        most = max(machine.get(kind, 0) for machine in machines)
        if amount > most:
            raise InputError(
                f"{kind.lower()}s_per_trial is {amount:g}, but {where} {most:g} {kind}s: lower it, or join a larger "
                f"cluster with --address"
            )
        total = sum(machine.get(kind, 0) for machine in machines)
        if amount * sweep.workers_per_trial > total:
            raise InputError(
                f"workers_per_trial ({sweep.workers_per_trial}) asks for {amount * sweep.workers_per_trial:g} {kind}s "
                f"together, but there are {total:g}: ask for fewer"
            )
    both = f"{sweep.cpus_per_trial:g} CPUs and {sweep.gpus_per_trial:g} GPUs"
    raise InputError(f"no machine has both {both}: ask for less")


def needed_by_worker(sweep: SweepFile) -> dict[str, float]:
    return {"CPU": sweep.cpus_per_trial, "GPU": sweep.gpus_per_trial}


def have_room(machines: list[dict[str, float]], sweep: SweepFile) -> bool:
    """Whether one of the machines can hold a worker, and all of them together a run."""
    needed = needed_by_worker(sweep)
    one = any(all(machine.get(kind, 0) >= amount for kind, amount in needed.items()) for machine in machines)
    total = {kind: sum(machine.get(kind, 0) for machine in machines) for kind in needed}
    return one and all(amount * sweep.workers_per_trial <= total[kind] for kind, amount in needed.items())


def may_come(joined: int) -> list[dict[str, float]] | None:
    """The resources of the machines that the cluster may start, as `ray up` left them on the head.

    Args:
        joined: how many machines are there, the head included.

    Returns:
        None if it is not known here; none where all have come, or the cluster starts none.
    """
    if not grows():
        return []
    path = CLUSTER_FILE.expanduser()
    if not path.exists():  # this is not the head
        return None
    try:
        values, _ = compose_yaml(path)
        types = values["available_node_types"].values()
    except (AttributeError, KeyError):
        raise InputError(f"{path}: has no available_node_types: is it what `ray up` wrote?") from None
    machines = [kind.get("resources", {}) for kind in types for _ in range(kind.get("max_workers", 0))]
    if joined > len(machines):  # all have come, and the head is one more
        return []
    return machines if all(machines) else None  # what a machine of one's own has is not known before it joins


def room_for(sweep: SweepFile) -> int:
    """How many runs find room at a time; one more where the cluster grows: it is what makes it grow."""
    if sweep.concurrent is not None:
        return sweep.concurrent
    needed = needed_by_worker(sweep)
    room = 0
    for machine in alive():
        room += min(int(machine.get(kind, 0) / amount + 1e-6) for kind, amount in needed.items() if amount)
    return max(1, room // sweep.workers_per_trial + grows())


def alive() -> list[dict[str, float]]:
    """The resources of each machine of the cluster."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def grows() -> bool:
    """Whether the cluster starts machines by itself: theirs are then of the types that its configuration names."""
    from ray.autoscaler.v2.sdk import get_cluster_status

    if settings().ray_address == "local":
        return False
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    nodes = [*status.active_nodes, *status.idle_nodes]
    return any(node.ray_node_type_name != type_of_unmanaged(node.node_id) for node in nodes)
