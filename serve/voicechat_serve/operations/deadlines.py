"""A deadline for a call through a deployment's handle."""

import asyncio
from typing import Any

from ray.serve.handle import DeploymentResponse


class LateError(TimeoutError):
    """A replica did not respond in time."""


async def answer_in_time(response: DeploymentResponse, within_s: float) -> Any:
    """Return the result of a replica's method; a cancellation also cancels the replica's work.

    Raises: the errors of the method; LateError: it took longer than `within_s`.
    """
    try:
        async with asyncio.timeout(within_s) as patience:
            try:
                return await response
            except asyncio.CancelledError:
                response.cancel()  # otherwise the replica continues work that nobody needs
                raise
    except TimeoutError:
        if patience.expired():
            raise LateError(f"no answer within {within_s:g} s") from None
        raise
