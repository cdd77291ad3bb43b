"""Restrict the ports of Serve's replicas to loopback if all of Ray runs there."""

import ray
from ray.serve._private import replica

LOOPBACK = "127.0.0.1"


def listen_where_ray_listens() -> None:
    """Restrict the port for calls between replicas; each deployment's constructor calls this first, before it opens.

    Serve opens that port on every address of the machine and has no setting for it. Its calls need Ray's token, but on
    a local Ray no other machine needs access.
    """
    if ray.util.get_node_ip_address() != LOOPBACK:
        return  # on a cluster the other machines must reach it
    open_port = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: open_port(server, address.replace("[::]", LOOPBACK))
