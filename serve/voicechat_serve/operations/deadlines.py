"""A deadline for a call through a deployment's handle."""

import asyncio
from typing import Any

from ray.serve.handle import DeploymentResponse


class LateError(TimeoutError):
    """A replica did not answer in time."""


async def answer_in_time(response: DeploymentResponse, within_s: float) -> Any:
    """What a replica's method returns; leaving early cancels what the replica is doing.

    Raises: what the method raises; LateError: it took longer than `within_s`.
    """
    try:
        async with asyncio.timeout(within_s) as patience:
            try:
                return await response
            except asyncio.CancelledError:
                response.cancel()  # otherwise the replica goes on with what nobody waits for
                raise
    except TimeoutError:
        if patience.expired():
            raise LateError(f"no answer within {within_s:g} s") from None
        raise
