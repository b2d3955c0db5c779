"""The page's files: what they are sent as, how they are kept, and that nothing else can be had in their place."""

import asyncio
import gzip
import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from draftpick.router.http.ui import FOLDER
from tests.fleet import FAST, Routed, StartRouter

FILES = sorted(path.name for path in FOLDER.iterdir())
SCRIPTS = [name for name in FILES if name.endswith(".js")]
NO_OTHER_HOST = re.compile(r"(?:https?:)?//(?!www\.w3\.org/2000/svg)[\w.-]+\.\w")
NOTHING, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
over_http = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "keys.yaml").write_text("[]")
    return {"file": str(tmp_path / "keys.yaml")}


async def page(app: Routed, path: str, method: str = "GET", **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await app.client.request(method, path, headers=named)


# --- over HTTP ---

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}


@over_http
async def test_every_file_comes_as_what_it_is(router_app: StartRouter) -> None:
    app = await router_app({"a": FAST})
    for name in FILES:
        answer = await page(app, f"/ui/{name}")
        assert answer.status_code == 200
        assert answer.content == (FOLDER / name).read_bytes()
        assert answer.headers["content-type"] == TYPES[Path(name).suffix]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'self';")
        assert not {"'unsafe-inline'", "'unsafe-eval'", "*", "http:", "https:", "data:"} & set(policy.split())


@over_http
async def test_the_page_needs_no_key_and_holds_no_data(router_app: StartRouter, keys: dict[str, str]) -> None:
    app = await router_app({"a": FAST}, keys=keys)
    answer = await page(app, "/ui/")
    assert answer.content == (FOLDER / "index.html").read_bytes()
    assert (await page(app, "/v1/route/state")).status_code == 401


@over_http
async def test_without_its_last_slash_it_leads_there_below_any_prefix(router_app: StartRouter) -> None:
    answer = await page(await router_app({"a": FAST}), "/ui")
    assert (answer.status_code, answer.headers["location"]) == (308, "ui/")


@over_http
async def test_it_is_kept_by_a_browser_until_it_changes(router_app: StartRouter) -> None:
    app = await router_app({"a": FAST})
    etag = (await page(app, "/ui/app.js")).headers["etag"]
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = await page(app, "/ui/app.js", if_none_match=known)
        assert (again.status_code, again.content) == (304, b"")
    changed = await page(app, "/ui/app.js", if_none_match='"other"')
    assert (changed.status_code, changed.headers["cache-control"]) == (200, "no-cache")


@over_http
async def test_it_comes_compressed_to_who_reads_that(router_app: StartRouter) -> None:
    app, body = await router_app({"a": FAST}), (FOLDER / "app.js").read_bytes()
    plain = await page(app, "/ui/app.js", accept_encoding="identity")
    assert (plain.content, int(plain.headers["content-length"])) == (body, len(body))
    small = await page(app, "/ui/app.js", accept_encoding="br, gzip")
    assert (small.headers["content-encoding"], small.content) == ("gzip", body)
    assert int(small.headers["content-length"]) == len(gzip.compress(body, 9, mtime=0)) < len(body) / 2


@over_http
async def test_head_tells_the_same_without_a_body(router_app: StartRouter) -> None:
    app = await router_app({"a": FAST})
    for path in ("/ui", "/ui/", "/ui/style.css"):
        got, head = await page(app, path), await page(app, path, "HEAD")
        assert head.content == b""
        assert head.status_code == got.status_code
        told = {name: value for name, value in head.headers.items() if name != "date"}
        assert told == {name: value for name, value in got.headers.items() if name != "date"}


OUTSIDE = [
    "/ui/../ui.py",
    "/ui/..%2fui.py",
    "/ui/%2e%2e/ui.py",
    "/ui//etc/passwd",
    "/ui/./app.js",
    "/ui/app.js/",
    "/ui/x.js",
]


