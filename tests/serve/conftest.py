"""What several tests of the server share: the page in a browser, and the embedded model behind an application."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from support.browser import STEP_TIMEOUT_MS, chromium, playwright
from support.servekit import process, threaded

from dualslm import tiny
from dualslm.conversation import Conversation
from dualslm.inference.local import LocalBackend
from dualslm.inference.session import Session
from dualslm.model.dualslm import DualSLM
from dualslm.serve.app import app
from dualslm.serve.service import Service
from dualslm.tiny import world
from dualslm.tiny.questions import ASKED
from dualslm.tiny.world import LISTEN

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Playwright


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with process() as (address, run):
        yield address.removesuffix("v1")
        assert run.poll() is None


@pytest.fixture(scope="module")
def play() -> Iterator[Playwright]:
    yield from playwright()


@pytest.fixture(scope="module")
def browser(play: Playwright) -> Iterator[Browser]:
    one = chromium(play)
    yield one
    one.close()


@pytest.fixture
def page(browser: Browser, server: str) -> Iterator[Page]:
    """The page, opened anew; whatever it asks for, it asks of its own server."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    asked: list[str] = []
    faults: list[str] = []
    page.set_default_timeout(STEP_TIMEOUT_MS)
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(server)
    page.locator(".example").first.wait_for()
    yield page
    assert not [url for url in asked if not url.startswith((server, "blob:" + server))]
    assert not faults
    context.close()


@pytest.fixture(scope="module")
def session() -> Session:
    return Session(tiny.load(), Conversation(world.LISTEN), questions=ASKED, context=tiny.CONTEXT)


@pytest.fixture(scope="module")
def model() -> DualSLM:
    return tiny.load()


@pytest.fixture(scope="module")
def url(model: DualSLM) -> Iterator[str]:
    service = Service(model, LocalBackend(model.llm), questions=ASKED, context=tiny.CONTEXT, system=LISTEN)
    with threaded(app(service, page=False)) as address:
        yield address
