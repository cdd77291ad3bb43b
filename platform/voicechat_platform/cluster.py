"""Joining or starting Ray."""

import logging
import os
import signal

from voicechat_platform.settings import settings

# Read by Ray when it is imported and when its processes start.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def start_ray() -> None:
    """Join the cluster that the settings name, or start a Ray of our own; nothing if that has been done."""
    import ray

    if not ray.is_initialized():
        terminate = signal.getsignal(signal.SIGTERM)
        ray.init(
            address=settings().ray_address,
            **({"num_cpus": settings().cpus, "include_dashboard": False} if settings().ray_address == "local" else {}),
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        signal.signal(signal.SIGTERM, terminate)  # Ray puts one of its own, which leaves Serve running


def stop_ray() -> None:
    """Leave the cluster, or end the Ray that `start_ray` started with every process of it."""
    import ray

    ray.shutdown()
