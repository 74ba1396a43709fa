"""A stock vLLM server with the tiny LLM, started once for the tests that ask for it and stopped after them.

vLLM's CPU build lives in an environment of its own, which `make test-vllm` makes. `DUALSLM_VLLM_PYTHON` names the
Python of another one. Where there is none, such tests are skipped.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dualslm.tiny import WEIGHTS

ROOT = Path(__file__).resolve().parents[2]
NAME = "tiny"  # as the server calls its LLM
START_TIMEOUT_S = 900  # a minute on a free machine
CONTEXT = 1024  # tokens, the limit of the tiny LLM
STRUCTURED_OUTPUTS = (
    '{"backend": "xgrammar", "disable_any_whitespace": true}'  # else so small an LLM writes blanks without end
)


def python() -> Path:
    """The Python that has vLLM."""
    return Path(os.environ.get("DUALSLM_VLLM_PYTHON", ROOT / ".venv-vllm" / "bin" / "python"))


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def serving(folder: Path, *options: str, llm: Path = WEIGHTS / "llm") -> Iterator[str]:
    """Runs vLLM while the block lasts and gives its address up to and with /v1.

    Args:
        folder: folder for its log.
        *options: options of vLLM beside those below.
        llm: folder of the LLM that it runs.
    """
    port = free_port()
    command = [str(python()), "-m", "vllm.entrypoints.openai.api_server", "--model", str(llm)]
    command += ["--served-model-name", NAME, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--enable-prompt-embeds", "--dtype", "float32", "--enforce-eager", "--max-model-len", str(CONTEXT)]
    command += ["--structured-outputs-config", STRUCTURED_OUTPUTS]
    settings = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}  # GiB
    settings |= {"VLLM_NO_USAGE_STATS": "1", "PYTHONPATH": ""}
    with (folder / "vllm.log").open("w+") as log:
        run = subprocess.Popen(
            [*command, *options], stdout=log, stderr=subprocess.STDOUT, env=os.environ | settings, cwd=folder
        )
        try:
            _wait_until_healthy(run, f"http://127.0.0.1:{port}/health", folder / "vllm.log")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            run.terminate()
            try:
                run.wait(30)
            except subprocess.TimeoutExpired:  # its workers may hang while they compile
                run.kill()
                run.wait()


def _wait_until_healthy(run: subprocess.Popen[bytes], address: str, log: Path) -> None:
    for _ in range(START_TIMEOUT_S):
        assert run.poll() is None, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise AssertionError(f"vLLM did not answer in {START_TIMEOUT_S} s: {log.read_text()[-3000:]}")


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a vLLM server with the tiny LLM, up to and with /v1; asked for by name `NAME`."""
    if not python().is_file():
        pytest.skip("no vLLM: `make test-vllm` installs it, or DUALSLM_VLLM_PYTHON names a Python that has it")
    with serving(tmp_path_factory.mktemp("vllm")) as url:
        yield url
