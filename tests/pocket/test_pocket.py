"""`pocket` is a model's name: a shipped card, parts by their names, and one plain line where this build has none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.factory import save_encoder, save_llm

from dualslm import pocket
from dualslm.cli import main as cli
from dualslm.errors import DualSLMError
from dualslm.model.card import modelcard
from dualslm.model.checkpoint import UNSTATED, UNTRAINED, find, read_card
from dualslm.model.dualslm import DualSLM
from dualslm.pocket import parts
from dualslm.tiny import CLIPS, LIMITS, load

CLIP = str(next(iter(sorted(CLIPS.glob("*.wav")))))


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A build with pocket adapters, between small parts that lie where fetched parts would."""
    places = {pocket.ENCODER: str(save_encoder(tmp_path / "e")), pocket.LLM: str(save_llm(tmp_path / "l"))}
    monkeypatch.setattr("dualslm.model.encoder.resolve", lambda name: places.get(name, name))
    # the real part is a GGUF file; a folder serves as well to show where the name leads
    monkeypatch.setattr("dualslm.model.llm.source_of", lambda name: parts_source(places[name]))
    monkeypatch.setattr(parts, "resolve", lambda name: places.get(name, name))
    model = DualSLM.from_parts(pocket.ENCODER, pocket.LLM)
    folder = model.save_pretrained(tmp_path / "adapters", limits="knows three words")
    monkeypatch.setattr(pocket, "ADAPTERS", folder)
    return folder


def parts_source(name: str) -> object:
    from dualslm.model.gguf import Source

    return Source(name)


def test_a_card_names_the_parts_by_their_names(shipped: Path) -> None:
    stated = json.loads((shipped / "config.json").read_text())
    assert (stated["encoder"], stated["llm"]) == ("pocket:encoder", "pocket:llm")
    card = read_card(shipped)
    assert (card.encoder, card.llm, card.limits) == ("pocket:encoder", "pocket:llm", "knows three words")
    page = modelcard(card)
    assert "- openai/whisper-base\n" in page, "the hub knows the parts by their own names"
    assert "It knows three words." in page


def test_the_name_loads_it(shipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert DualSLM.from_pretrained("pocket").limits == "knows three words"
    assert cli.main(["ask", CLIP, "--model", "pocket", "--max-new-tokens", "2"]) == 0
    assert capsys.readouterr().err.count("this model knows three words") == 1


def test_a_build_without_adapters_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pocket, "ADAPTERS", tmp_path)
    with pytest.raises(DualSLMError, match="no pocket adapters"):
        find("pocket")
    # nothing is fetched for a model that cannot be loaded
    monkeypatch.setattr(parts, "resolve", lambda name: pytest.fail(f"fetched {name}"))
    assert cli.main(["ask", CLIP, "--model", "pocket"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "this build has no pocket adapters" in line


# ---------------------------------------------------------------------- what a model says of itself


def test_every_model_says_what_it_understands(tmp_path: Path) -> None:
    assert load().limits == LIMITS
    fresh = DualSLM.from_parts(str(save_encoder(tmp_path / "e")), str(save_llm(tmp_path / "l")))
    assert fresh.limits == UNTRAINED
    again = DualSLM.from_pretrained(fresh.save_pretrained(tmp_path / "untrained"))
    assert again.limits == UNTRAINED, "saving teaches nothing"
    fresh.recipe = {"stages": []}  # as training leaves it
    folder = fresh.save_pretrained(tmp_path / "trained")
    assert read_card(folder).limits is None
    assert DualSLM.from_pretrained(folder).limits == UNSTATED
    stated = fresh.save_pretrained(tmp_path / "stated", limits="knows cats")
    assert DualSLM.from_pretrained(stated).limits == "knows cats"


def test_the_embedded_model_says_it_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ask", CLIP, CLIP, "--max-new-tokens", "2"]) == 0
    out, err = capsys.readouterr()
    assert err.count("does not understand real voices") == 1
    assert "real voices" not in out
