"""Every private name of Ray Serve that this package uses, for what Serve has no setting.

Read in Ray 2.60.0. pyproject.toml allows no later minor version, and tests/serve/test_private_names.py names what a
later one has lost.
"""

import ray
from ray.serve._private import replica
from ray.serve._private.constants import SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER

TIMEOUT_HEADER = SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER.encode()
"""In it Serve's proxy reads the time limit of one request, in seconds; 0: none."""

LOOPBACK = "127.0.0.1"


def listen_where_ray_listens() -> None:
    """Called first in every deployment's constructor, before its replica opens the port for calls between replicas.

    Serve opens that port on every address of the machine. Its calls need Ray's token, but on a Ray of our own nobody
    outside has business there.
    """
    if ray.util.get_node_ip_address() != LOOPBACK:
        return  # a cluster: the other machines must reach it
    open_port = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: open_port(server, address.replace("[::]", LOOPBACK))
