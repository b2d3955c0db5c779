"""Places and the queue before them: bounds, order, fairness, who is sent away, and that nothing is lost on the way."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftpick.router.config.sections import AdmissionConfig
from draftpick.router.errors import Overloaded, RequestError, TimedOut
from draftpick.router.request.admission import PRIORITIES, Admission


def admission(places: int = 1, queued: int = 8, **limits: float) -> Admission:
    return Admission(AdmissionConfig(max_in_flight=places, max_queued=queued, **limits))  # type: ignore[arg-type]


@asynccontextmanager
async def full(made: Admission) -> AsyncIterator[AsyncExitStack]:
    """All places taken by the key `first`; leaving the stack's contexts frees them one by one."""
    async with AsyncExitStack() as stack:
        for _ in range(made.limits.max_in_flight):
            await stack.enter_async_context(made.slot("first"))
        yield stack


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Line:
    """Requests that wait for a place, and in which order they got it."""

    def __init__(self, made: Admission) -> None:
        self.made, self.order, self.tasks = made, list[str](), dict[str, asyncio.Task[None]]()

    async def join(self, name: str, key: str = "k", priority: int = 0) -> None:
        async def wait() -> None:
            async with self.made.slot(key, priority):
                self.order.append(name)

        self.tasks[name] = asyncio.create_task(wait())
        await settle()

    def refused(self) -> list[str]:
        return [n for n, t in self.tasks.items() if t.done() and isinstance(t.exception(), Overloaded)]

    async def finish(self) -> list[str]:
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        return self.order


async def test_those_who_wait_come_in_order() -> None:
    made = admission()
    line = Line(made)
    async with full(made):
        for name in "abc":
            await line.join(name)
        assert made.state() == {"in_flight": 1, "queued": 3}
    assert await line.finish() == ["a", "b", "c"]
    assert made.state() == {"in_flight": 0, "queued": 0}
    assert not made.slots_by_key


async def test_the_higher_priority_goes_first() -> None:
    made = admission()
    line = Line(made)
    async with full(made):
        await line.join("low", priority=-1)
        await line.join("normal")
        await line.join("high", priority=1)
    assert await line.finish() == ["high", "normal", "low"]


async def test_a_free_place_goes_to_the_key_that_holds_fewest() -> None:
    made = admission(places=2, max_key_share=1.0)
    line = Line(made)
    async with made.slot("greedy"):
        async with made.slot("greedy"):
            await line.join("greedy-3", key="greedy")
            await line.join("modest-1", key="modest")
        await settle()
        assert line.order[0] == "modest-1"
    await line.finish()


async def test_a_full_queue_refuses_with_a_time_to_wait() -> None:
    made = admission(queued=1, retry_after_s=7)
    line = Line(made)
    async with full(made):
        await line.join("a")
        with pytest.raises(Overloaded) as caught:
            async with made.slot("k"):
                pass
        assert caught.value.status == 503
        assert caught.value.headers() == [("retry-after", "7")]
        assert made.state() == {"in_flight": 1, "queued": 1, "refused": 1}
    assert await line.finish() == ["a"]


async def test_the_cheapest_to_lose_makes_room() -> None:
    made = admission(queued=2)
    line = Line(made)
    async with full(made):
        await line.join("low", priority=-1)
        await line.join("normal")
        await line.join("high", priority=1)
        assert line.refused() == ["low"]
        await line.join("low again", priority=-1)
        assert line.refused() == ["low", "low again"]
    assert await line.finish() == ["high", "normal"]


async def test_a_key_that_fills_the_queue_makes_room_for_others() -> None:
    made = admission(queued=3)
    line = Line(made)
    async with full(made):
        for i in range(3):
            await line.join(f"greedy-{i}", key="greedy")
        await line.join("modest", key="modest")
        assert line.refused() == ["greedy-2"]
        await line.join("greedy-4", key="greedy")
        assert line.refused() == ["greedy-2", "greedy-4"]
    await line.finish()


