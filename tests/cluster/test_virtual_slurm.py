"""The virtual Slurm keeps its ports to itself, so that several may run at a time."""

import socket

from tests.cluster.virtual_slurm import NODES, own_ports


def test_two_of_them_share_no_port():
    with own_ports() as first, own_ports() as second:
        assert not {*range(first - 1, first + NODES + 1)} & {*range(second - 1, second + NODES + 1)}
    with own_ports() as again:
        assert again == first, "what is let go of is there for the next one"


def test_a_port_that_somebody_listens_on_is_left_alone():
    with own_ports() as first:
        pass
    with socket.socket() as somebody:
        somebody.bind(("127.0.0.1", first + NODES))
        with own_ports() as other:
            assert other > first + NODES
