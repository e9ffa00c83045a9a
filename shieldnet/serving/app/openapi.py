"""The OpenAPI document: what every address takes and gives, refusals among it."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from shieldnet.serving.app import protocol
from shieldnet.serving.app.protocol import BINARY_HEADER, Message

_REF = "#/components/schemas/"
_OPEN = ("/v2/health/live", "/v2/health/ready")
_SENT: dict[str, tuple[type[Message], type[Message]]] = {
    "/predict": (protocol.PredictRequest, protocol.PredictResponse),
    "/infer": (protocol.InferRequest, protocol.InferResponse),
}
_GIVEN: dict[str, type[Message]] = {
    "/v2": protocol.ServerMetadata,
    "/budget": protocol.Budgets,
    "/v2/health/live": protocol.ServerLive,
    "/v2/health/ready": protocol.ServerReady,
}
_NEVER_ANSWERED = (400, 408, 413, 415, 422, 429)


def describe(app: FastAPI) -> None:
    """Gives an application the document of its addresses."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # as FastAPI's documentation has it


def _document(app: FastAPI) -> dict[str, Any]:
    found = get_openapi(title=app.title, version=app.version, routes=app.routes)
    kinds = [kind for kind in vars(protocol).values() if _is_message(kind)]
    _, schemas = models_json_schema(
        [(kind, "validation") for kind in kinds], ref_template=_REF + "{model}"
    )
    found["components"] = {
        "schemas": schemas["$defs"],
        "securitySchemes": {
            "bearer": {"type": "http", "scheme": "bearer"},
            "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        },
    }
    for path, operations in found["paths"].items():
        for operation in operations.values():
            _describe(path, operation)
    return found


def _is_message(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Message) and kind is not Message


def _describe(path: str, operation: dict[str, Any]) -> None:
    is_open = path in _OPEN or path.endswith("/ready")
    sent = next((kinds for end, kinds in _SENT.items() if path.endswith(end)), None)
    operation["security"] = [] if is_open else [{"bearer": []}, {"key": []}]
    operation["parameters"] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in ("name", "version")
        if f"{{{name}}}" in path
    ]
    statuses: tuple[int, ...] = () if is_open else (401,)
    statuses += (404,) if "{name}" in path else ()
    if sent is not None:
        operation["requestBody"] = {"required": True, "content": _json(sent[0])}
        operation["parameters"].append(_header("Idempotency-Key"))
        statuses += (*_NEVER_ANSWERED, 500, 503)
        answer = sent[1]
    elif path.endswith("/ready") and path not in _OPEN:
        answer = protocol.ModelReady
    else:
        answer = _GIVEN.get(path, protocol.ModelMetadata)
        statuses += (503,) if path == "/budget" else ()
    content = _json(answer)
    if path.endswith("/infer"):
        operation["parameters"].append(_header(BINARY_HEADER))
        schema = {"type": "string", "format": "binary"}
        content["application/octet-stream"] = {"schema": schema}
        operation["requestBody"]["content"]["application/octet-stream"] = {"schema": schema}
    operation["responses"] = {"200": {"description": answer.__doc__, "content": content}}
    if path.endswith("/ready"):
        operation["responses"]["503"] = {"description": "It is not ready.", "content": content}
    refusal = {"description": protocol.Refusal.__doc__, "content": _json(protocol.Refusal)}
    operation["responses"] |= {str(status): refusal for status in statuses}


def _json(kind: type[Message]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REF + kind.__name__}}}


def _header(name: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "schema": {"type": "string"}}
