"""Check that a port is free, before anything heavy starts."""

import errno
import socket

from voicechat_platform.errors import InputError


def require_free(port: int, host: str = "127.0.0.1") -> None:
    """Check that the service can listen on a port.

    Raises:
        InputError: another process listens there, or this machine does not have the address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise InputError(f"port {port} is in use; choose another with --port") from error
            raise InputError(f"cannot listen on {host}, port {port}: {error.strerror}") from error
