"""Another Serve deployment on the same cluster calls the router by handle, without an address, a key, or HTTP.

With `draftpick serve --config mock` (a fleet without a model):

    python -m draftpick.deploy.examples.summaries --model mock-model
    curl http://127.0.0.1:8000/summaries/ -H 'content-type: application/json' -d '{"text": "A long text."}'

On a cluster that `serve deploy` runs, one more entry of `applications` in its file (deploy/serve/cluster.yaml):

    - {name: summaries, route_prefix: /summaries, import_path: "draftpick.deploy.examples.summaries:build", args:
    {model: MODEL}}
"""

import argparse
from collections.abc import AsyncIterator
from typing import Any

import ray
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel
from ray import serve
from ray.exceptions import RayTaskError

from draftpick.deploy.app import APP_NAME
from draftpick.router.errors import RequestError

NAME, PREFIX = "summaries", "/summaries"
app = FastAPI(title="Summaries")


class Document(BaseModel):
    """The text to summarise."""

    text: str


class Summary(BaseModel):
    """A summary, and the engine that wrote it."""

    text: str
    engine: str


@app.exception_handler(RayTaskError)
async def rejected_response(request: Request, failed: RayTaskError) -> Response:
    """Return the router's errors with their status and OpenAI error body; others are internal errors, 500."""
    error = failed.cause
    if not isinstance(error, RequestError):
        raise failed
    return JSONResponse(error.body(), error.status, headers=dict(error.headers()))


async def _all(first: bytes, parts: Any) -> AsyncIterator[bytes]:
    """The whole stream; if the client disconnects, the engine stops as well."""
    try:
        yield first
        async for part in parts:
            yield part
    finally:
        parts.cancel()


@serve.ingress(app)
class Summaries:
    """Summarises documents with the target behind the router."""

    def __init__(self, model: str) -> None:
        self._model = model
        # Created once: a handle caches the router's replicas.
        self._router = serve.get_deployment_handle("router", APP_NAME)
        self._stream = self._router.options(stream=True).stream

    @app.post("/")
    async def complete(self, document: Document) -> Any:
        """The complete summary. An engine's own error (400, 404) passes through unchanged."""
        answer = await self._router.send.remote(self._asked(document))
        if answer["status"] != 200:
            return JSONResponse(answer["body"], answer["status"])
        text = answer["body"]["choices"][0]["message"]["content"]
        return Summary(text=text, engine=answer["headers"]["x-draftpick-arm"])

    @app.post("/stream")
    async def stream(self, document: Document) -> Response:
        """The summary as a stream of OpenAI's server-sent events."""
        parts = self._stream.remote(self._asked(document))
        first = await anext(parts)  # rejections are raised here, while the status can still be set
        if first.startswith(b"{"):  # an engine's own error, which is no stream
            return Response(first, 502, media_type="application/json")
        return StreamingResponse(_all(first, parts), media_type="text/event-stream")

    @app.post("/engine")
    async def engine(self, document: Document) -> dict[str, Any]:
        """The engine that would be chosen, with all probabilities. Sends nothing to engines."""
        choice = await self._router.choose.remote(self._asked(document))
        return {name: choice[name] for name in ("arm", "probabilities", "policy")}

    def _asked(self, document: Document) -> dict[str, Any]:
        asked = f"Summarise in one sentence:\n\n{document.text}"
        return {"model": self._model, "messages": [{"role": "user", "content": asked}], "max_tokens": 128}


def build(args: dict[str, str]) -> serve.Application:
    """The application for `{"model": <name of the target>}`."""
    # Serve's default limit, 5 concurrent requests, would block requests while others wait for answers.
    options = {"max_ongoing_requests": 200, "ray_actor_options": {"num_cpus": 0.1}}
    return serve.deployment(Summaries, name=NAME, **options).bind(args["model"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Adds the application to a running cluster.")
    parser.add_argument("--model", required=True, help="the target's name, as clients spell it")
    parser.add_argument("--ray-address", default="auto", help="of the Ray cluster; auto: the one on this machine")
    args = parser.parse_args()
    ray.init(args.ray_address, log_to_driver=False, logging_level="error")
    serve.run(build({"model": args.model}), name=NAME, route_prefix=PREFIX)


if __name__ == "__main__":
    main()
