"""Writes THIRD_PARTY.md: the licences of all that is shipped and of all that an installation pulls in.

    python docs/build/third_party.py [--check] [--sbom FILE]

Packages are those of constraints.txt, and their licences are what each states of itself in the environment that runs
this, which therefore needs all extras. What no package states (native libraries inside wheels, models, the recordings
that shipped weights learnt from) is listed below by hand. `--check` only compares and returns 1 where the page is
stale. `--sbom` writes the same packages as a bill of materials in CycloneDX's JSON form.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from dualslm import __version__

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "THIRD_PARTY.md"
DEVELOPMENT = "dev"  # the extra that no user installs

# Said in no metadata, or not clearly: package → licence. Each was read in the package's own files or its repository.
STATED = {
    "accelerate": "Apache-2.0",
    "av": "BSD-3-Clause; in its wheels FFmpeg LGPL-3.0-or-later, x264 and x265 GPL-2.0-or-later",
    "axe-playwright-python": "MIT; axe-core in it MPL-2.0",
    "certifi": "MPL-2.0",
    "cycler": "BSD-3-Clause",
    "espeakng-loader": "not stated; espeak-ng in it GPL-3.0-or-later",
    "kiwisolver": "BSD-3-Clause",
    "matplotlib": "Matplotlib licence (PSF style)",
    "praat-parselmouth": "GPL-3.0-or-later",
    "scipy": "BSD-3-Clause",
}

# Inside wheels or beside them: (what, licence, where it is).
NATIVE = [
    (
        "espeak-ng",
        "GPL-3.0-or-later",
        "in espeakng-loader, extra `voices`; loaded at run time, never shipped with dualslm",
    ),
    (
        "Praat",
        "GPL-3.0-or-later",
        "in praat-parselmouth, extra `label`; loaded at run time, never shipped with dualslm",
    ),
    ("libsoxr", "LGPL-2.1-or-later", "compiled into the extension module of soxr"),
    ("libsndfile, with mpg123 and LAME", "LGPL-2.1-or-later", "in soundfile, loaded dynamically by that package"),
    (
        "FFmpeg",
        "LGPL-3.0-or-later, as its libraries in av say",
        "in av, extra `media`; or the system's own `ffmpeg`, under its own terms",
    ),
    ("x264, x265", "GPL-2.0-or-later", "in av's wheels beside FFmpeg, extra `media`; dualslm encodes no video"),
    ("PortAudio", "MIT", "in sounddevice, extra `chat`"),
    ("CUDA libraries", "NVIDIA's own", "with PyTorch's builds for GPUs, which pip installs on Linux"),
    ("Chromium", "BSD-3-Clause and others", "the system's, for tests of the page alone"),
]

# Weights and recordings: (what, licence, what it learnt from or came from).
MODELS = [
    (
        "the embedded encoder, LLM and adapters (`dualslm/tiny/weights`)",
        "Apache-2.0, as dualslm",
        "sentences and conversations that `dualslm.tiny` writes, spoken by espeak-ng; no data of others",
    ),
    (
        "the embedded clips (`dualslm/tiny/wavs`)",
        "Apache-2.0, as dualslm",
        "spoken by espeak-ng, whose output is not under its licence",
    ),
    (
        "the pocket model's encoder, whisper-base",
        "MIT (OpenAI)",
        "fetched once, never shipped; OpenAI does not name its recordings",
    ),
    (
        "the pocket model's LLM, SmolLM2-135M-Instruct",
        "Apache-2.0 (Hugging Face)",
        "fetched once, never shipped; learnt from the texts that its model card names",
    ),
    (
        "the pocket model's recordings (`dualslm/pocket/recordings`)",
        "CC BY 4.0 and CC BY-SA 4.0, as `clips.json` says of each",
        "LibriSpeech, speechocean762 and the wake words by telephone, whole, stored as FLAC at 16 kHz",
    ),
    (
        "the pocket model's adapters",
        "on their card",
        "the corpora in [docs/pocket.md](docs/pocket.md#licences), each under its own licence",
    ),
    ("silero-vad", "MIT", "in the package of that name, extra `chat`"),
]


@dataclass(frozen=True)
class Package:
    """A pinned package.

    Attributes:
        name: as constraints.txt spells it.
        version: its pin.
        licence: what it states, or "not stated".
        extras: extras that pull it in; "" is dualslm without any.
    """

    name: str
    version: str
    licence: str
    extras: tuple[str, ...]

    @property
    def use(self) -> str:
        """Who gets it, in words."""
        if "" in self.extras:
            return "everybody"
        users = [extra for extra in self.extras if extra != DEVELOPMENT]
        return ", ".join(f"`{extra}`" for extra in users) or (
            "development" if self.extras else "development, indirectly"
        )


def packages() -> list[Package]:
    """Every package of constraints.txt.

    Raises:
        SystemExit: one is not installed here, or in another version.
    """
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.strip().split("==") for line in lines if "==" in line and not line.startswith("#"))
    wanted = pulled_in()
    found = []
    for name, version in sorted(pins.items(), key=lambda pin: _key(pin[0])):
        try:
            stated = metadata.metadata(name)
        except metadata.PackageNotFoundError:
            sys.exit(f"{name} is not installed: install every extra first (make test)")
        if stated["Version"].split("+")[0] != version:
            sys.exit(f"{name} is installed in version {stated['Version']}, not {version}: install the pins first")
        extras = tuple(sorted(extra for extra, names in wanted.items() if _key(name) in names))
        found.append(Package(name, version, licence(name, stated), extras))
    return found


def licence(name: str, stated: metadata.PackageMetadata) -> str:
    """The licence of a package by its own words, the clearest of them first."""
    if _key(name) in STATED:
        return STATED[_key(name)]
    classifiers = [one.split(" :: ")[-1] for one in stated.get_all("Classifier") or [] if one.startswith("License ::")]
    text = (stated.get("License") or "").strip()
    one_line = text if text and "\n" not in text and len(text) < 60 else ""
    return stated.get("License-Expression") or one_line or ", ".join(classifiers) or "not stated"


def pulled_in() -> dict[str, set[str]]:
    """The packages that dualslm and each of its extras need, and what those need in turn."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    return {extra: _closure(requirements) for extra, requirements in groups.items()}


