"""How Ray is started."""

import os
from collections.abc import Iterator
from unittest.mock import Mock, patch

import pytest
import ray

from draftpick.deploy.config import resolve
from draftpick.deploy.launch.ray_serve import _start_ray
from draftpick.engines.errors import DraftpickError

LATE = Exception("The current node timed out during startup. This could happen because ...")


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    with patch.dict(os.environ):
        yield


def test_a_ray_that_is_late_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    init = Mock(side_effect=[LATE, LATE, None])
    monkeypatch.setattr(ray, "init", init)
    _start_ray(resolve("embedded"), None)
    assert init.call_count == 3


@pytest.mark.parametrize(("raised", "told"), [(LATE, "Ray did not start in time"), (ValueError("other"), "other")])
def test_an_error_is_told(monkeypatch: pytest.MonkeyPatch, raised: Exception, told: str) -> None:
    monkeypatch.setattr(ray, "init", Mock(side_effect=raised))
    with pytest.raises((DraftpickError, ValueError), match=told):
        _start_ray(resolve("embedded"), None)
