"""axe-core finds no accessibility violation on the page, on any of its screens, in light and in dark."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import pytest
from support.browser import STEP_TIMEOUT_MS, drop_file, drop_files, last_reply

from dualslm.tiny import CLIPS

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ANGRY = CLIPS / "hear_1_angry.wav"
HAPPY = CLIPS / "hear_2_happy.wav"
# Rules by which WCAG and axe's own best practices are judged; experimental ones are not final.
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
SCREENS = [
    pytest.param(("light", (1280, 900)), id="light"),
    pytest.param(("dark", (1280, 900)), id="dark"),
    pytest.param(("light", (360, 640)), id="phone"),
    pytest.param(("dark", (360, 640)), id="dark-phone"),
]


def violations(page: Page) -> list[str]:
    """What axe finds, each with the place and the reason."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python")
    # to the end: a button that a person has scrolled half behind the composer would count as too small
    page.evaluate("window.scrollTo({ top: document.body.scrollHeight, behavior: 'instant' })")
    found: list[dict[str, Any]] = axe.Axe().run(page, options=RULES).response["violations"]
    return [f"{one['id']}: {node['html'][:160]}: {node['failureSummary']}" for one in found for node in one["nodes"]]


@pytest.fixture(params=SCREENS)
def screen(request: pytest.FixtureRequest, browser: Browser, server: str) -> Iterator[Page]:
    """The page in one of its colour schemes and sizes, its first replies read to the end."""
    scheme: Literal["light", "dark"]
    scheme, (width, height) = request.param
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    page = context.new_page()
    page.set_default_timeout(STEP_TIMEOUT_MS)
    page.goto(server)
    page.locator(".told[aria-busy=false]").nth(2).wait_for()
    page.locator(".example").first.wait_for()
    yield page
    context.close()


def test_the_first_screen(screen: Page) -> None:
    assert not violations(screen)


def test_a_reply_its_details_and_its_editors(screen: Page) -> None:
    drop_file(screen, ANGRY)
    last_reply(screen, 1)
    screen.locator(".below .acts").wait_for()
    assert not violations(screen)
    screen.get_by_text("details", exact=True).click()
    screen.get_by_role("button", name="What decided the reply").click()
    screen.locator(".rests").wait_for()
    assert not violations(screen)
    screen.get_by_role("button", name="Same words, another tone").click()
    screen.locator(".chip", has_text="afraid").click()
    last_reply(screen, 2)
    assert not violations(screen)
    screen.get_by_role("button", name="Trim").click()
    screen.locator(".ends").wait_for()
    assert not violations(screen)


def test_settings_examples_errors_and_waiting_recordings(screen: Page) -> None:
    screen.get_by_role("button", name="Settings").click()
    screen.get_by_label("System text").wait_for()
    assert not violations(screen)
    screen.keyboard.press("Escape")
    screen.get_by_label("Type what you say").fill("I lost my umbrella.")
    screen.keyboard.press("Enter")
    last_reply(screen, 1)
    screen.get_by_role("button", name="Examples").click()
    screen.locator("#menu .example").first.wait_for()
    assert not violations(screen)
    screen.keyboard.press("Escape")
    drop_files(screen, ANGRY, HAPPY)
    screen.locator("#waiting li").nth(1).wait_for()
    assert not violations(screen)


def test_a_page_without_a_microphone(screen: Page) -> None:
    screen.evaluate("Object.defineProperty(navigator, 'mediaDevices', { value: undefined })")
    screen.get_by_role("button", name="Hands-free").click()
    screen.locator("#notice").wait_for()
    assert not violations(screen)


def test_axe_does_find_violations(screen: Page) -> None:
    screen.evaluate("document.querySelector('#text').removeAttribute('aria-label')")
    screen.evaluate("document.querySelector('#text').removeAttribute('placeholder')")
    assert any(one.startswith("label: ") for one in violations(screen))
