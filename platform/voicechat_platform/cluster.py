"""Join or start Ray."""

import logging
import signal
from pathlib import Path

from voicechat_platform.errors import InputError
from voicechat_platform.settings import settings


def start_ray(wheel: Path | None = None) -> None:
    """Join the cluster that the settings name, or start a local Ray; do nothing if Ray is already initialized.

    Args:
        wheel: this project's code for the workers of a cluster; the libraries are installed on their machines.

    Raises:
        InputError: there is no cluster at that address, or it refuses this user.
    """
    import ray
    from ray._private import services

    if ray.is_initialized():
        return
    address = settings().ray_address
    if address != "local":
        code = {"py_modules": [str(wheel)]} if wheel else None
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=code)
        except (ConnectionError, RuntimeError, ray.exceptions.AuthenticationError) as error:
            raise InputError(
                f"no Ray answers at {address!r} ({str(error).partition(chr(10))[0]}): start the cluster, run this on "
                f"its head, and see that this user has the cluster's token (~/.ray/auth_token)"
            ) from error
    else:
        # Ray puts the machine's address on the network in the place of 127.0.0.1, and would listen there. It has no
        # public name for this one, nor for `_node_ip_address` (read in Ray 2.60.0).
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
        signal.signal(signal.SIGTERM, terminate)  # Ray installs its own handler, which leaves Serve running


def stop_ray() -> None:
    """Leave the cluster, or stop the Ray that `start_ray` started, with all its processes."""
    import ray

    ray.shutdown()
