"""The OpenAPI document, which is made from the code, and the page to try it, which needs no other machine."""

import base64
import hashlib
from collections.abc import Mapping
from typing import Any, Final, cast

from flask import Flask, Response
from flask_openapi3.openapi import OpenAPI
from flask_openapi3_swagger.plugins import RegisterPlugin

from btcbot.terminal.wire import Json, dumps
from mt5_server.problems import PROBLEM

PATH: Final = "/openapi.json"
PAGE: Final = "/openapi"
OPEN: Final = frozenset({"/health", "/v1/login", "/v1/token"})  # which answer without credentials
ALWAYS: Final = (400, 401, 403, 429, 500, 503)
SCHEMES: Final[dict[str, Any]] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A person's session token, from POST /v1/login."},
    "dpop": {
        "type": "http",
        "scheme": "dpop",
        "description": "A bot's token, from POST /v1/token, together with a proof of its key for each request (header DPoP, RFC 9449).",
    },
}
_SCRIPT: Final = """
window.onload = function () {
  window.ui = SwaggerUIBundle({
    url: "../openapi.json", dom_id: "#swagger-ui", deepLinking: true, layout: "StandaloneLayout",
    presets: [SwaggerUIBundle.presets.apis, SwaggerUIStandalonePreset], plugins: [SwaggerUIBundle.plugins.DownloadUrl],
    validatorUrl: null, persistAuthorization: false
  });
};
"""
_HTML: Final = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>mt5-server</title>
<link rel="shortcut icon" href="swagger/images/swagger.svg">
<link rel="stylesheet" type="text/css" href="swagger/css/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="swagger/js/swagger-ui-bundle.js"></script>
<script src="swagger/js/swagger-ui-standalone-preset.js"></script>
<script>{_SCRIPT}</script>
</body>
</html>
"""
_HASH: Final = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
PAGE_POLICY: Final = (
    f"default-src 'none'; script-src 'self' 'sha256-{_HASH}'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "font-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def media(kind: str, text: str, schema: Mapping[str, object] | None = None) -> dict[str, Any]:
    """Return what the document says of an answer of another kind than JSON."""
    return {"description": text, "content": {kind: {"schema": dict(schema or {"type": "string"})}}}


def _finish(document: dict[str, Any]) -> dict[str, Any]:
    """Add to each operation what is the same for all: who may call, and the problems anybody can get."""
    problem = {"schema": {"$ref": "#/components/schemas/Problem"}}
    for path, item in cast(dict[str, dict[str, Any]], document["paths"]).items():
        for method, operation in item.items():
            answers = cast(dict[str, Any], operation["responses"])
            statuses = {*ALWAYS, *((404,) if "{" in path else ()), *((413, 415) if method in ("post", "put", "patch") else ())}
            for status in statuses:
                answers.setdefault(str(status), {"description": ""})
            for status, answer in answers.items():
                if int(status) >= 400:
                    answer["description"] = answer.get("description") or "Problem"
                    answer["content"] = {PROBLEM: problem}
            operation["responses"] = dict(sorted(answers.items()))
            operation["security"] = [] if path in OPEN else [{"bearer": []}, {"dpop": []}]
    return document


def register(app: OpenAPI) -> None:
    """Serve the document and the page."""
    page = RegisterPlugin.register(doc_url="../openapi.json")
    app.config["SWAGGER_HTML_STRING"] = _HTML
    app.register_blueprint(page, url_prefix=PAGE)
    made: list[bytes] = []

    def document() -> Response:
        if not made:
            made.append(dumps(cast(Json, _finish(app.api_doc))))
        return Response(made[0], content_type="application/json")

    app.add_url_rule(PATH, "openapi", document)


def is_open(app: Flask, endpoint: str | None) -> bool:
    """Say whether an endpoint belongs to the document or its page."""
    return endpoint is not None and (endpoint == "openapi" or endpoint.startswith("swagger."))
