"""What each engine takes, held against what a request asks: an engine that cannot take it is not eligible.

Known from its configuration, from `/v1/models` and `/metrics`, and from what it rejected while another engine answered
the same request. The engine without a drafter takes most.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from draftpick.engines.arms import pool_arm
from draftpick.engines.config import Engine, FleetConfig
from draftpick.engines.pool.prediction import COPYING
from draftpick.router.load.model_catalog import ModelCatalog
from draftpick.router.openai_request import CHARS_PER_TOKEN, Request

REJECTED_WITH_DRAFTER = frozenset({"min_p", "logit_bias"})
"""Fields that vLLM rejects on an engine with any drafter (`SamplingParams._validate_spec_decode`)."""
_HAS_DRAFTER = b"not yet supported with speculative decoding"
_TOO_LONG = (b"context length", b"max_model_len")
_NOT_FOUND = 404
_STATUSES = frozenset({400, _NOT_FOUND, 405, 415, 422, 501})
"""Errors by which an engine rejects what another one may take."""
_REMEMBERED_S = 600.0
_MAX_REMEMBERED = 1024
_MAX_CHARS_PER_TOKEN = 6
"""Of a prompt that is counted as too long without having been tokenized."""
_NOTHING: Mapping[str, str] = {}
Asks = frozenset[str]


@dataclass(frozen=True, slots=True)
class EngineAbility:
    """What the configuration of an engine says. `drafts`: None if it does not say. `without`: modalities that it takes
    none of. `copying`: arms that draft from a request's prediction."""

    drafts: bool | None = None
    without: Asks = frozenset()
    copying: frozenset[str] = frozenset()


def configured_abilities(config: FleetConfig) -> dict[str, EngineAbility]:
    """What the configuration says of each engine."""
    found = {}
    for engine in config.engines:
        kwargs: Mapping[str, Any] = {**config.engine_kwargs, **engine.engine_kwargs}
        limits = kwargs.get("limit_mm_per_prompt")
        without = frozenset(name for name, limit in limits.items() if limit == 0) if isinstance(limits, dict) else ()
        found[engine.name] = EngineAbility(engine.drafts, frozenset(without), frozenset(_copying(engine)))
    return found


def _copying(engine: Engine) -> Iterator[str]:
    """Yield the arms that draft from a prediction: our plugin is there to read it, in a pool or with our drafters. A
    vLLM that others run may have drafters of vLLM's own by the same names, without it."""
    if engine.mock is not None:
        yield from (pool_arm(engine.name, name) for name in engine.mock.drafters if name in COPYING)
        return
    for arm, drafter in engine.drafter_of_arm().items():
        ours = engine.kind != "url" or engine.is_pool or (drafter is not None and drafter.method in _ONLY_OURS)
        if drafter is not None and drafter.method in COPYING and ours:
            yield arm


_ONLY_OURS = frozenset({"trigram", "hybrid"})


@dataclass(frozen=True, slots=True)
class Rejection:
    """An engine rejected a request, by one of these `asks` as far as is known."""

    engine: str
    asks: Asks