async def test_the_wait_in_the_queue_is_bounded() -> None:
    made = admission(queue_timeout_s=0.05)
    async with full(made):
        with pytest.raises(Overloaded):
            async with made.slot("k"):
                pass
        assert made.state() == {"in_flight": 1, "queued": 0, "waited_too_long": 1}


async def test_a_deadline_bounds_the_wait_in_the_queue() -> None:
    made = admission()
    async with full(made):
        with pytest.raises(TimedOut):
            async with made.slot("k", deadline=time.perf_counter() + 0.05):
                pass
    assert made.state()["in_flight"] == 0


async def test_who_leaves_the_queue_leaves_no_trace() -> None:
    made = admission()
    line = Line(made)
    async with full(made):
        await line.join("a")
        await line.join("b")
        line.tasks["a"].cancel()
        await settle()
        assert made.state()["queued"] == 1
    assert await line.finish() == ["b"]
    assert made.state()["in_flight"] == 0


async def test_a_turn_that_comes_to_one_who_leaves_goes_on() -> None:
    made = admission()
    line = Line(made)
    async with full(made):
        await line.join("a")
        await line.join("b")
    line.tasks["a"].cancel()  # its turn has come, and it does not know yet
    assert await line.finish() == ["b"]
    assert made.state()["in_flight"] == 0


async def test_larger_limits_let_in_who_waits() -> None:
    made = admission()
    line = Line(made)
    async with full(made):
        await line.join("a")
        await line.join("b")
        made.configure(AdmissionConfig(max_in_flight=3))
        assert await line.finish() == ["a", "b"]
    assert made.state()["in_flight"] == 0


async def test_smaller_limits_admit_no_request_until_enough_have_ended() -> None:
    made = admission(places=2)
    line = Line(made)
    async with made.slot("x"):
        async with made.slot("y"):
            made.configure(AdmissionConfig(max_in_flight=1))
            await line.join("a")
        await settle()
        assert line.order == []
    assert await line.finish() == ["a"]
    assert made.state() == {"in_flight": 0, "queued": 0}


@given(
    st.lists(
        st.tuples(st.sampled_from(["x", "y", "z"]), st.integers(-1, 1), st.integers(0, 3), st.booleans()), max_size=40
    ),
    st.integers(1, 3),
    st.integers(0, 6),
)
def test_places_are_never_lost_nor_given_twice(
    requests: list[tuple[str, int, int, bool]], places: int, queued: int
) -> None:
    async def run() -> None:
        made = admission(places=places, queued=queued)
        inside = 0

        async def one(key: str, priority: int, steps: int) -> None:
            nonlocal inside
            async with made.slot(key, priority):
                inside += 1
                try:
                    assert inside <= places
                    for _ in range(steps):
                        await asyncio.sleep(0)
                finally:
                    inside -= 1

        tasks = []
        for key, priority, steps, leaves in requests:
            task = asyncio.create_task(one(key, priority, steps))
            tasks.append(task)
            await asyncio.sleep(0)
            if leaves:
                task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(r is None or isinstance(r, RequestError | asyncio.CancelledError) for r in results)
        assert (made.state()["in_flight"], made.state()["queued"], len(made.slots_by_key)) == (0, 0, 0)

    asyncio.run(run())


async def test_a_key_leaves_places_to_others() -> None:
    made = admission(places=16)
    line = Line(made)
    async with AsyncExitStack() as stack:
        for _ in range(12):
            await stack.enter_async_context(made.slot("greedy"))
        await line.join("greedy-13", key="greedy")
        assert line.order == []
        for key in ("high", "low"):  # whoever else comes goes in at once, though others wait
            await asyncio.wait_for(stack.enter_async_context(made.slot(key, PRIORITIES[key])), 1)
        assert made.state() == {"in_flight": 14, "queued": 1}
    assert await line.finish() == ["greedy-13"]
    assert made.state() == {"in_flight": 0, "queued": 0}


async def take_all(made: Admission, key: str, stack: AsyncExitStack) -> None:
    """Take places until no more are given."""
    with suppress(Overloaded):
        while True:
            await stack.enter_async_context(made.slot(key))


