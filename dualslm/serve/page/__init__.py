"""The page at `/` of `dualslm serve`: speak, see the words and the voice, read the reply, swap the tone (ours).

Plain HTML, CSS and JavaScript from this package: no build step, and nothing is loaded from elsewhere, which the
content security policy also forbids. The page is one more client of the server's own routes; this module gives it its
files and the example clips.
"""

from __future__ import annotations

import json
from pathlib import Path

from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse

STATIC = Path(__file__).parent / "static"
POLICY = "default-src 'self'; media-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
HEADERS = {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
GROUP_TITLES = {
    "hear": "Three voices",
    "tones": "The same words, three tones",
    "memory": "A conversation that remembers",
}


def mount(app: FastAPI, clips: Path | None) -> None:
    """Adds the page to a server.

    Args:
        app: the application, with the routes that the page calls.
        clips: folder of example recordings with a `clips.json`; none are offered when None.
    """
    listed = examples(clips) if clips is not None else []

    @app.get("/", include_in_schema=False)
    async def index() -> FileResponse:
        return FileResponse(STATIC / "index.html", headers=HEADERS)

    @app.get("/page/examples", include_in_schema=False)
    async def offered() -> list[dict[str, str]]:
        return listed

    @app.get("/page/clips/{name}", include_in_schema=False)
    async def clip(name: str) -> FileResponse:
        # only names that are listed: a path such as ../secret never reaches the disk
        if clips is None or name not in {one["file"] for one in listed}:
            raise HTTPException(404)
        return FileResponse(clips / name)

    files = {path.name: path for path in STATIC.iterdir()}

    @app.get("/page/{name}", include_in_schema=False)
    async def file(name: str) -> FileResponse:
        if name not in files:
            raise HTTPException(404)
        return FileResponse(files[name], headers=HEADERS)


def examples(folder: Path) -> list[dict[str, str]]:
    """The clips of a folder: file, words, tone, and the title of the group that each belongs to."""
    groups = json.loads((folder / "clips.json").read_text())
    return [
        # "part" is the page's own field for the group
        {"part": GROUP_TITLES[group], "file": item["file"], "text": item["text"], "tone": item["style"]["emotion"]}
        for group, items in groups.items()
        for item in items
    ]