def _closure(requirements: list[str]) -> set[str]:
    found: set[tuple[str, str]] = set()
    todo = list(_needed(requirements, ""))
    while todo:
        name, extra = todo.pop()
        if (name, extra) in found:
            continue
        found.add((name, extra))
        try:
            todo += _needed(metadata.requires(name) or [], extra)
        except metadata.PackageNotFoundError:  # for another system, or a GPU's, which no pin names
            continue
    return {name for name, _ in found}


def _needed(requirements: list[str], extra: str) -> Iterator[tuple[str, str]]:
    for text in requirements:
        one = Requirement(text)
        if one.marker is None or one.marker.evaluate({"extra": extra}):
            yield _key(one.name), ""
            yield from ((_key(one.name), wanted) for wanted in sorted(one.extras))


def _key(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# ---------------------------------------------------------------------- the page and the bill


def page(found: list[Package]) -> str:
    """THIRD_PARTY.md."""
    rows = [f"| {one.name} | {one.version} | {one.licence} | {one.use} |" for one in found]
    return "\n".join(
        [
            "# What others made",
            "",
            "dualslm is under Apache-2.0. Its wheel contains no code of others. This page is written by",
            "`python docs/build/third_party.py`, which reads what each package states of itself.",
            "",
            "GPL: espeak-ng, Praat, and x264 and x265 in the wheels of PyAV come with three extras alone, `voices`,",
            "`label` and `media`, which dualslm works without; whoever passes on an installation with one of them",
            "passes on GPL software. LGPL: libsoxr and libsndfile come with every installation, each in a package of",
            "its own that can be exchanged as a whole.",
            "",
            "## Native libraries and programs",
            "",
            *_table(("what", "licence", "where"), NATIVE),
            "",
            "## Models, recordings, and what they learnt from",
            "",
            *_table(("what", "licence", "from"), MODELS),
            "",
            "## Packages",
            "",
            "For whom: everybody, those who install an extra, or development of dualslm itself.",
            "",
            "| package | version | licence | for |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _table(head: tuple[str, ...], rows: list[tuple[str, str, str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def bill(found: list[Package]) -> str:
    """The packages as a bill of materials, CycloneDX 1.5."""
    components = [
        {
            "type": "library",
            "name": one.name,
            "version": one.version,
            "purl": f"pkg:pypi/{_key(one.name)}@{one.version}",
            "licenses": [{"license": {"name": one.licence}}],
            "scope": "required" if "" in one.extras else "optional",
        }
        for one in found
    ]
    own = {"type": "application", "name": "dualslm", "version": __version__}
    head = {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "metadata": {"component": own}}
    return json.dumps({**head, "components": components}, indent=1) + "\n"


def main() -> int:
    """Writes the page, or compares it; writes the bill where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--sbom", type=Path, metavar="FILE")
    args = parser.parse_args()
    found = packages()
    if args.sbom:
        args.sbom.write_text(bill(found))
    fresh = page(found)
    if args.check:
        return int(not PAGE.exists() or PAGE.read_text() != fresh)
    PAGE.write_text(fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main())
