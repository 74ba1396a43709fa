"""`/docs` and `/openapi.json`: every field of every route (ours).

FastAPI's own page loads its scripts from elsewhere. This one has none: it is the API's description as plain HTML.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"
STYLE = "body{font:1rem/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}td{padding-right:2rem}"


def add_docs(api: FastAPI) -> None:
    """Adds the two routes to an application; like all others they need the key."""

    @api.get("/openapi.json", include_in_schema=False)
    async def description() -> dict[str, Any]:
        return api.openapi()

    @api.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse("\n".join(_page(api.openapi())), headers={"Content-Security-Policy": POLICY})


def _page(schema: dict[str, Any]) -> Iterator[str]:
    title = escape(schema["info"]["title"])
    yield f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    yield f"<h1>{title}</h1><p>{escape(schema['info'].get('description', ''))}</p>"
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            yield f"<h2>{method.upper()} {escape(path)}</h2><p>{escape(operation.get('description', ''))}</p>"
            for kind, body in operation.get("requestBody", {}).get("content", {}).items():
                yield f"<p>{escape(kind)}: {_type(body['schema'])}</p>"
    yield "<h1>Types</h1>"
    for name, one in schema.get("components", {}).get("schemas", {}).items():
        yield f'<h2 id="{escape(name)}">{escape(name)}</h2><p>{escape(one.get("description", ""))}</p><table>'
        for field, about in one.get("properties", {}).items():
            needed = "required" if field in one.get("required", ()) else ""
            said = escape(about.get("description", ""))
            yield f"<tr><td>{escape(field)}<td>{_type(about)}<td>{needed}<td>{said}"
        yield "</table>"
    yield "</html>"


def _type(about: dict[str, Any]) -> str:
    """A type in HTML, with links to the types that have a name."""
    if "$ref" in about:
        name = escape(about["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    for choices in ("anyOf", "oneOf"):
        if choices in about:
            return " or ".join(map(_type, about[choices]))
    if about.get("type") == "array":
        return f"list of {_type(about.get('items', {}))}"
    if "enum" in about or "const" in about:
        return escape(" or ".join(json.dumps(one) for one in about.get("enum", [about.get("const")])))
    return escape(str(about.get("type", "anything")))
