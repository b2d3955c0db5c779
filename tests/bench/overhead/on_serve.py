"""One Ray with two applications, until it is ended: Draftpick, and Ray Serve LLM's own under /llm."""

import json
import signal
import sys
import threading
from pathlib import Path

from ray import serve

from draftpick.deploy.config import resolve
from draftpick.deploy.launch.ray_serve import running
from tests.bench.overhead.ray_llm import application


def main() -> None:
    config = resolve(json.loads(Path(sys.argv[1]).read_text()))
    with running(config, port=int(sys.argv[2])):
        serve.run(application(), name="llm", route_prefix="/llm")
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        print("ready", flush=True)
        stop.wait()


if __name__ == "__main__":
    main()
