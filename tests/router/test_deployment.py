"""The router's deployment beside what Ray Serve adds to every answer."""

import pytest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from draftpick.router.deployment import without_request_id

pytestmark = pytest.mark.ray


@pytest.mark.parametrize("sent", [{}, {"x-request-id": "mine-1"}])
def test_an_answer_through_serve_has_one_request_id(sent: dict[str, str]) -> None:
    from ray.serve._private.http_util import RequestIdMiddleware

    def answer(request: object) -> Response:
        return Response("hi", headers={"x-request-id": "ours", "x-other": "kept"})

    app = RequestIdMiddleware(without_request_id(Starlette(routes=[Route("/", answer)])))
    headers = TestClient(app).get("/", headers=sent).headers
    assert len(headers.get_list("x-request-id")) == 1
    assert headers["x-request-id"] == sent.get("x-request-id", headers["x-request-id"]) != "ours"
    assert headers["x-other"] == "kept"