@pytest.mark.parametrize(("share", "taken"), [(0.5, 8), (0.8, 12), (1.0, 16)])
async def test_the_places_of_one_key_are_configured(share: float, taken: int) -> None:
    made = admission(places=16, queued=0, max_key_share=share)
    async with AsyncExitStack() as stack:
        await take_all(made, "greedy", stack)
        assert made.slots_by_key["greedy"] == taken


async def test_the_only_key_takes_all_places() -> None:
    made = admission(places=4)
    async with AsyncExitStack() as stack:
        for _ in range(4):
            await asyncio.wait_for(stack.enter_async_context(made.slot()), 1)


async def test_several_greedy_keys_leave_places_too() -> None:
    made = admission(places=64, queued=0)
    async with AsyncExitStack() as stack:
        for key in "abc":
            await take_all(made, key, stack)
        assert made.in_flight < 64
        await stack.enter_async_context(made.slot("d"))


@pytest.mark.parametrize(
    ("queued", "arriving", "refused"),
    [
        ("a a b", "b", "b"),  # it would wait as often as the other
        ("a a b", "c", "a-1"),
        ("a b c", "d", "d"),
        ("a b c", "a", "a"),
        ("a a a", "a", "a"),
        ("a b c", "d+", "c"),  # of a higher priority: the newest, of those that wait alike
        ("a b c", "d-", "d-"),
        ("a+ b c-", "d", "c-"),
        ("a+ b+ c+", "d", "d"),
        ("a- a- b-", "c-", "a--1"),
    ],
)
async def test_a_full_queue_sends_one_away(queued: str, arriving: str, refused: str) -> None:
    """Requests by the name of their key, with `+` or `-` for a high or a low priority."""
    made, names = admission(queued=3), queued.split()
    line = Line(made)
    async with full(made):
        for i, name in enumerate(names):
            again = names[:i].count(name)
            await line.join(f"{name}-{again}" if again else name, name[0], {"+": 1, "-": -1}.get(name[1:], 0))
        await line.join(arriving if arriving not in names else f"{arriving} again", arriving[0],
                        {"+": 1, "-": -1}.get(arriving[1:], 0))  # fmt: skip
        newest_of_alike = line.refused()
        assert len(newest_of_alike) == 1
        if arriving == "d+":
            assert newest_of_alike[0] in names
        else:
            assert newest_of_alike == [f"{refused} again" if refused == arriving and arriving in names else refused]
        assert made.state() == {"in_flight": 1, "queued": 3, "refused": 1}
    await line.finish()
    assert made.state()["queued"] == made.in_flight == 0


async def test_no_request_waits_in_a_queue_of_none() -> None:
    made = admission(queued=0)
    async with full(made):
        with pytest.raises(Overloaded):
            async with made.slot("k"):
                pass
    async with made.slot("k"):
        assert made.in_flight == 1


def test_priorities_are_in_order_and_the_usual_one_is_the_middle() -> None:
    assert PRIORITIES["low"] < PRIORITIES["normal"] == 0 < PRIORITIES["high"]


@pytest.mark.parametrize(("deadline_s", "error"), [(0.01, TimedOut), (60.0, Overloaded), (None, Overloaded)])
async def test_who_waits_too_long_is_told_whose_limit_it_was(
    deadline_s: float | None, error: type[RequestError]
) -> None:
    made = admission(queue_timeout_s=0.02, retry_after_s=3)
    async with full(made):
        with pytest.raises(error):
            async with made.slot("k", deadline=None if deadline_s is None else time.perf_counter() + deadline_s):
                pass
    assert made.counts == {"waited_too_long": 1}


async def test_of_keys_with_as_many_places_the_first_to_come_goes_first() -> None:
    made = admission(places=1)
    line = Line(made)
    async with full(made):
        for name, key in (("a1", "a"), ("b1", "b"), ("a2", "a"), ("b2", "b")):
            await line.join(name, key)
    assert await line.finish() == ["a1", "b1", "a2", "b2"]
