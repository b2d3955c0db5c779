"""The OpenAPI description of the router. Bodies are vLLM's; only the fields that the router reads are listed."""

from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter

from draftpick.engines.reporting.report import MAX_BATCH, OutcomeReport
from draftpick.router.http.admin import PolicyChange
from draftpick.router.http.request_headers import REQUEST_HEADERS

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "integer", "null"]},
            },
        }
    },
}
_PATH = {
    "name": "path",
    "in": "query",
    "description": "The path to which the request is sent; absent: `/v1/chat/completions`.",
    "schema": {"type": "string"},
}
_OUTCOME = TypeAdapter(OutcomeReport).json_schema()
_OUTCOMES = {
    "type": "object",
    "required": ["outcomes"],
    "properties": {"outcomes": {"type": "array", "maxItems": MAX_BATCH, "items": _OUTCOME}},
}
_SAMPLING = {
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "minimum": 0, "maximum": 1},
    "n": {"type": "integer", "minimum": 1, "maximum": 4},
    "stream": {"type": "boolean"},
    "stream_options": {"type": "object", "properties": {"include_usage": {"type": "boolean"}}},
}
_CONTENT = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["type", "text"],
                "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
            },
        },
    ]
}
_MESSAGE = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {"role": {"enum": ["system", "user", "assistant"]}, "content": _CONTENT},
}
_PREDICTION = {
    "type": "object",
    "required": ["type", "content"],
    "properties": {"type": {"const": "content"}, "content": _CONTENT},
}


def description(model: str) -> dict[str, object]:
    """OpenAPI 3.1 of a router in front of the target `model`."""
    limit = {"type": "integer", "minimum": 1, "maximum": 64}
    chat = {"messages": {"type": "array", "minItems": 1, "items": _MESSAGE}, "max_tokens": limit}
    completion = {"prompt": {"type": "string"}, "max_tokens": limit}
    responses = {"input": {"type": "string"}, "max_output_tokens": limit}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Draftpick",
            "version": "1",
            "description": "Routes each request to the engine with the shortest predicted time.",
        },
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"key": []}],
        "paths": {
            "/health": {"get": _get("Liveness of the process.")},
            "/ready": {"get": _get("Readiness: 200 if an engine can serve requests; with the router's state.", "503")},
            "/metrics": {"get": _text("Prometheus metrics of all routers and engines.")},
            "/v1/models": {"get": _get("The models of the engines.")},
            "/v1/chat/completions": {
                "post": _post("A chat answer.", _body(model, "messages", chat | {"prediction": _PREDICTION}))
            },
            "/v1/completions": {"post": _post("A completion.", _body(model, "prompt", completion))},
            "/v1/responses": {"post": _post("A response.", _body(model, "input", responses))},
            "/v1/route": {
                "post": _post(
                    "A lease: the engine for a request that the caller sends itself. Needs `router.leases.enabled`.",
                    _body(model, "messages", chat),
                    parameters=[_PATH],
                )
            },
            "/v1/outcomes": {
                "post": _post("What became of leases.", _OUTCOMES),
            },
            "/v1/route/explain": {
                "post": _post("Explain where a request would go; sends nothing.", _body(model, "messages", chat))
            },
            "/v1/route/state": {"get": _get("Engines, clusters of requests, decisions, policies.", errors=("403",))},
            "/v1/route/events": {"get": _get("Recent events, the newest first.", errors=("403",))},
            "/v1/route/policies": {
                "get": _get("The policy registry.", errors=("400", "403", "503")),
                "post": _post(
                    "Try, promote, pin or roll back a policy of the registry.",
                    PolicyChange.model_json_schema(),
                ),
            },
        },
    }


def _body(model: str, needed: str, properties: dict[str, Any]) -> dict[str, Any]:
    fields = {"model": {"const": model}, **properties, **_SAMPLING}
    return {"type": "object", "required": ["model", needed], "properties": fields}


def _errors(*codes: str) -> dict[str, Any]:
    content = {"application/json": {"schema": _ERROR}}
    return {code: {"description": "OpenAI's error object.", "content": content} for code in codes}


def _get(summary: str, *more: str, errors: tuple[str, ...] = ()) -> dict[str, Any]:
    ok = {"description": summary, "content": {"application/json": {"schema": {"type": "object"}}}}
    return {"summary": summary, "responses": {"200": ok, **dict.fromkeys(more, ok), **_errors("401", "431", *errors)}}


def _text(summary: str) -> dict[str, Any]:
    ok = {"description": summary, "content": {"text/plain": {"schema": {"type": "string"}}}}
    return {"summary": summary, "responses": {"200": ok, **_errors("401", "403", "431")}}


def _post(summary: str, body: dict[str, Any], parameters: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    ok = {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {"schema": {"type": "string"}}}
    errors = _errors("400", "401", "403", "404", "405", "413", "429", "431", "502", "503", "504")
    return {
        "summary": summary,
        "parameters": [
            {"name": header.name, "in": "header", "description": header.description, "schema": {"type": "string"}}
            for header in REQUEST_HEADERS
        ]
        + [*parameters],
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {"200": {"description": summary, "content": ok}, **errors},
    }
