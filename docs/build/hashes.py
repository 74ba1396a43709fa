"""Writes requirements-hashed.txt: the pins of constraints.txt, with the SHA-256 of every archive that pip may choose.

    python docs/build/hashes.py [--check]

The hashes are those that the package index states (`PIP_INDEX_URL`, or PyPI). Archives for systems and interpreters
that dualslm is not tried on are left out. PyTorch is left out as well: its builds for CPUs and for each CUDA come from
indexes of their own. `--check` asks no index: it returns 1 where the pins are others, or one has no hash.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import urllib.request
from pathlib import Path

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_sdist_filename, parse_wheel_filename
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PINS = ROOT / "constraints.txt"
PAGE = ROOT / "requirements-hashed.txt"
ELSEWHERE = frozenset({"torch"})  # comes from an index that the user chooses
INTERPRETERS = re.compile(r"py3|py2|cp3(11|12|13|14)$")
SYSTEMS = re.compile(r"any$|manylinux.*(x86_64|aarch64)$|linux_x86_64$|macosx_.*|win_amd64$")
HEAD = """\
# Written by docs/build/hashes.py from constraints.txt. With PyTorch installed from the index of your choice:
#     pip install --require-hashes --no-deps -r requirements-hashed.txt && pip install --no-deps .
"""


def main() -> int:
    """Writes the file, or compares its pins."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say whether the pins are the same")
    if parser.parse_args().check:
        hashed = re.findall(r"^(\S+==\S+)(?: \\\n    --hash=sha256:[0-9a-f]{64})+$", PAGE.read_text(), re.MULTILINE)
        return int(hashed != wanted())
    index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/")
    lines = [HEAD]
    for pin in wanted():
        name, _, version = pin.partition("==")
        hashes = hashes_of(index, name, Version(version))
        if not hashes:
            raise SystemExit(f"error: the index has no archive of {pin} for any system that is asked for")
        lines.append(" \\\n".join([pin, *(f"    --hash=sha256:{one}" for one in hashes)]) + "\n")
    PAGE.write_text("".join(lines))
    return 0


def wanted() -> list[str]:
    """The pins that have hashes."""
    return [pin for pin in PINS.read_text().splitlines() if "==" in pin and pin.partition("==")[0] not in ELSEWHERE]


def hashes_of(index: str, name: str, version: Version) -> list[str]:
    """The SHA-256 of the archives of a version, sorted."""
    address = f"{index}/{canonicalize_name(name)}/"
    request = urllib.request.Request(address, headers={"Accept": "application/vnd.pypi.simple.v1+json"})
    with urllib.request.urlopen(request) as answer:
        files = json.load(answer)["files"]
    return sorted({file["hashes"]["sha256"] for file in files if fits(file["filename"], version)})


def fits(file: str, version: Version) -> bool:
    """Whether an archive is of this version, and for a system that dualslm is tried on."""
    if file.endswith(".whl"):
        try:
            _, own, _, tags = parse_wheel_filename(file)
        except InvalidWheelFilename:  # of the years before the rule
            return False
        return own == version and any(
            (INTERPRETERS.match(tag.interpreter) or tag.abi == "abi3") and SYSTEMS.search(tag.platform) for tag in tags
        )
    return file.endswith(".tar.gz") and _is_source(file, version)


def _is_source(file: str, version: Version) -> bool:
    try:
        return parse_sdist_filename(file)[1] == version
    except ValueError:
        return False


if __name__ == "__main__":
    raise SystemExit(main())
