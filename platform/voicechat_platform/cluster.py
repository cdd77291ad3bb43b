"""Joining or starting Ray."""

import logging
import signal

from voicechat_platform.settings import settings


def start_ray() -> None:
    """Join the cluster that the settings name, or start a Ray of our own; nothing if that has been done."""
    import ray
    from ray._private import services

    if ray.is_initialized():
        return
    address = settings().ray_address
    if address != "local":
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    else:
        # Ray puts the machine's address on the network in the place of 127.0.0.1, and would listen there.
        services.resolve_ip_for_localhost = lambda host: host
        terminate = signal.getsignal(signal.SIGTERM)
        ray.init(
            address="local",
            num_cpus=settings().cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address="127.0.0.1",
        )
        signal.signal(signal.SIGTERM, terminate)  # Ray puts one of its own, which leaves Serve running


def stop_ray() -> None:
    """Leave the cluster, or end the Ray that `start_ray` started with every process of it."""
    import ray

    ray.shutdown()
