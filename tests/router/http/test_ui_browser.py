"""The page as somebody sees it, in a real browser: what it shows and follows, keys, shortcuts, and who can use it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import yaml

from draftpick.engines.http.server import LocalServer
from draftpick.engines.mock.app import mock_app
from draftpick.router.http.auth import digest
from draftpick.router.policies.baselines import UniformPolicy
from draftpick.router.registry.registry import Registry
from tests import browser
from tests.browser import Tab
from tests.fleet import CHAT, FAST, MODEL, SLOW, Routed, StartRouter, asked
from tests.leaks import PROMPT
from tests.router.registry.test_registry_service import ARMS, fixed_policy, served

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(browser.executable() is None, reason="no Chromium here"),
]

KEY = "dp-secret-of-an-admin"
TWO = {"plain": FAST, "ngram": FAST}
ROWS = "document.querySelectorAll('.engines tbody tr').length"
SECTIONS = ["engines", "kinds", "decisions", "try", "policies", "events"]
needs_axe = pytest.mark.skipif(not browser.has_axe(), reason="axe-core is not installed")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opened() -> AsyncIterator[Tab]:
    async with browser.tab(hurry=10) as page:
        yield page


@pytest_asyncio.fixture(loop_scope="module")
async def page(opened: Tab) -> AsyncIterator[Tab]:
    """A page of which nobody is left: no key, no theme, the size of a desk.

    It must have told of no error, and have asked nobody but this machine.
    """
    opened.told.clear()
    opened.asked.clear()
    await opened.look(1280, 900)
    yield opened
    told = [line for line in opened.told if not line.startswith("Failed to load resource")]
    await opened.run("sessionStorage.clear(); localStorage.clear()")
    assert not told, told
    assert all(host.startswith("127.0.0.1:") for host in opened.hosts()), opened.hosts()


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "keys.yaml").write_text(
        yaml.safe_dump([{"name": "boss", "sha256": digest(KEY), "scopes": ["chat", "admin"]}])
    )
    return {"file": str(tmp_path / "keys.yaml")}


async def uniform(router_app: StartRouter, **more: Any) -> Routed:
    return await router_app(TWO, policy=UniformPolicy(("plain", "ngram")), **more)


async def type_into(page: Tab, selector: str, text: str) -> None:
    await page.run(f"document.querySelector('{selector}').focus()")
    await page.command("Input.insertText", text=text)


# --- what it shows ---


async def test_an_idle_router_shows_its_engines_and_says_what_is_empty(page: Tab, router_app: StartRouter) -> None:
    app = await uniform(router_app)
    await page.open(f"{app.server.url}/ui/")
    await page.until(f"{ROWS} === 2")
    assert await page.text("#status") == "Ready"
    assert "No requests yet" in await page.text("#kinds-body")
    assert "No decisions yet" in await page.text("#decisions-body")
    assert "No registry" in await page.text("#policies-body")
    assert "No events" in await page.text("#events-body")


async def test_traffic_appears_by_itself(page: Tab, router_app: StartRouter) -> None:
    app = await uniform(router_app)
    await page.open(f"{app.server.url}/ui/")
    await page.until(f"{ROWS} === 2")
    for _ in range(6):
        await app.post(headers={"x-request-id": "mine-12345"})
    await page.until("document.querySelectorAll('.decisions tbody tr').length === 6")
    assert "mine-123" in await page.text(".decisions tbody tr")
    assert PROMPT not in await page.text("body")
    assert "all requests" in await page.text(".kinds tbody")


async def test_polling_stops_while_hidden_or_paused(page: Tab, router_app: StartRouter) -> None:
    app = await uniform(router_app)
    await page.open(f"{app.server.url}/ui/")
    await page.until(f"{ROWS} === 2")
    asked = "performance.getEntriesByType('resource').filter((e) => e.name.endsWith('/state')).length"
    await page.run("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    before = await page.run(asked)
    await page.run("new Promise((done) => setTimeout(done, 2600))")
    assert await page.run(asked) == before
    await page.run("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
    await page.until(f"{asked} === {before} + 1")
    await page.click("#pause")
    assert "Paused" in await page.text("#status")
    assert await page.run("document.getElementById('pause').getAttribute('aria-pressed')") == "true"


async def test_an_engine_that_fails_is_seen(page: Tab, router_app: StartRouter) -> None:
    app = await uniform(router_app)
    app.replicas.by_arm["ngram"][0].breaker.trip()
    await page.open(f"{app.server.url}/ui/")
    await page.until(f"{ROWS} === 2")
    assert "breaker open" in await page.text(".engines tbody tr:nth-child(2)")


# --- what it follows, without being loaded again ---

LOADED = "window.loadedOnce = true"
ABOUT = "document.getElementById('about').innerText"
PILL = "document.querySelector('.engines tbody tr:nth-child(2) .pill')"


async def test_an_engine_that_stops_and_comes_back_is_seen(page: Tab, router_app: StartRouter) -> None:
    breaker = {"base_ejection_s": 0.3, "max_ejection_s": 0.5, "slow_start_s": 1}
    app = await uniform(router_app, breaker=breaker)
    asking = asyncio.create_task(ask_on(app.client))
    await page.open(f"{app.server.url}/ui/")
    await page.until(f"{PILL}?.innerText === 'ok'")
    await page.run(LOADED)
    stopped = app.engines["ngram"]
    await stopped.server.drain(0.0)
    await page.until(f"['breaker open', 'unreachable', '0 of 1 up'].includes({PILL}.innerText)")
    assert await page.run(f"{PILL}.dataset.tone") in ("bad", "warn")
    assert await page.text("#status") == "Ready"
    again = LocalServer(mock_app(FAST, model=MODEL, engine="ngram"), port=int(stopped.url.rsplit(":", 1)[1]))
    await again.start()
    await page.until(f"{PILL}.innerText === 'ok'", timeout_s=20)
    assert await page.run("window.loadedOnce")
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await again.drain(0.0)


async def ask_on(client: httpx.AsyncClient) -> None:
    """Ask until cancelled; each request must be answered whole."""
    while True:
        assert (await client.post(CHAT, json=asked())).status_code == 200
        await asyncio.sleep(0.02)


# --- try a prompt ---


async def test_a_prompt_is_explained_and_answered(page: Tab, router_app: StartRouter) -> None:
    app = await uniform(router_app)
    await page.open(f"{app.server.url}/ui/")
    await page.until(f"{ROWS} === 2")
    await page.press("/")
    await page.command("Input.insertText", text="hello")
    await page.click("#explain")
    await page.until("document.querySelector('.tipped')")
    assert "predicts no times" in await page.text(".tipped")
    assert app.engines["plain"].engine.started + app.engines["ngram"].engine.started == 0
    await page.click("#ask")
    await page.until("document.getElementById('try-status').innerText.includes('tokens/s')")
    assert await page.text("#answer")
    assert app.engines["plain"].engine.started + app.engines["ngram"].engine.started == 1


async def test_an_answer_can_be_stopped(page: Tab, router_app: StartRouter) -> None:
    app = await router_app({"plain": SLOW})
    await page.open(f"{app.server.url}/ui/")
    await page.until(f"{ROWS} === 1")
    await type_into(page, "#prompt", "hello")
    await page.click("#ask")
    await page.until("document.getElementById('answer').innerText.length > 3")
    await page.click("#ask")
    await page.until("document.getElementById('try-status').innerText === 'Stopped.'")
    assert await page.text("#ask") == "Ask"


async def test_a_refusal_is_said_in_words(page: Tab, router_app: StartRouter) -> None:
    app = await uniform(router_app)
    await page.open(f"{app.server.url}/ui/")
    await page.until(f"{ROWS} === 2")
    for arm in TWO:
        app.replicas.update(arm, [])
    await type_into(page, "#prompt", "hello")
    await page.click("#explain")
    await page.until("document.getElementById('try-status').innerText.includes('no engine is ready')")
    assert await page.run("document.getElementById('try-status').dataset.tone") == "bad"


async def test_an_unreachable_router_is_reported(page: Tab, router_app: StartRouter) -> None:
    app = await uniform(router_app)
    await page.open(f"{app.server.url}/ui/")
    await page.until(f"{ROWS} === 2")
    await app.server.drain(0.0)
    await page.until("document.getElementById('status').innerText.includes('is not reachable, last update')")
    assert await page.run(ROWS) == 2


# --- keys ---


async def test_a_key_is_asked_for_kept_in_the_tab_and_nowhere_else(
    page: Tab, router_app: StartRouter, keys: dict[str, str]
) -> None:
    app = await uniform(router_app, keys=keys)
    await page.open(f"{app.server.url}/ui/")
    await page.until("document.getElementById('key-dialog').open")
    assert "requires a key" in await page.text("#key-why")
    assert await page.run(ROWS) == 0
    await page.command("Input.insertText", text="dp-guessed")
    await page.press("Enter")
    await page.until("document.getElementById('key-why').innerText.includes('is unknown')")
    await page.command("Input.insertText", text=KEY)
    await page.press("Enter")
    await page.until(f"{ROWS} === 2")
    assert await page.run("sessionStorage.getItem('draftpick.key')") == KEY
    assert KEY not in await page.run(
        "location.href + document.documentElement.outerHTML + JSON.stringify(localStorage)"
    )
    assert await page.run("document.getElementById('key-value').value") == ""
    await page.press("k")
    await page.until("document.getElementById('key-dialog').open")
    await page.click("button[value=forget]")
    await page.until(f"{ROWS} === 0 && document.getElementById('key-dialog').open")
    assert await page.run("sessionStorage.getItem('draftpick.key')") is None


# --- policies ---


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """`p0001` serves; `p0002` decides a tenth."""
    made = Registry(tmp_path / "registry")
    for arm in ARMS:
        made.add(fixed_policy(tmp_path / arm, arm), {"reason": f"<b>{arm}</b>"}, "test")
    made.promote("p0001", "test")
    made.set_canary_share("p0002", 0.1, "test", start=True)
    return made


async def test_a_policy_is_promoted_after_a_question_and_not_without(
    page: Tab, registry: Registry, tmp_path: Path, keys: dict[str, str]
) -> None:
    async with served(registry.path, tmp_path / "records", keys=keys) as (_, client):
        await page.open(f"{client.base_url}/ui/")
        await page.until("document.getElementById('key-dialog').open")
        await page.command("Input.insertText", text=KEY)
        await page.press("Enter")
        promote = "#policies-body [data-action=promote][data-id=p0002]"
        await page.until(f"document.querySelector('{promote}')")
        assert "<b>ngram</b>" in await page.text("#policies-body"), "text of others is text"
        await page.click(promote)
        await page.until("document.getElementById('confirm-dialog').open")
        assert "p0002 will decide all requests. A rollback activates p0001." in await page.text("#confirm-what")
        await page.press("Escape")
        await page.until("!document.getElementById('confirm-dialog').open")
        assert registry.state().active == "p0001"
        await page.click(promote)
        await type_into(page, "#confirm-reason", "looks good")
        await page.click("#confirm-do")
        await page.until("document.querySelector('#policies-body [data-action=rollback]')")
        state = registry.state()
        assert (state.active, state.history[-1].reason, state.history[-1].by) == ("p0002", "looks good", "key boss")
        await page.click("#policies-body [data-action=rollback]")
        await page.click("#confirm-do")
        await page.until("document.querySelector('#policies-body .head strong').innerText === 'p0001'")


async def test_a_promotion_elsewhere_is_seen(page: Tab, registry: Registry, tmp_path: Path) -> None:
    async with served(registry.path, tmp_path / "records") as (_, client):
        await page.open(f"{client.base_url}/ui/")
        await page.until("document.querySelector('#policies-body .head strong')?.innerText === 'p0001'")
        await page.run(LOADED)
        registry.promote("p0002", "retrain", "all gates passed")
        await page.until("document.querySelector('#policies-body .head strong').innerText === 'p0002'")
        await page.until(f"{ABOUT}.includes('policy fixed:ngram')")
        assert "all gates passed" in await page.run("document.getElementById('policies-body').textContent")
        await client.post(CHAT, json=asked())
        await page.until("document.querySelector('.decisions tbody .arm')?.innerText === 'ngram'")
        assert await page.run("window.loadedOnce")


async def test_without_keys_policies_are_seen_and_cannot_be_changed(
    page: Tab, registry: Registry, tmp_path: Path
) -> None:
    async with served(registry.path, tmp_path / "records") as (_, client):
        await page.open(f"{client.base_url}/ui/")
        await page.until("document.querySelector('#policies-body [data-action]')")
        assert await page.run("document.querySelectorAll('#policies-body button:not(:disabled)').length") == 0
        assert "Policies cannot be changed here" in await page.text("#policies-body")


# --- keyboard, themes, sizes ---


async def test_all_can_be_reached_by_keys(page: Tab, router_app: StartRouter) -> None:
    app = await uniform(router_app)
    await page.open(f"{app.server.url}/ui/")
    await page.until(f"{ROWS} === 2")
    await page.press("?")
    assert await page.run("document.getElementById('help-dialog').open")
    await page.press("Escape")
    await page.until("!document.getElementById('help-dialog').open")
    for i, section in enumerate(SECTIONS, start=1):
        await page.press(str(i))
        await page.until(f"document.activeElement.id === '{section}'")
    await page.run("document.activeElement.blur(); document.querySelector('.skip').focus()")
    order = []
    for _ in range(20):
        await page.press("Tab")
        order.append(await page.run("document.activeElement.id"))
        seen = "document.activeElement === document.body || getComputedStyle(document.activeElement).outlineStyle"
        assert await page.run(f"({seen}) !== 'none'"), f"the focus cannot be seen on {order[-1]!r}"
    found = [name for name in order if name in ("pause", "theme", "engines-body", "prompt", "explain", "ask")]
    assert found[:6] == ["pause", "theme", "engines-body", "prompt", "explain", "ask"]


async def test_shortcuts_leave_typing_alone(page: Tab, router_app: StartRouter) -> None:
    app = await uniform(router_app)
    await page.open(f"{app.server.url}/ui/")
    await page.until(f"{ROWS} === 2")
    await page.run("document.getElementById('prompt').focus()")
    for key in "pt?1":
        await page.press(key)
    assert await page.run("document.getElementById('prompt').value") == "pt?1"
    assert await page.run("document.getElementById('pause').getAttribute('aria-pressed')") == "false"


async def test_themes_follow_the_system_until_one_is_chosen(page: Tab, router_app: StartRouter) -> None:
    app = await uniform(router_app)
    dark = "getComputedStyle(document.body).backgroundColor === 'rgb(19, 21, 25)'"
    await page.look(1280, 900, "dark")
    await page.open(f"{app.server.url}/ui/")
    await page.until(f"{ROWS} === 2")
    assert await page.run(dark)
    await page.click("#theme")
    assert (await page.text("#theme"), await page.run(dark)) == ("Theme: light", False)
    await page.look(1280, 900, "light")
    await page.click("#theme")
    assert (await page.text("#theme"), await page.run(dark)) == ("Theme: dark", True)
    await page.open(f"{app.server.url}/ui/")
    assert await page.run(dark)


async def test_nothing_is_wider_than_the_screen(page: Tab, router_app: StartRouter) -> None:
    app = await uniform(router_app)
    for _ in range(3):
        await app.post()
    await page.open(f"{app.server.url}/ui/")
    await page.until("document.querySelectorAll('.decisions tbody tr').length === 3")
    await type_into(page, "#prompt", "hello")
    await page.click("#explain")
    await page.until("document.querySelector('.explained')")
    for width in (360, 700, 1024, 1920):
        await page.look(width, 800)
        assert await page.run("document.documentElement.scrollWidth") <= width


async def faults(page: Tab) -> list[browser.Fault]:
    """What axe-core finds wrong on a desk in light, and on a telephone in the dark."""
    await page.look(360, 900, "dark")
    dark = await page.faults()
    await page.look(1280, 900, "light")
    return dark + await page.faults()


@needs_axe
async def test_axe_finds_no_fault(page: Tab, router_app: StartRouter) -> None:
    app = await uniform(router_app)
    await page.open(f"{app.server.url}/ui/")
    await page.until(f"{ROWS} === 2")
    assert await faults(page) == [], "idle"
    for _ in range(3):
        await app.post()
    await app.post(headers={"x-draftpick-arm": "plain"}, model="another")
    app.replicas.by_arm["ngram"][0].breaker.trip()
    await type_into(page, "#prompt", "hello")
    await page.click("#explain")
    await page.until("document.querySelector('.explained')")
    await page.click("#ask")
    await page.until("document.getElementById('try-status').innerText.includes('tokens/s')")
    await page.until("document.querySelectorAll('.decisions tbody tr').length >= 4")
    assert await faults(page) == [], "with traffic"
    for key in "?k":
        await page.run("document.activeElement.blur()")
        await page.press(key)
        await page.until("document.querySelector('dialog[open]')")
        assert await faults(page) == [], f"the dialog of {key}"
        await page.press("Escape")
        await page.until("!document.querySelector('dialog[open]')")


@needs_axe
async def test_axe_finds_no_fault_in_policies(
    page: Tab, registry: Registry, tmp_path: Path, keys: dict[str, str]
) -> None:
    async with served(registry.path, tmp_path / "records", keys=keys) as (_, client):
        await page.open(f"{client.base_url}/ui/")
        await page.until("document.getElementById('key-dialog').open")
        assert await faults(page) == [], "locked"
        await page.command("Input.insertText", text=KEY)
        await page.press("Enter")
        await page.until("document.querySelector('#policies-body [data-action=promote]')")
        await page.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        assert await faults(page) == [], "policies"
        await page.click("#policies-body [data-action=canary]")
        await page.until("document.getElementById('confirm-dialog').open")
        assert await faults(page) == [], "the question"


async def test_every_control_has_a_name(page: Tab, router_app: StartRouter) -> None:
    app = await uniform(router_app)
    await page.open(f"{app.server.url}/ui/")
    await page.until(f"{ROWS} === 2")
    await page.command("Accessibility.enable")
    tree = (await page.command("Accessibility.getFullAXTree"))["nodes"]
    named = ("button", "link", "textbox", "spinbutton", "region", "navigation")
    for node in tree:
        if not node.get("ignored") and (role := node.get("role", {}).get("value")) in named:
            assert node.get("name", {}).get("value"), f"a {role} without a name"


async def test_it_works_below_a_route_prefix(page: Tab, router_app: StartRouter) -> None:
    app = await uniform(router_app)
    inner = app.server._app  # as a proxy that mounts it does

    async def mounted(scope: Any, receive: Any, send: Any) -> None:
        await inner({**scope, "root_path": "/llm"}, receive, send)

    app.server._app = mounted
    async with httpx.AsyncClient(follow_redirects=True) as client:
        assert str((await client.get(f"{app.server.url}/llm/ui")).url).endswith("/llm/ui/")
    await page.open(f"{app.server.url}/llm/ui/")
    await page.until(f"{ROWS} === 2")
