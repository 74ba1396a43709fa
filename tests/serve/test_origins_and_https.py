"""Who may ask from a browser, and https: both off by default, both checked before the model is loaded."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
from support.servekit import SlowBackend, process, threaded

from dualslm import tiny
from dualslm.cli import main as cli
from dualslm.serve.app import app
from dualslm.serve.service import Service
from dualslm.tiny.questions import ASKED

FRIEND, STRANGER = "https://friend.example", "https://stranger.example"
ASKS = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}


@pytest.fixture(scope="module")
def service() -> Service:
    return Service(tiny.load(load_llm=False), SlowBackend(0.001), questions=ASKED)


@pytest.mark.parametrize(("origins", "allowed"), [((), set()), ((FRIEND,), {FRIEND}), (("*",), {FRIEND, STRANGER})])
def test_other_pages_may_ask_only_where_their_origin_is_named(
    service: Service, origins: tuple[str, ...], allowed: set[str]
) -> None:
    with threaded(app(service, key="sesame", origins=origins)) as url:
        for origin in (FRIEND, STRANGER):
            asked = httpx2.options(f"{url}/chat/completions", headers={"Origin": origin, **ASKS})
            granted = asked.headers.get("access-control-allow-origin")
            assert (granted in (origin, "*")) == (origin in allowed)
            # a refusal too can be read by a page that may ask
            refused = httpx2.get(f"{url}/models", headers={"Origin": origin})
            assert refused.status_code == 401
            assert ("access-control-allow-origin" in refused.headers) == (origin in allowed)
            assert "access-control-allow-credentials" not in refused.headers


@pytest.mark.parametrize(("origins", "allowed"), [((), set()), ((FRIEND,), {FRIEND}), (("*",), {FRIEND, STRANGER})])
def test_what_other_pages_send_is_answered_only_where_their_origin_is_named(
    origins: tuple[str, ...], allowed: set[str]
) -> None:
    service = Service(tiny.load(load_llm=False), SlowBackend(0.001), questions=ASKED)
    body = {"model": "dualslm", "messages": [{"role": "user", "content": "Hi."}], "max_tokens": 2}
    with threaded(app(service, origins=origins)) as url:
        for origin in (FRIEND, STRANGER):
            for site in ({}, {"Sec-Fetch-Site": "cross-site"}):
                answer = httpx2.post(f"{url}/chat/completions", json=body, headers={"Origin": origin, **site})
                assert (answer.status_code == 200) == (origin in allowed)
                assert answer.status_code in (200, 403)


@pytest.mark.parametrize("origin", ["friend.example", "https://friend.example/", "https://a.example/page", "", "null"])
def test_what_is_no_origin_is_refused(origin: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--cors", origin]) == 2
    assert "no origin" in capsys.readouterr().err


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A certificate for this machine, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl here")
    folder = tmp_path_factory.mktemp("certificate")
    found = SimpleNamespace(certificate=folder / "cert.pem", key=folder / "key.pem")
    make = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    make += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(found.key), "-out", str(found.certificate)]
    subprocess.run(make, check=True, capture_output=True)
    return found


def test_https(pair: SimpleNamespace) -> None:
    options = ["--ssl-certfile", str(pair.certificate), "--ssl-keyfile", str(pair.key)]
    with process(*options) as (address, _):
        assert address.startswith("https://")
        trusting = ssl.create_default_context(cafile=str(pair.certificate))
        with urllib.request.urlopen(address.removesuffix("v1"), context=trusting) as answer:
            assert b"dualslm" in answer.read()


def test_a_certificate_that_cannot_be_used_is_refused_at_once(
    pair: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate")
    for options in (
        ["--ssl-keyfile", str(pair.key)],
        ["--ssl-certfile", str(pair.certificate)],  # it holds no key
        ["--ssl-certfile", str(bad), "--ssl-keyfile", str(pair.key)],
        ["--ssl-certfile", str(tmp_path / "nowhere.pem"), "--ssl-keyfile", str(pair.key)],
    ):
        assert cli.main(["serve", *options]) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert "certificate" in told or "https" in told
