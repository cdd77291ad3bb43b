"""What the machines can give to a sweep's runs."""

import logging

import ray

from voicechat_platform.errors import InputError
from voicechat_platform.settings import settings
from voicechat_tune.sweep_file import SweepFile

log = logging.getLogger(__name__)


def check_resources(sweep: SweepFile) -> None:
    """
    Raises:
        InputError: no machine can ever give a run what it asks for; Ray would wait for it for ever. A cluster that
            grows may have to start one first, and is given the time.
    """
    needed = {"CPU": sweep.cpus_per_trial, "GPU": sweep.gpus_per_trial}
    machines = alive()
    if any(all(machine.get(kind, 0) >= amount for kind, amount in needed.items()) for machine in machines):
        total = {kind: sum(machine.get(kind, 0) for machine in machines) for kind in needed}
        short = [kind for kind, amount in needed.items() if amount * sweep.workers_per_trial > total[kind]]
        if not short or grows():
            return
        kind = short[0]
        raise InputError(
            f"workers_per_trial ({sweep.workers_per_trial}) asks for {needed[kind] * sweep.workers_per_trial:g} "
            f"{kind}s together, but there are {total[kind]:g}: ask for fewer"
        )
    if grows():
        log.info("no machine has room for a run yet: waiting for the cluster to grow")
        return
    where = "this machine has" if settings().ray_address == "local" else "the cluster's largest machine has"
    for kind, amount in needed.items():
        most = max(machine.get(kind, 0) for machine in machines)
        if amount > most:
            raise InputError(
                f"{kind.lower()}s_per_trial is {amount:g}, but {where} {most:g} {kind}s: lower it, or join a larger "
                f"cluster with --address"
            )
    both = f"{sweep.cpus_per_trial:g} CPUs and {sweep.gpus_per_trial:g} GPUs"
    raise InputError(f"no machine has both {both}: ask for less")


def room_for(sweep: SweepFile) -> int:
    """How many runs find room at a time; one more where the cluster grows: it is what makes it grow."""
    if sweep.concurrent is not None:
        return sweep.concurrent
    needed = {"CPU": sweep.cpus_per_trial, "GPU": sweep.gpus_per_trial}
    room = 0
    for machine in alive():
        room += min(int(machine.get(kind, 0) / amount + 1e-6) for kind, amount in needed.items() if amount)
    return max(1, room // sweep.workers_per_trial + grows())


def alive() -> list[dict[str, float]]:
    """The resources of each machine of the cluster."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def grows() -> bool:
    """Whether the cluster starts machines by itself: theirs are then of the types that its configuration names."""
    from ray.autoscaler._private.util import format_readonly_node_type
    from ray.autoscaler.v2.sdk import get_cluster_status

    if settings().ray_address == "local":
        return False
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    nodes = [*status.active_nodes, *status.idle_nodes]
    return any(node.ray_node_type_name != format_readonly_node_type(node.node_id) for node in nodes)
