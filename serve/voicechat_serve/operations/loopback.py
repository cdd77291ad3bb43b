"""Keeps the ports of Serve's replicas on loopback where the whole of Ray is."""

import ray
from ray.serve._private import replica

LOOPBACK = "127.0.0.1"


def listen_where_ray_listens() -> None:
    """Called first in every deployment's constructor, before its replica opens the port for calls between replicas.

    Serve opens that port on every address of the machine and has no setting for it. Its calls need Ray's token, but on
    a Ray of our own nobody outside has business there.
    """
    if ray.util.get_node_ip_address() != LOOPBACK:
        return  # a cluster: the other machines must reach it
    open_port = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: open_port(server, address.replace("[::]", LOOPBACK))
