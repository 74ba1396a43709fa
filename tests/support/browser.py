"""Chromium without a window, for the tests of the page; they are skipped where it cannot be started."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Playwright

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
STEP_TIMEOUT_MS = int(os.environ.get("DUALSLM_STEP_S", "60")) * 1000  # a machine may be busy with other tests

# Drops a file on the page as a person would.
DROP = """([name, numbers]) => {
    const data = new DataTransfer();
    data.items.add(new File([new Uint8Array(numbers)], name));
    for (const kind of ["dragenter", "dragover", "drop"])
        document.body.dispatchEvent(new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
}"""


# A voice that takes its time: `spoken` has the sentences it was given, `heard` those that it came to the end of.
VOICE = """
    window.spoken = [];
    window.heard = [];
    window.SpeechSynthesisUtterance = class { constructor(text) { this.text = text; } };
    const queue = [];
    let timer = null;
    const next = () => {
        const one = queue[0];
        if (!one || timer) return;
        const words = [...one.text.matchAll(/\\S+/g)];
        one.onstart?.({});
        const step = () => {
            const word = words.shift();
            if (word) {
                one.onboundary?.({ charIndex: word.index, charLength: word[0].length });
                timer = setTimeout(step, window.pace ?? 50);
                return;
            }
            timer = null;
            queue.shift();
            window.heard.push(one.text);
            one.onend?.({});
            next();
        };
        timer = setTimeout(step, 0);
    };
    Object.defineProperty(window, "speechSynthesis", { value: {
        getVoices: () => [{ name: "Anna", lang: "de-DE" }],
        addEventListener() {},
        speak(one) { window.spoken.push(one.text); queue.push(one); next(); },
        cancel() {
            clearTimeout(timer);
            timer = null;
            queue.splice(0).forEach((one) => one.onerror?.({ error: "canceled" }));
        },
    } });
"""
# A microphone that hears what the test plays: `say(base64 of a wav)` gives a promise of its end.
MICROPHONE = """
    const context = new AudioContext();
    const room = context.createMediaStreamDestination();
    navigator.mediaDevices.getUserMedia = async () => { await context.resume(); return room.stream.clone(); };
    window.say = async (data) => {
        const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
        const source = context.createBufferSource();
        source.buffer = await context.decodeAudioData(bytes.buffer);
        source.connect(room);
        const over = new Promise((done) => (source.onended = done));
        source.start();
        await over;
    };
"""


def playwright() -> Iterator[Playwright]:
    """Playwright, whose event loop runs until the caller is done."""
    api = pytest.importorskip("playwright.sync_api", reason="no browser tests: pip install playwright")
    if _chromium() is None:
        pytest.skip("no browser tests: chromium is not installed (apt-get install chromium)")
    with api.sync_playwright() as play:
        yield play


def chromium(play: Playwright, *flags: str) -> Browser:
    """A browser of its own."""
    return play.chromium.launch(executable_path=_chromium(), args=[*FLAGS, *flags])


def _chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("google-chrome")


def drop(page: Page, name: str, data: bytes) -> None:
    """Drops a file on the page."""
    page.evaluate(DROP, [name, list(data)])


def drop_file(page: Page, path: Path) -> None:
    """Drops a file of the disk on the page."""
    drop(page, path.name, path.read_bytes())


def drop_files(page: Page, *paths: Path) -> None:
    """Drops several files at once."""
    page.evaluate(
        """(files) => {
            const data = new DataTransfer();
            for (const [name, numbers] of files) data.items.add(new File([new Uint8Array(numbers)], name));
            document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
        }""",
        [[path.name, list(path.read_bytes())] for path in paths],
    )


def last_reply(page: Page, number: int) -> str:
    """The text of the last of so many replies, once it is whole."""
    page.locator(".answer[aria-busy=false]").nth(number - 1).wait_for()
    assert page.locator(".answer").count() == number
    return page.locator(".answer").last.inner_text()
