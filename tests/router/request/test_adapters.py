"""What answers of an adapter show holds for it alone; a new one starts from what those of the target showed."""

from typing import Any

import pytest

from draftpick.router.config.sections import QuarantineConfig
from draftpick.router.online.quarantine import MAX_ADAPTERS, AcceptanceMonitor
from tests.fleet import FAST, MODEL, Routed, StartRouter
from tests.router.request.test_pool import POOL, ROUTER, forecast, policy

pytestmark = pytest.mark.asyncio(loop_scope="module")

SERVING = POOL.model_copy(update={"adapters": ("sql",)})


async def fleet(router_app: StartRouter, **router: Any) -> Routed:
    specs = {"plain": FAST, "pool": SERVING}
    app = await router_app(specs, **{**ROUTER, "policy": policy(ngram=1.2, math=1.2), **router})
    await app.parts.catalog.poll()
    return app


async def explained(app: Routed, model: str) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    found: dict[str, Any] = (await app.client.post("/v1/route/explain", json=body)).json()
    return found


async def test_an_adapter_is_corrected_by_its_own_answers(router_app: StartRouter) -> None:
    app = await fleet(router_app)
    assert (await app.post(model="sql")).headers["x-draftpick-arm"].startswith("pool/")  # `plain` lacks it
    before = forecast(app)
    for _ in range(12):
        assert (await app.post(model="sql")).status_code == 200
    app.parts.attempts.drain()
    (_, online), *_ = app.parts.active_policies.learners()
    assert online.correction.local_state()["weights"] == [[0.0] * 4] * len(online.correction.local_state()["weights"])
    await app.post(model="sql")
    after = forecast(app)
    assert before is not None
    assert after is not None
    assert after.tau["math"] > before.tau["math"] + 0.5  # the mock's drafter has 3.0
    await app.post(headers={"x-draftpick-arm": "pool"})
    assert forecast(app).tau["math"] == pytest.approx(before.tau["math"], rel=0.01)  # type: ignore[union-attr]
    assert {record.adapter for record in await app.records(15)} == {"sql", ""}


async def test_an_explanation_says_where_an_adapter_starts(router_app: StartRouter) -> None:
    app = await fleet(router_app)
    assert (await explained(app, MODEL))["adapter"] is None
    told = await explained(app, "sql")
    assert told["adapter"] == {"name": "sql", "answers": 0.0}
    assert told["tipped"].endswith("; adapter sql has no answers yet and starts from what those of the target showed")
    for _ in range(3):
        await app.post(model="sql")
    told = await explained(app, "sql")
    assert told["adapter"]["answers"] > 2
    assert told["tipped"].endswith(f"; corrected by {told['adapter']['answers']:.0f} answers of adapter sql")


async def test_an_arm_in_quarantine_for_an_adapter_serves_the_others(router_app: StartRouter) -> None:
    serving = FAST.model_copy(update={"adapters": ("sql",)})
    app = await router_app({"a": serving, "b": serving})
    await app.parts.catalog.poll()
    monitor = app.parts.acceptance_monitor
    for tau in [3.0] * 60 + [1.0] * 200:
        monitor.observe("a", tau, 32, adapter="sql")
    assert (monitor.state()["a"], monitor.of("sql").state()["a"]) == ("ok", "quarantined")
    assert (await app.post()).headers["x-draftpick-arm"] == "a"
    assert (await app.post(model="sql")).headers["x-draftpick-arm"] == "b"
    arms = {row["arm"]: row for row in (await explained(app, "sql"))["arms"]}
    assert arms["a"]["ineligible_reason"] == "quarantined"
    events = (await app.client.get("/v1/route/events")).json()["data"]
    assert events[0]["text"].startswith("adapter sql: engine a: its drafts are hardly accepted")


async def test_an_unknown_adapter_is_answered_as_vllm_does(router_app: StartRouter) -> None:
    app = await fleet(router_app)
    for answer in (await app.post(model="mail"), await app.client.get("/v1/models/mail")):
        assert answer.status_code == 404
        assert answer.json()["error"]["message"] == "The model `mail` does not exist."
        assert answer.json()["error"]["param"] == "model"
    listed = [card["id"] for card in (await app.client.get("/v1/models")).json()["data"]]
    assert listed == [MODEL, "sql"]


async def test_a_new_adapter_s_drafts_are_watched_as_the_target_s() -> None:
    monitor = AcceptanceMonitor(["a"], QuarantineConfig())
    for _ in range(100):
        monitor.observe("a", 3.0, 32)
    assert monitor.of("sql") is monitor
    for _ in range(100):
        monitor.observe("a", 1.0, 32, adapter="sql")
    assert (monitor.state(), monitor.of("sql").state()) == ({"a": "ok"}, {"a": "quarantined"})
    assert monitor.quarantined == 1
    assert monitor.suspects == set()
    assert monitor.of("sql").suspects == {"a"}


async def test_only_so_many_adapters_are_kept() -> None:
    monitor = AcceptanceMonitor(["a"])
    for number in range(MAX_ADAPTERS + 1):
        monitor.observe("a", 3.0, 32, adapter=str(number))
    assert monitor.of("0") is monitor
    assert monitor.of("1") is not monitor
