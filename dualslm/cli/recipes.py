"""The verb `recipes`: lists the shipped recipes, and copies one to be changed. Nothing heavy is imported before use."""

from __future__ import annotations

import argparse
from pathlib import Path

import dualslm
from dualslm.cli.options import print_json
from dualslm.errors import DualSLMError, one_line, visible
from dualslm.files import replacing

PACKAGE = Path(dualslm.__file__).parent
# in a wheel they lie inside the package, in a checkout beside it
FOLDER = next((one for one in (PACKAGE / "recipes", PACKAGE.parent / "recipes") if one.is_dir()), PACKAGE / "recipes")
SHIPPED_PARTS = "dualslm/tiny/weights/"  # as the recipes of the tiny world name them, from a checkout


def add_recipes(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `recipes`."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="the recipe that is copied; all are listed without it")
    parser.add_argument("--to", type=Path, metavar="FOLDER", default=Path("recipes"), help="(default: recipes)")
    parser.set_defaults(verb=_recipes)


def _recipes(args: argparse.Namespace) -> int:
    shipped = {path.stem: path for path in sorted(FOLDER.glob("*.toml"), key=lambda path: path.stem)}
    if args.name is None:
        if args.json:
            print_json([{"name": name, "about": _about(path)} for name, path in shipped.items()])
            return 0
        for name, path in shipped.items():
            print(visible(f"{name:16} {_about(path)}"))
        print("\ndualslm recipes NAME copies one to recipes/NAME.toml; dualslm plan says what it takes")
        return 0
    name = args.name.removesuffix(".toml")
    if name not in shipped:
        raise DualSLMError("no such recipe is shipped", got=args.name, do=f"give one of {', '.join(shipped)}")
    target = args.to / f"{name}.toml"
    if target.exists():
        raise DualSLMError(f"{target} is there already", got="a file", do="give another folder with --to")
    text = shipped[name].read_text(encoding="utf-8")
    if not Path(SHIPPED_PARTS).is_dir():
        # away from a checkout the shipped weights lie where the package was installed
        text = text.replace(f'"{SHIPPED_PARTS}', f'"{(PACKAGE / "tiny" / "weights").as_posix()}/')
    try:
        args.to.mkdir(parents=True, exist_ok=True)
        with replacing(target) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DualSLMError(f"cannot write {target}", got=error.strerror, do="give another folder with --to") from error
    if args.json:
        print_json({"recipe": str(target)})
    else:
        print(one_line(f"{target}: change it, then dualslm plan {target}"))
    return 0


def _about(path: Path) -> str:
    """What a recipe is for: the first sentence of its comment."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# "):
            break
        lines.append(line.removeprefix("# "))
    return " ".join(lines).partition(". ")[0].rstrip(".")
