"""`dualslm --version`: every version that a bug report needs."""

from __future__ import annotations

import argparse
import platform

from dualslm import __version__
from dualslm.cli.options import print_json

PACKAGES = ["torch", "transformers", "tokenizers", "safetensors", "numpy", "soundfile", "soxr"]
EXTRAS = ["espeakng-loader", "praat-parselmouth", "scipy", "silero-vad", "sounddevice"]


def show_versions(args: argparse.Namespace) -> int:
    """Prints the version of everything that matters to a bug report."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {"dualslm": __version__, "python": platform.python_version()}
    for name in (*PACKAGES, *EXTRAS):
        try:
            # from the package's metadata: importing torch for its version would take seconds
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    versions["platform"] = platform.platform()
    if args.json:
        print_json(versions)
    else:
        print("\n".join(f"{name:16} {version_}" for name, version_ in versions.items()))
    return 0
