import socket
from pathlib import Path

from draftpick.deploy.launch.ports import free_port


def test_a_port_is_free_and_none_that_the_kernel_gives_away() -> None:
    port = free_port()
    assert port < int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", port))
        listening.listen()
        assert port not in [free_port() for _ in range(20)]
