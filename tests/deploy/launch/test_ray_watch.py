"""A process whose Ray ends first ends, too, and leaves no proxy on the port. Ray is played by `sleep` in its names."""

import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.ray

NODE = "4242"
PROGRAM = """
    import subprocess, sys, time
    from types import SimpleNamespace
    import ray
    control, proxy, node = sys.argv[1:]
    ray.get_runtime_context = lambda: SimpleNamespace(get_node_id=lambda: node)
    ray.shutdown = lambda: print("shut down", flush=True)
    from draftpick.deploy.launch.ray_watch import until_shutdown
    subprocess.Popen([control, "100"], stdout=subprocess.DEVNULL)
    subprocess.Popen([proxy, "100", node], stdout=subprocess.DEVNULL, start_new_session=True)
    with until_shutdown(owned=True):
        print("watched", flush=True)
        sys.stdin.readline()
"""


@pytest.mark.parametrize("regular", [False, True])
def test_what_ray_left_behind_is_ended(tmp_path: Path, regular: bool) -> None:
    sleep = shutil.which("sleep")
    assert sleep is not None
    for name in ("gcs_server", "haproxy"):
        shutil.copy(sleep, tmp_path / name)
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path / "gcs_server"), str(tmp_path / "haproxy")]
    began = time.monotonic()
    with subprocess.Popen([*command, NODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "watched\n"
        children = {child.name(): child for child in psutil.Process(process.pid).children()}
        if regular:
            process.stdin.write("\n")
            process.stdin.flush()
        else:
            children["gcs_server"].kill()
        assert process.wait(20) == (0 if regular else 1)
        assert process.stdout.read() == ("shut down\n" if regular else "")
    assert time.monotonic() - began < 20
    _, left = psutil.wait_procs([children["haproxy"]], 5)
    for child in children.values():
        if child.is_running():
            child.kill()
    assert not left
