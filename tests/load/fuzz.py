"""Input that nobody meant: `python -m tests.load.fuzz` (20,000 cases).

schemathesis makes requests of the router's OpenAPI description, right ones and wrong ones, and hypothesis makes bodies,
event streams, configurations and records. Nothing of it may cause a 5xx, a hang, another exception than those that are
promised, or a request without its record.
"""

import argparse
import asyncio
import tempfile
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from hypothesis.strategies import SearchStrategy
from schemathesis import GenerationMode

from draftpick.deploy.console import out, progress_bar
from draftpick.deploy.workflows.results import write
from draftpick.engines.errors import ConfigError
from draftpick.policy_training.evaluation.evaluate import Interval
from draftpick.router.config.router_config import load_config
from draftpick.router.records import encode, read
from draftpick.router.request.meter import EventStream, Meter
from tests.fleet import CHAT, COMPLETIONS, FAST, RESPONSES, Routed, Servers, asked, routed

ProgressCallback = Callable[[], None]
_HANG_S = 20.0
JSON: SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
_FIELDS = st.sampled_from(
    ["model", "messages", "prompt", "input", "stream", "stream_options", "max_tokens", "temperature", "tools", "n"]
)


class Fuzz:
    """Counts cases and what went wrong. `number`: cases of each part, by its share of the whole."""

    def __init__(self, cases: int, seed: int, on_progress: ProgressCallback) -> None:
        self._cases, self._seed, self._told = cases, seed, on_progress
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []

    def run(self, part: str, share: float, strategy: SearchStrategy[Any], check: Callable[[Any], str | None]) -> None:
        """`check` every example of a part; it says what is wrong with one."""

        def test(example: Any) -> None:
            self.counts["cases"] += 1
            self._told()
            if wrong := check(example):
                self.counts["server_errors" if wrong.startswith("5") else "faults"] += 1
                self.faults.append(f"{part}: {wrong}")

        profile = settings(
            max_examples=max(1, round(share * self._cases)), deadline=None, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        seed(self._seed)(profile(given(strategy)(test)))()

    # --- over HTTP ---

    def requests(self, url: str, share: float) -> None:
        """Requests of the description: as it says, and against it."""
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        operations = [found.ok() for found in schema.get_all_operations()]
        for operation in operations:
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                try:
                    strategy = operation.as_strategy(generation_mode=mode)
                    self.run(operation.label, share / len(operations) / 2, strategy, self._call)
                except (schemathesis.errors.SchemathesisError, Unsatisfiable):
                    continue  # an operation without parameters cannot be asked wrongly

    def _call(self, case: Any) -> str | None:
        try:
            answer = case.call(timeout=_HANG_S)
        except schemathesis.errors.SchemathesisError:
            return None  # not even schemathesis could send it
        except Exception as error:  # requests' errors: a header that no client can send, or a hang
            return None if "nvalid" in type(error).__name__ else f"{type(error).__name__}"
        return _wrong(answer.status_code, answer.content)

    def bodies(self, client: httpx.Client, share: float) -> None:
        """Bodies of anything, and good ones with one field changed."""
        path = st.sampled_from([CHAT, COMPLETIONS, RESPONSES])
        spoilt = st.builds(
            lambda api, field, value: (api, orjson.dumps({**asked(api), field: value})), path, _FIELDS, _able
        )
        cut = st.builds(lambda api, at: (api, orjson.dumps(asked(api))[:at]), path, st.integers(0, 80))
        any_json = st.builds(lambda api, value: (api, orjson.dumps(value)), path, _able)
        strategy = st.tuples(path, st.binary(max_size=200)) | spoilt | cut | any_json

        def check(example: tuple[str, bytes]) -> str | None:
            answer = client.post(example[0], content=example[1], headers={"content-type": "application/json"})
            return _wrong(answer.status_code, answer.content)

        self.run("bodies", share, strategy, check)

    # --- inside ---

    def events(self, share: float) -> None:
        """Streams of anything, cut anywhere: the same bytes come out."""
        piece = st.binary(max_size=60) | st.sampled_from(
            [
                b"data: [DONE]\n\n",
                b"\n\n",
                b"\r\n\r\n",
                b'data: {"usage": {}, "choices": []}\n\n',
                b"data: {",
                b'"usage":',
            ]
        )

        def check(pieces: list[bytes]) -> str | None:
            meter = Meter(0.0)
            stream = EventStream(meter, hide_usage=False)
            came = b"".join([stream.feed(one) for one in pieces]) + stream.end()
            meter.outcome("ok")
            return None if came == b"".join(pieces) else "bytes changed"

        self.run("events", share, st.lists(piece, max_size=12), check)

    def configurations(self, share: float) -> None:
        """Configurations of anything, and a good one with fields changed."""
        engine = st.fixed_dictionaries(
            {"name": st.text(max_size=5)}, optional={"kind": JSON, "drafter": JSON, "url": JSON, "deployment": JSON}
        )
        router = st.dictionaries(
            st.sampled_from(["policy", "default_engine", "admission", "keys", "breaker", "paths", "records", "x"]), JSON
        )
        shaped = st.fixed_dictionaries({"engines": st.lists(engine, max_size=3) | JSON, "router": router | JSON})

        def check(data: Any) -> str | None:
            try:
                load_config(data)
            except ConfigError:
                return None
            return None

        self.run("configurations", share, st.dictionaries(st.text(max_size=8), JSON) | shaped, check)

    def records(self, folder: Path, share: float) -> None:
        """Files of anything, and good records with bytes changed: read, or refused with ValueError."""
        from tests.router.test_records import record

        good = encode(record("r"))
        flipped = st.builds(
            lambda at, new: good[:at] + new + good[at + 1 :], st.integers(0, len(good)), st.binary(max_size=3)
        )
        line = (
            st.binary(max_size=80)
            | flipped
            | st.just(good)
            | JSON.filter(_dumps).map(lambda v: orjson.dumps(v) + b"\n")
        )

        def check(lines: list[bytes]) -> str | None:
            (folder / "records-1.jsonl").write_bytes(b"".join(lines))
            try:
                list(read(folder))
            except ValueError:
                return None
            return None

        self.run("records", share, st.lists(line, max_size=5), check)


def _dumps(value: Any) -> bool:
    try:
        orjson.dumps(value)
    except orjson.JSONEncodeError:
        return False
    return True


_able = JSON.filter(_dumps)


def _wrong(status: int, body: bytes) -> str | None:
    """What is wrong with an answer, if something is."""
    if status >= 500:
        return f"{status} {body[:100]!r}"
    if status >= 400:
        try:
            error = orjson.loads(body)["error"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return None if status in (404, 405) else f"error body of {status} is none: {body[:100]!r}"
        if not {"message", "type", "param", "code"} <= set(error):
            return f"error body of {status} lacks fields"
    return None


@contextmanager
def served(folder: Path) -> Iterator[Routed]:
    """A router over one fast mock engine, in a thread of its own."""
    ready, done, shared = threading.Event(), threading.Event(), list[Routed]()

    async def serve() -> None:
        servers = Servers()
        async with routed(servers, folder, {"a": FAST, "b": FAST}) as app:
            shared.append(app)
            ready.set()
            await asyncio.to_thread(done.wait)
        await servers.drain()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    ready.wait(30)
    try:
        yield shared[0]
    finally:
        done.set()
        thread.join(30)


def run_fuzz(cases: int, seed: int, on_progress: ProgressCallback = lambda: None) -> Fuzz:
    """All parts; also counts attempts that left no record."""
    fuzz = Fuzz(cases, seed, on_progress)
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(scratch)
        with (
            served(folder / "records") as app,
            httpx.Client(base_url=app.server.url, timeout=_HANG_S) as client,
        ):
            fuzz.requests(app.server.url, 0.4)
            fuzz.bodies(client, 0.15)
        # Attempts whose client left end with the router.
        fuzz.counts["unrecorded_attempts"] = app.num_attempts - len(list(read(folder / "records")))
        (folder / "damaged").mkdir()
        fuzz.events(0.15)
        fuzz.configurations(0.15)
        fuzz.records(folder / "damaged", 0.15)
    return fuzz


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=25_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json-file", type=Path)
    args = parser.parse_args()
    with progress_bar() as bar:
        row = bar.add_task("cases", total=args.cases)
        fuzz = run_fuzz(args.cases, args.seed, lambda: bar.advance(row))
    figures = {name: fuzz.counts[name] for name in ("cases", "server_errors", "faults", "unrecorded_attempts")}
    out.print(figures, highlight=False)
    for fault, count in Counter(fuzz.faults).most_common(10):
        out.print(f"{count:>6}  {fault}", highlight=False, markup=False)
    if args.json_file:
        write(args.json_file, figures["cases"], {name: Interval(*(3 * (float(v),))) for name, v in figures.items()})
    raise SystemExit(bool(fuzz.faults or figures["unrecorded_attempts"]))


if __name__ == "__main__":
    main()
