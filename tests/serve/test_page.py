"""The page in a real browser, served by a real process: what a person sees is what the Python API says."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from support.browser import STEP_TIMEOUT_MS, chromium, drop, drop_file, last_reply, playwright
from support.servekit import SlowBackend, process, threaded

from dualslm import tiny
from dualslm.conversation import NORMAL, Conversation, Speech, View
from dualslm.inference.session import Session
from dualslm.model.dualslm import DualSLM
from dualslm.serve.app import app
from dualslm.serve.service import Service
from dualslm.tiny import CLIPS, world
from dualslm.tiny.questions import ASKED

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Playwright

ANGRY = CLIPS / "hear_1_angry.wav"
HAPPY = CLIPS / "hear_2_happy.wav"
EXAM = CLIPS / "tones_1_happy.wav"
TONE = {"gender": "male", "pitch": "middle", "tempo": "fast", "energy": "loud", "emotion": "angry"}


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


def reply(session: Session, *said: Speech | str, view: View = NORMAL) -> str:
    conversation = Conversation(world.LISTEN)
    session.view = view
    for part in said:
        if conversation.turns:
            conversation.assistant("".join(session.answer(conversation)))
        conversation.user(part)
    return "".join(session.answer(conversation))


def test_a_dropped_recording_is_described_and_answered(page: Page, session: Session) -> None:
    drop_file(page, ANGRY)
    page.locator(".acts").wait_for()
    assert last_reply(page, 1) == reply(session, Speech(ANGRY))
    assert page.locator(".words").inner_text() == session.describe(Speech(ANGRY)).words
    best = page.locator(".gauge:has(.best)")
    shown = {row.locator("dt").inner_text(): row.locator(".best").inner_text().strip() for row in best.all()}
    assert shown == TONE
    for gauge in page.locator(".gauge").all():
        degrees = [int(cell.get_attribute("aria-valuenow") or -1) for cell in gauge.locator("[role=meter]").all()]
        assert sum(degrees) == pytest.approx(100, abs=2)
    assert re.search(r"first token \d.* tokens/s", page.locator(".meta").inner_text(), re.DOTALL)
    assert page.locator(".wave rect").count() > 20
    page.get_by_role("button", name="Play hear_1_angry.wav").click()
    page.get_by_role("button", name="Pause hear_1_angry.wav").wait_for()


def test_the_same_words_in_another_tone_get_another_reply(page: Page, session: Session) -> None:
    drop_file(page, EXAM)
    page.get_by_role("button", name="Same words, another tone").click()
    first = last_reply(page, 1)
    page.locator(".chip", has_text="afraid").click()
    voice = {name: value for name, value in session.describe(Speech(EXAM)).attributes.items() if value}
    caption = ASKED.caption({**voice, "emotion": "afraid"})
    described = Speech(EXAM).in_the_tone_of(Speech(caption=caption))
    assert last_reply(page, 2) == reply(session, described) != first
    page.get_by_label("As in a clip").select_option(label="angry: A thief at the bank took my umbrella.")
    page.locator("form", has=page.get_by_label("As in a clip")).get_by_role("button").click()
    assert last_reply(page, 3) == reply(session, Speech(EXAM).in_the_tone_of(Speech(ANGRY))) != first
    page.get_by_label("In words").fill("a female speaker, sounding sad")
    page.get_by_label("In words").press("Enter")
    sad = Speech(EXAM).in_the_tone_of(Speech(caption="a female speaker, sounding sad"))
    assert last_reply(page, 4) == reply(session, sad) != first


def test_what_a_reply_rests_on(page: Page) -> None:
    drop_file(page, ANGRY)
    page.get_by_role("button", name="What decided the reply").click()
    rests = page.locator(".rests").inner_text()
    tone, words = rests.split("decided by the words:")
    assert "You" in tone
    assert "bank" in words
    assert page.locator(".answer").inner_text().startswith("You have every right")


def test_a_conversation_goes_on_from_the_chosen_reply(page: Page, session: Session) -> None:
    page.get_by_role("button", name="I have a dog called Molly. neutral").click()
    page.locator(".acts").wait_for()
    page.get_by_role("button", name="Examples").click()
    page.locator("#menu").get_by_role("button", name="I cannot find my backpack").click()
    page.locator(".acts").nth(1).wait_for()
    said = [Speech(CLIPS / "memory_1_neutral.wav"), Speech(CLIPS / "memory_3_afraid.wav")]
    answer = last_reply(page, 2)
    assert answer == reply(session, *said)
    assert "Molly" in answer
    page.get_by_label("Type what you say").fill("It was a long day.")
    page.get_by_role("button", name="Send", exact=True).click()
    assert last_reply(page, 3) == reply(session, *said, "It was a long day.")
    page.get_by_role("button", name="New conversation").click()
    page.locator("#start h2").wait_for()
    assert page.locator(".turn").count() == 0


def test_each_channel_can_be_switched_off(page: Page, session: Session) -> None:
    page.get_by_role("switch", name="tone P").click()
    drop_file(page, ANGRY)
    assert last_reply(page, 1) == reply(session, Speech(ANGRY), view=View("none", "speech"))
    assert page.locator(".how").inner_text() == "without the tone"


def test_a_bad_file_is_explained_and_the_conversation_goes_on(page: Page, session: Session) -> None:
    drop(page, "notes.txt", b"this is no recording, it is a text")
    alert = page.locator(".turn [role=alert]")
    alert.wait_for()
    assert "cannot decode" in alert.inner_text().lower()
    assert "wav, flac, mp3 or ogg" in alert.inner_text()
    drop(page, "nothing.wav", b"")
    page.locator(".turn [role=alert]").nth(1).wait_for()
    drop_file(page, HAPPY)
    assert last_reply(page, 1) == reply(session, Speech(HAPPY))


def test_the_keyboard_is_enough(page: Page, session: Session) -> None:
    def reach(name: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            focus = page.locator(":focus")
            if focus.count() and (focus.get_attribute("aria-label") or focus.inner_text()).startswith(name):
                return
        raise AssertionError(f"no Tab leads to {name}")

    reach("A thief")
    page.keyboard.press("Enter")
    page.locator(".acts").wait_for()
    reach("Play")
    reach("Same words")
    page.keyboard.press("Enter")
    reach("sad")
    page.keyboard.press("Enter")
    assert last_reply(page, 2) != reply(session, Speech(ANGRY))
    page.keyboard.press("Tab")
    reach("Type what")
    page.keyboard.type("It was a long day.")
    page.keyboard.press("Enter")
    last_reply(page, 3)


def test_without_a_microphone_it_says_so(page: Page) -> None:
    page.get_by_role("button", name="Record", exact=True).click()
    page.locator("#notice", has_text="No microphone").wait_for()


def test_a_recording_from_the_microphone_is_answered(play: Playwright, server: str) -> None:
    sound = f"--use-file-for-fake-audio-capture={ANGRY}"  # over and over
    browser = chromium(play, "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", sound)
    page = browser.new_page()
    page.set_default_timeout(STEP_TIMEOUT_MS)
    page.goto(server)
    page.get_by_role("button", name="Record", exact=True).click()
    page.locator("#recording", has_text=re.compile(r"^[3-9]\.")).wait_for()
    page.get_by_role("button", name="Send the recording").click()
    page.locator(".words", has_text=re.compile("thief|bank|umbrella")).wait_for()
    assert last_reply(page, 1)
    browser.close()


@pytest.fixture(scope="module")
def encoder_only() -> DualSLM:
    return tiny.load(load_llm=False)


@pytest.fixture
def elsewhere(encoder_only: DualSLM) -> Service:
    """A service without the LLM's weights, whose backend says la la."""
    return Service(encoder_only, SlowBackend(0.02), questions=ASKED, system=world.LISTEN)