class Abilities:
    """Abilities of the engines of a fleet.

    `differ`: engines serve other models, paths or context lengths; if not, only a request that asks for something needs
    a look. `adapters`: models that are adapters of the target.
    """

    def __init__(
        self,
        engines: Sequence[str],
        baseline: str,
        catalog: ModelCatalog,
        configured: Mapping[str, EngineAbility] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`baseline`: the engine that takes most, as the one without a drafter."""
        self._engines, self._baseline, self._catalog, self._clock = engines, baseline, catalog, clock
        self._configured = configured or {}
        self._drafts = {name: one.drafts for name, one in self._configured.items() if one.drafts is not None}
        self._taken: dict[tuple[str, str], float] = {}
        self._rejected: dict[tuple[str, Asks], float] = {}
        self._noted: set[str] = set()
        self._partial: dict[str, frozenset[str]] = {}
        self._shortest: float = float("inf")
        self.differ = False
        self.adapters: frozenset[str] = frozenset()
        catalog.on_change = self._read_catalog
        self._note()

    def _read_catalog(self) -> None:
        """Note the models that some engines lack, and the shortest context if contexts differ."""
        models = self._catalog.models
        self._drafts |= self._catalog.drafts
        self.adapters = frozenset(
            name for cards in models.values() for name, card in cards.items() if card.get("parent")
        )
        every = {name for cards in models.values() for name in cards}
        lacking = {name: frozenset(e for e, cards in models.items() if name not in cards) for name in every}
        self._partial = {name: engines for name, engines in lacking.items() if engines}
        pairs = [(name, self._catalog.max_model_len(e, name)) for e, cards in models.items() for name in cards]
        lengths = {(name, length) for name, length in pairs if length is not None}
        differ = len(lengths) > len({name for name, _ in lengths})
        self._shortest = min((length for _, length in lengths), default=float("inf")) if differ else float("inf")
        self._note()

    def _note(self) -> None:
        """Note all names of asks that some engine does not take: requests without one of them need no look."""
        drafted = REJECTED_WITH_DRAFTER if any(self._drafts.values()) else frozenset()
        lacking = (one.without for one in self._configured.values())
        self._noted = set(drafted).union(*lacking, *(asks for _, asks in self._rejected))
        more = any(one.startswith(("/", _THE_MODEL)) for one in self._noted)
        self.differ = more or bool(self._partial) or self._shortest < float("inf")

    def adapter(self, request: Request) -> str:
        """The adapter that a request asks for, if an engine lists it; else empty."""
        return request.model if request.model is not None and request.model in self.adapters else ""

    def unable(self, request: Request) -> Mapping[str, str]:
        """Reasons by engine that cannot take a request; none if no engine can, so that one says why."""
        if (
            request.asks.isdisjoint(self._noted)
            and self._noted.isdisjoint((request.path, f"{_THE_MODEL}{request.model!r}"))
            and request.model not in self._partial
            and (self._shortest == float("inf") or _min_tokens(request) <= self._shortest)
        ):
            return _NOTHING
        found = {engine: reason for engine in self._engines if (reason := self._reason(engine, request)) is not None}
        return found if len(found) < len(self._engines) else _NOTHING

    def _reason(self, engine: str, request: Request) -> str | None:
        model = request.model
        if model is not None and engine in self._partial.get(model, ()):
            return f"does not serve {model!r}"
        for ask in sorted(request.asks):
            if self._takes(engine, ask) is False:
                return f"does not take {ask}"
        asks, now = _with_path(request), self._clock()
        for (name, rejected), until in self._rejected.items():
            if name == engine and rejected <= asks and until > now:
                return f"rejects {' with '.join(sorted(rejected))}"
        limit = None if model is None else self._catalog.max_model_len(engine, model)
        if limit is not None and _min_tokens(request) > limit:
            return f"takes at most {limit} tokens"
        return None

    def _takes(self, engine: str, ask: str) -> bool | None:
        """None if it is unknown."""
        if self._taken.get((engine, ask), 0.0) > self._clock():
            return True
        drafts = self._drafts.get(engine)
        if ask in REJECTED_WITH_DRAFTER and drafts is not None:
            return not drafts
        known = self._configured.get(engine)
        return False if known is not None and ask in known.without else None

    def rejection(
        self, engine: str, request: Request, status: int, body: bytes, earlier: Sequence[Rejection] = ()
    ) -> tuple[Rejection, frozenset[str]] | None:
        """What an engine rejects by an error, and which engines would probably take it; None if that is none.

        `earlier`: rejections of the same request. What two engines reject is the request's own fault, unless another
        one is known to take it.
        """
        if status not in _STATUSES:
            return None
        asks, likely, perhaps = self._cause(engine, request, status, body)
        asked = {engine, *(one.engine for one in earlier)}
        for others in (likely, () if earlier else perhaps):
            if left := frozenset(one for one in others if one not in asked and self._reason(one, request) is None):
                return Rejection(engine, asks), left
        return None

    def _cause(
        self, engine: str, request: Request, status: int, body: bytes
    ) -> tuple[Asks, Sequence[str], Sequence[str]]:
        """The asks that an engine rejects, and who would probably and who would perhaps take them."""
        if _HAS_DRAFTER in body:  # the engine speaks of itself: no other needs to confirm it
            until = self._clock() + _REMEMBERED_S
            self._rejected |= {(engine, frozenset({ask})): until for ask in REJECTED_WITH_DRAFTER}
            self._note()
        model = request.model
        holders = [one for one, models in self._catalog.models.items() if model in models]
        if model is not None and engine not in holders and holders:
            return frozenset(), holders, ()
        if any(text in body for text in _TOO_LONG) and model is not None:
            own = self._catalog.max_model_len(engine, model) or 0
            return frozenset(), [e for e in holders if (self._catalog.max_model_len(e, model) or 0) > own > 0], ()
        if b'"detail"' in body and b'"Not Found"' in body:  # FastAPI has no such path
            return frozenset({request.path}), self._engines if request.generates else (), self._engines
        if status == _NOT_FOUND and model is not None and model.encode(errors="replace") in body:
            return frozenset({f"{_THE_MODEL}{model!r}"}), holders, ()  # it was unloaded since it was listed
        asks = frozenset(ask for ask in request.asks if self._takes(engine, ask) is not True)
        asks = frozenset(ask for ask in asks if ask.encode() in body) or asks
        if not asks:
            return asks, (), ()
        likely = [e for e in self._engines if e == self._baseline or all(self._takes(e, ask) for ask in asks)]
        return asks, likely, () if _HAS_DRAFTER in body else self._engines

    def record_answer(self, engine: str, request: Request, rejections: Sequence[Rejection]) -> None:
        """Remember that an engine answered a request, and what others rejected of it."""
        now, asks = self._clock(), _with_path(request)
        for ask in request.asks:
            self._taken[engine, ask] = now + _REMEMBERED_S
        if not rejections and not self._rejected:
            return
        left = {key: until for key, until in self._rejected.items() if until > now}
        self._rejected = {key: until for key, until in left.items() if key[0] != engine or not key[1] <= asks}
        for one in rejections:
            if one.asks and len(self._rejected) < _MAX_REMEMBERED:
                self._rejected[one.engine, one.asks] = now + _REMEMBERED_S
        self._note()


_THE_MODEL = "the model "


def _with_path(request: Request) -> Asks:
    """What an engine may reject: also a path or a model that it does not have."""
    return request.asks | {request.path, f"{_THE_MODEL}{request.model!r}"}


def _min_tokens(request: Request) -> float:
    """Fewest tokens that a request may need: of its prompt, and of its answer."""
    if request.num_prompt_tokens is not None:
        prompt: float = request.num_prompt_tokens
    else:
        prompt = request.approximate_prompt_tokens * CHARS_PER_TOKEN / _MAX_CHARS_PER_TOKEN
    return prompt + (request.max_tokens or 1)