@over_http
async def test_nothing_else_can_be_had(router_app: StartRouter, keys: dict[str, str]) -> None:
    app = await router_app({"a": FAST}, keys=keys)
    url = httpx.URL(app.server.url)
    for path in OUTSIDE:
        reader, writer = await asyncio.open_connection(url.host, url.port)  # as it stands: clients tidy paths
        writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        status = (await reader.readline()).split()[1]
        writer.close()
        assert status in (b"400", b"401"), f"{path} went the way of a request to an engine, which needs a key"


@over_http
async def test_it_takes_no_other_method(router_app: StartRouter, keys: dict[str, str]) -> None:
    app = await router_app({"a": FAST}, keys=keys)
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        answer = await page(app, "/ui/", method)
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")


# --- the files themselves ---


@pytest.mark.parametrize("name", FILES)
def test_no_file_needs_another_host_or_inline_code(name: str) -> None:
    text = (FOLDER / name).read_text()
    assert not NO_OTHER_HOST.findall(text)
    if name.endswith(".html"):
        assert not re.findall(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", text)
    else:
        assert not re.findall(r"\b(?:eval|innerHTML|outerHTML|insertAdjacentHTML|document\.write)\b", text)


def test_all_that_is_imported_or_linked_is_there() -> None:
    for name in FILES:
        text = (FOLDER / name).read_text()
        linked = re.findall(r'(?:from|src=|href=)\s*"(?:\./)?([\w.-]+\.(?:js|css|svg))"', text)
        assert set(linked) <= set(FILES), name


def test_every_element_that_scripts_ask_for_is_there() -> None:
    ids = set(re.findall(r'id="([\w-]+)"', (FOLDER / "index.html").read_text()))
    for name in SCRIPTS:
        assert set(re.findall(r'\$\("([\w-]+)"\)', (FOLDER / name).read_text())) <= ids, name


node = pytest.mark.skipif(shutil.which("node") is None, reason="no node here to run the scripts' own functions")


def said(expression: str) -> str:
    """What an expression over `text.js` gives."""
    script = f"import * as text from '{(FOLDER / 'text.js').as_uri()}'; console.log(String({expression}));"
    command = ["node", "--no-warnings", "--experimental-default-type=module", "--input-type=module", "-e", script]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


@node
def test_numbers_read_as_people_write_them() -> None:
    seconds = [None, 0, 0.00512, 0.0312, 0.314, 9.99, 12.4, 200, 7200]
    assert said(f"{str(seconds).replace('None', 'null')}.map(text.seconds).join('|')") == (
        f"{NOTHING}|0 ms|5.1 ms|31 ms|0.31 s|9.99 s|12 s|3 min|2 h"
    )
    assert (
        said("[null, 0, 0.004, -0.031, 0.22, 1].map((x) => text.percent(x)).join('|')")
        == f"{NOTHING}|0 %|0.4 %|{MINUS}3.1 %|22 %|100 %"
    )
    assert said("[0.031, -0.2, 0].map((x) => text.percent(x, true)).join('|')") == f"+3.1 %|{MINUS}20 %|0 %"
    assert said("[text.counted(1, 'request'), text.counted(1200, 'request')].join('|')") == "1 request|1,200 requests"
    assert said("[0, 30, 600, 90000].map((s) => text.ago(0, 1000 * s)).join('|')") == "now|30 s ago|10 min ago|25 h ago"


@node
def test_standings_read_as_words() -> None:
    well = "{replicas: 2, breakers: {closed: 2}, quarantine_state: 'ok', ineligible_reason: null}"
    cases = ["", "breakers: {closed: 1, open: 1}", "quarantine_state: 'probed'"]
    cases += [f"ineligible_reason: '{reason}'" for reason in ("breaker_open", "full", "of_its_own")]
    told = said(
        f"[{','.join(f'{{...{well}, {one}}}' for one in cases)}].map((s) => text.standing(s).join(' ')).join('|')"
    )
    assert told == "ok good|1 of 2 up warn|probed warn|breaker open bad|full warn|of its own bad"
