"""The page in a real browser, served by a real process: what a person sees is what the Python API says."""

from __future__ import annotations

import io
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import soundfile
from support.browser import (
    STEP_TIMEOUT_MS,
    chromium,
    drop,
    drop_file,
    drop_files,
    last_reply,
)
from support.servekit import SlowBackend, threaded

from dualslm import tiny
from dualslm.audio import load
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
RUNNING = re.compile(r"0\.[1-9]|[1-9]\.")  # seconds of a recording for which the microphone is open
TONE = {"gender": "male", "pitch": "middle", "tempo": "fast", "energy": "loud", "emotion": "angry"}


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
    page.locator(".below .acts").wait_for()
    assert last_reply(page, 1) == reply(session, Speech(ANGRY))
    assert page.locator(".words").inner_text() == session.describe(Speech(ANGRY)).words
    best = page.locator(".gauge:has(.best)")
    shown = {row.locator("dt").inner_text(): row.locator(".best").inner_text().strip() for row in best.all()}
    assert shown == TONE
    for gauge in page.locator(".gauge").all():
        degrees = [int(cell.get_attribute("aria-valuenow") or -1) for cell in gauge.locator("[role=meter]").all()]
        assert sum(degrees) == pytest.approx(100, abs=2)
    assert not page.get_by_text("tokens/s").is_visible(), "what it took is nobody's first question"
    page.get_by_text("details", exact=True).click()
    told = page.locator("details.meta").inner_text()
    assert re.search(
        r"began after \d.* to hear the recording.*tokens/s.*positions.*L carries the words", told, re.DOTALL
    )
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
    assert "You" not in words
    assert page.locator(".answer").inner_text().startswith("You have every right")


def test_a_conversation_goes_on_from_the_chosen_reply(page: Page, session: Session) -> None:
    page.get_by_role("button", name="I have a dog called Molly. neutral").click()
    page.locator(".below .acts").wait_for()
    page.get_by_role("button", name="Examples").click()
    page.locator("#menu").get_by_role("button", name="I cannot find my backpack").click()
    page.locator(".below .acts").nth(1).wait_for()
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
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("switch", name="tone P").click()
    page.keyboard.press("Escape")
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

    reach("Play all three")
    reach("A thief")
    page.keyboard.press("Enter")
    page.locator(".below .acts").wait_for()
    # a chosen clip is played at once, and until its end the button pauses it
    page.locator(".turn").get_by_role("button", name=re.compile("^Play")).wait_for()
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
    page.locator("#time", has_text=re.compile(r"^[3-9]\.")).wait_for()
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


@pytest.mark.parametrize("size", [(360, 640), (1280, 900)])
def test_nothing_is_wider_than_the_screen_or_behind_the_composer(page: Page, size: tuple[int, int]) -> None:
    width, height = size
    page.set_viewport_size({"width": width, "height": height})
    page.locator(".told[aria-busy=false]").nth(2).wait_for()
    composer = page.locator("footer").bounding_box()
    assert composer is not None
    assert composer["y"] > 0.8 * height, "the composer takes no more than a fifth"
    for card in page.locator(".card").all():
        box = card.bounding_box()
        assert box is not None
        assert box["y"] + box["height"] <= composer["y"], "all three replies are seen at once"
    drop_file(page, ANGRY)
    page.get_by_role("button", name="Same words, another tone").click()
    page.get_by_role("button", name="What decided the reply").click()
    page.locator(".rests").wait_for()
    page.get_by_role("button", name="Trim").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    covered = page.evaluate("""() => {
        const found = [];
        for (const node of document.querySelectorAll("main button, main select, main input[type=text], main summary")) {
            if (!node.checkVisibility()) continue;
            node.scrollIntoView({ block: "nearest", behavior: "instant" });
            const box = node.getBoundingClientRect();
            if (box.bottom > document.getElementById("say").getBoundingClientRect().top + 1) found.push(node.outerHTML);
        }
        return found;
    }""")
    assert not covered


def test_one_sentence_in_three_tones_unasked(page: Page, session: Session) -> None:
    page.locator(".told[aria-busy=false]").nth(2).wait_for()
    clips = [CLIPS / f"tones_{number}.wav" for number in ("1_happy", "2_afraid", "3_angry")]
    told = [card.inner_text() for card in page.locator(".told").all()]
    assert told == [reply(session, Speech(clip)) for clip in clips]
    assert len(set(told)) == 3
    page.get_by_role("button", name="Play the afraid one").click()
    page.get_by_role("button", name="Pause the afraid one").wait_for()
    page.get_by_role("button", name="Talk on from the angry one").click()
    assert last_reply(page, 1) == told[2]


