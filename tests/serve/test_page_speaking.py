"""A spoken conversation on the page: a browser with a voice, and a microphone that the test speaks into."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.browser import MICROPHONE, STEP_TIMEOUT_MS, VOICE, drop_file, last_reply

from dualslm.tiny import CLIPS

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ANGRY = CLIPS / "hear_1_angry.wav"
HAPPY = CLIPS / "hear_2_happy.wav"
RUNNING = re.compile(r"0\.[1-9]|[1-9]\.")  # seconds of a recording for which the microphone is open


@pytest.fixture
def speaking(browser: Browser, server: str) -> Iterator[Page]:
    """The page with a voice and a microphone that the test speaks into."""
    page = browser.new_page()
    page.set_default_timeout(STEP_TIMEOUT_MS)
    page.add_init_script(VOICE + MICROPHONE)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(server)
    page.locator(".told[aria-busy=false]").nth(2).wait_for()
    yield page
    assert not faults
    page.close()


def until(page: Page, condition: str) -> None:
    """Waits for a condition; the page's policy forbids the browser to be asked for it once and for all."""
    end = time.monotonic() + STEP_TIMEOUT_MS / 1000
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(100)


def say(page: Page, clip: Path) -> None:
    page.evaluate("(data) => window.say(data)", base64.b64encode(clip.read_bytes()).decode())


def test_hands_free_turns_end_by_themselves_and_are_interrupted_by_speaking(speaking: Page) -> None:
    page = speaking
    page.get_by_role("button", name="Hands-free").click()
    page.locator("#mode", has_text="listening").wait_for()
    say(page, CLIPS / "memory_1_neutral.wav")
    assert last_reply(page, 1)
    until(page, "window.heard.length > 0")  # the reply was read to its end
    assert " ".join(page.evaluate("window.heard")) == page.locator(".answer").inner_text()
    page.locator(".words", has_text=re.compile("dog|Molly|called")).wait_for()

    page.evaluate("window.pace = 2000")  # slowly, so that it can be interrupted
    say(page, ANGRY)
    page.locator(".answer[aria-busy=false]").nth(1).wait_for()
    whole = page.locator(".answer").nth(1).inner_text()
    until(page, "window.spoken.length > window.heard.length")
    page.wait_for_timeout(2500)
    page.evaluate("window.pace = 20")
    say(page, HAPPY)
    page.locator(".meta", has_text="interrupted").wait_for()
    kept = page.locator(".answer").nth(1).inner_text()
    assert whole.startswith(kept)
    assert 0 < len(kept) < len(whole)
    assert last_reply(page, 3)
    assert page.locator(".turn").count() == 3
    page.get_by_role("button", name="Hands-free").click()
    page.get_by_role("button", name="Record", exact=True).wait_for()


def test_the_reply_is_read_aloud_and_one_click_silences_it(speaking: Page) -> None:
    page = speaking
    drop_file(page, ANGRY)
    answer = last_reply(page, 1)
    until(page, "window.heard.length > 1")
    assert " ".join(page.evaluate("window.spoken")) == answer
    page.get_by_role("switch", name="aloud").click()
    drop_file(page, HAPPY)
    last_reply(page, 2)
    assert " ".join(page.evaluate("window.spoken")) == answer
    page.reload()
    assert not page.get_by_role("switch", name="aloud").is_checked(), "it stays off"


def test_hold_to_talk_by_space_and_by_touch_and_discard(speaking: Page) -> None:
    page = speaking
    page.keyboard.down("Space")
    page.locator("#time", has_text=RUNNING).wait_for()
    say(page, ANGRY)
    page.keyboard.up("Space")
    page.locator(".words", has_text=re.compile("thief|bank|umbrella")).wait_for()
    last_reply(page, 1)
    page.locator(".below .acts").wait_for()
    box = page.locator("#record").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    page.mouse.down()
    page.locator("#time", has_text=RUNNING).wait_for()
    say(page, HAPPY)
    page.mouse.up()
    page.locator(".words", has_text=re.compile("daughter|baby|morning")).wait_for()
    last_reply(page, 2)
    page.get_by_role("button", name="Record", exact=True).click()
    page.locator("#time", has_text=RUNNING).wait_for()
    page.get_by_role("button", name="Discard the recording").click()
    page.get_by_role("button", name="Record", exact=True).click()
    page.locator("#time", has_text=RUNNING).wait_for()
    say(page, ANGRY)
    page.get_by_role("button", name="Listen before sending").click()
    page.locator("#waiting .editor").get_by_role("button", name="Discard").click()
    assert page.locator(".turn").count() == 2
    page.locator("#text").click()
    page.keyboard.type("a b")
    assert page.locator("#text").input_value() == "a b", "where one types, Space is a space"


def test_the_live_picture_takes_the_colour_of_the_emotion(speaking: Page) -> None:
    page = speaking
    page.get_by_role("button", name="Record", exact=True).click()
    with page.expect_response("**/v1/trace") as asked:
        for _ in range(3):
            say(page, ANGRY)
    assert asked.value.json()["windows"]
    page.wait_for_timeout(300)
    coloured = page.evaluate("""() => {
        const canvas = document.getElementById("live");
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        let red = 0;
        for (let at = 0; at < data.length; at += 4) red += data[at + 3] > 200 && data[at] > data[at + 2] + 60;
        return red;
    }""")
    assert coloured > 20
    page.keyboard.press("Escape")
