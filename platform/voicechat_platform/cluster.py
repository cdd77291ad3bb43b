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
    """A Ray of our own on this machine, unless this process is connected to one already."""
    import ray

    if not ray.is_initialized():
        terminate = signal.getsignal(signal.SIGTERM)
        ray.init(
            address="local",
            num_cpus=settings().cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        signal.signal(signal.SIGTERM, terminate)  # Ray puts one of its own, which leaves Serve running


def stop_ray() -> None:
    """End the Ray that `start_ray` started, with every process of it."""
    import ray

    ray.shutdown()