def test_several_dropped_files_are_kept_and_said_in_turn(page: Page, session: Session) -> None:
    clips = [CLIPS / f"memory_{number}.wav" for number in ("1_neutral", "2_neutral", "3_afraid")]
    drop_files(page, *clips)
    page.locator("#waiting .editor").nth(2).wait_for()
    assert page.locator(".turn").count() == 0
    page.locator(".editor", has=page.get_by_role("button", name="Play memory_2")).get_by_role(
        "button", name="Discard"
    ).click()
    page.get_by_role("button", name="Say all").click()
    assert last_reply(page, 2) == reply(session, Speech(clips[0]), Speech(clips[2]))
    assert not page.locator("#tray").is_visible()


def test_a_reload_keeps_the_conversation_and_a_new_one_forgets_it(page: Page, server: str, session: Session) -> None:
    drop_file(page, CLIPS / "memory_1_neutral.wav")
    page.locator(".below .acts").wait_for()
    page.locator(".trace span").first.wait_for()
    first = last_reply(page, 1)
    page.reload()
    page.locator(".below .acts").wait_for()
    assert last_reply(page, 1) == first
    assert page.locator(".words").inner_text() == session.describe(Speech(CLIPS / "memory_1_neutral.wav")).words
    assert page.locator(".trace span").count() >= 1
    drop_file(page, CLIPS / "memory_3_afraid.wav")
    said = [Speech(CLIPS / "memory_1_neutral.wav"), Speech(CLIPS / "memory_3_afraid.wav")]
    assert last_reply(page, 2) == reply(session, *said), "it goes on where it was"
    page.get_by_role("button", name="New conversation").click()
    page.reload()
    page.locator(".example").first.wait_for()
    assert page.locator(".turn").count() == 0


def test_a_conversation_is_downloaded_and_comes_back(page: Page, tmp_path: Path, session: Session) -> None:
    page.get_by_label("Type what you say").fill("It was a long day. </script><b id=evil>")
    page.keyboard.press("Enter")
    page.locator(".below .acts").wait_for()
    drop_file(page, ANGRY)
    page.locator(".below .acts").nth(1).wait_for()
    replies = page.locator(".answer").all_inner_texts()
    with page.expect_download() as saving:
        page.get_by_role("button", name="Download").click()
    file = tmp_path / saving.value.suggested_filename
    saving.value.save_as(file)
    other = page.context.new_page()
    other.goto(file.as_uri())
    assert (
        other.locator("audio").evaluate(
            "(one) => new Promise((done) => { one.oncanplay = () => done(one.duration); one.load(); })"
        )
        > 1
    )
    assert other.locator(".reply").all_inner_texts() == replies
    assert other.locator("#evil").count() == 0
    other.close()
    page.get_by_role("button", name="New conversation").click()
    page.locator("#start h2").wait_for()
    drop_file(page, file)
    page.locator(".turn").nth(1).wait_for()
    assert page.locator(".answer").all_inner_texts() == replies
    assert page.locator(".typed").inner_text() == "It was a long day. </script><b id=evil>"


def test_a_turn_is_copied_edited_retried_and_trimmed(page: Page, session: Session) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_label("Type what you say").fill("I have a cat called Tom.")
    page.keyboard.press("Enter")
    first = last_reply(page, 1)
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == first
    page.get_by_role("button", name="Edit").click()
    page.get_by_label("What you say instead").fill("I have a dog called Molly.")
    page.get_by_role("button", name="Say it").click()
    page.locator(".typed", has_text="Molly").wait_for()
    assert last_reply(page, 1) == reply(session, "I have a dog called Molly.")
    page.get_by_role("button", name="Try again").click()
    assert last_reply(page, 2)
    assert page.locator(".how").last.inner_text() == "another try"
    page.get_by_role("button", name="New conversation").click()
    page.locator("#start h2").wait_for()

    drop_file(page, EXAM)
    last_reply(page, 1)
    page.get_by_role("button", name="Trim").click()
    page.get_by_label("to", exact=True).fill("1")
    page.get_by_role("button", name="Say it trimmed").click()
    page.locator(".turn time", has_text="1.0 s").wait_for()
    page.locator(".below .acts").wait_for()
    part = load(EXAM)[:16000]
    sound = io.BytesIO()
    soundfile.write(sound, part, 16000, format="WAV", subtype="PCM_16")
    page.locator(".words", has_not_text="listening").wait_for()
    assert page.locator(".words").inner_text() == session.describe(Speech(sound.getvalue())).words
    assert last_reply(page, 1)


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