def test_a_reply_can_be_stopped_and_an_llm_elsewhere_explains_less(browser: Browser, elsewhere: Service) -> None:
    with threaded(app(elsewhere, clips=CLIPS)) as url:
        page = browser.new_page()
        page.set_default_timeout(STEP_TIMEOUT_MS)
        page.goto(url.removesuffix("v1"))
        page.locator(".example").first.click()
        page.locator(".answer", has_text="la la la").wait_for()
        page.get_by_role("button", name="Stop the reply").click()
        page.locator(".meta", has_text="keeps what was said").wait_for()
        assert re.fullmatch(r"(la )+", page.locator(".answer").text_content() or "")
        page.locator(".acts", has_text="The LLM runs elsewhere").wait_for()
        assert page.get_by_text("no clear answer").count() == len(TONE)
        page.close()


def test_a_key_is_asked_for_and_taken(browser: Browser, elsewhere: Service) -> None:
    with threaded(app(elsewhere, clips=CLIPS, key="sesame")) as url:
        page = browser.new_page()
        page.set_default_timeout(STEP_TIMEOUT_MS)
        page.goto(url.removesuffix("v1"))
        page.locator("[role=alert]", has_text="asks for an API key").wait_for()
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("API key").fill("sesame")
        page.get_by_label("API key").press("Enter")
        page.keyboard.press("Escape")
        page.locator(".example").first.wait_for()
        assert page.locator(".turn, .error").count() == 0
        page.close()


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_screen(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    drop_file(page, ANGRY)
    page.get_by_role("button", name="Same words, another tone").click()
    page.get_by_role("button", name="What decided the reply").click()
    page.locator(".rests").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_files_of_the_page_and_no_others(server: str) -> None:
    with urllib.request.urlopen(server) as answer:
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
        linked = re.findall(r'(?:src|href)="(?!#)([^"]+)"', answer.read().decode())
    assert len(linked) >= 3
    for name in linked:
        urllib.request.urlopen(server + name).close()
    for name in ("page/__init__.py", "page/..%2f__init__.py", "page/clips/..%2f__init__.py", "page/nothing.js"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(server + name)
