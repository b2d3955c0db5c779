"""Errors that go from one process to another."""

import pickle

import pytest

from draftpick.router import errors


@pytest.mark.parametrize(
    "error",
    [
        errors.BadRequest("no", param="x", code="bad"),
        errors.Unauthorized("no key"),
        errors.PayloadTooLarge("headers", code="headers_too_large"),
        errors.RateLimited("wait", code="requests", retry_after_s=7),
        errors.Overloaded("full", retry_after_s=2),
        errors.EngineFailed("none", timed_out=True),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_arrives_elsewhere_as_it_was_raised(error: errors.RequestError) -> None:
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is type(error)
    assert (str(found), found.status, found.body()) == (str(error), error.status, error.body())
    assert found.headers() == error.headers()
