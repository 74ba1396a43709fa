"""Writes the tables of docs/pocket.md from its result file; nobody types a number there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from studies import pages
from studies.pages import ranged, table

PAGE = Path(__file__).parents[2] / "docs" / "pocket.md"
Figures = Mapping[str, Any]
CHANCE = 12.5  # %, one emotion of eight
WHEN = ("aligned", "after the three stages")
GIVEN = ("text", "all groups", "silence skipped")
READ = "read as text"
DECODER = "Whisper's decoder"


def write(result: Path, *, check: bool = False) -> int:
    """Writes the page.

    Args:
        result: result file.
        check: whether only to compare the page.

    Returns:
        0, or with `check` 1 where the page is stale.
    """
    return pages.write(PAGE, "pocket", tables, result, check=check)


def write_stages(result: Path, *, check: bool = False) -> int:
    """The same for what the paper's three stages made of both alignments."""
    return pages.write(PAGE, "pocket-stages", stages, result, check=check)


def write_start(result: Path, *, check: bool = False) -> int:
    """The same for the checkpoint from which training goes on."""
    return pages.write(PAGE, "pocket-start", start, result, check=check)


def start(result: Figures) -> str:
    """The tables of the checkpoint that is shipped."""
    found: Figures = result["figures"]
    heard = [[own["what"], f"{own['clips']:,}", f"{own['hours']:.1f}"] for own in found["heard"]]
    steps = ", ".join(f"{count} of {name}" for name, count in found["steps"].items())
    words = [[name, ranged(own), _counts(own)] for name, own in found["words"].items()]
    tone = [[name, ranged(own), f"{own['commonest']:.1f}", _counts(own)] for name, own in found["tone"].items()]
    course = [[name, *(f"{value:.1f}" for value in own)] for name, own in found["course"]["words"].items()]
    nats = found["likelihood"]
    return "\n".join(
        [
            f"{result['note']} Steps: {steps}. L's validation loss at the end: {found['validation_loss']:.2f}.\n",
            table(["clips", "number", "hours"], heard),
            "Words, L by nearest token (word error rate, %), and tone, P by nearest word (right, %); intervals over "
            "speakers that were never heard.\n",
            table(["set", "words wrong", "n, speakers"], words),
            "The same after each of L's alignments, which were one after another.\n",
            table(["words wrong, %", *found["course"]["steps"]], course),
            table(["of", "right", "always the commonest", "n, speakers"], tone),
            "Nats a token of the LLM's own reply to the text, given other forms of the same words; "
            f"{nats['n']} recordings, no interval was taken.\n",
            table([*GIVEN, READ], [[f"{nats[given]:.2f}" for given in (*GIVEN, READ)]]),
        ]
    )


def stages(result: Figures) -> str:
    """The tables of the model whose stages ran the LLM."""
    found: Figures = result["figures"]
    heard = [[own["what"], f"{own['clips']:,}", f"{own['hours']:.1f}"] for own in found["heard"]]
    steps = ", ".join(f"{count} of {name}" for name, count in found["steps"].items())
    words = [
        [name, *(ranged(own[when]) for when in WHEN), _counts(own[WHEN[0]])] for name, own in found["words"].items()
    ]
    tone = [
        [name, *(ranged(found["tone"][when][name]) for when in found["tone"]), f"{own['commonest']:.1f}", _counts(own)]
        for name, own in found["tone"][WHEN[1]].items()
    ]
    nats = found["likelihood"]
    likely = [[when, *(f"{nats[when][given]:.2f}" for given in GIVEN)] for when in WHEN]
    by_count = [[name, f"{100 * right / all_:.0f}", str(all_)] for name, (right, all_) in found["by count"].items()]
    return "\n".join(
        [
            f"{result['note']} Steps: {steps}.\n",
            "#### What L heard\n\n" + table(["clips", "number", "hours"], heard),
            "#### Words: L by nearest token\n\nWord error rate in %, 95 % intervals over speakers that were never "
            "heard; less is better.\n\n" + table(["set", *WHEN, "n, speakers"], words),
            "#### Tone: P by nearest word\n\nRight, in %, of held-out speakers of three corpora. In the first column "
            "two attributes had words in common.\n\n"
            + table(["of", *found["tone"], "always the commonest", "n, speakers"], tone),
            "#### Replies\n\nNats a token of the LLM's own reply to the text, given other forms of the same words; "
            f"{nats[WHEN[0]]['n']} recordings, no interval was taken.\n\n" + table(["L", *GIVEN], likely),
            "#### Why rare tokens are spelled\n\nWords of LibriSpeech that an L aligned with the tokenizer's own "
            "tokens read, by how often the training transcripts hold their rarest token.\n\n"
            + table(["times", "read, %", "words"], by_count),
        ]
    )


def tables(result: Figures) -> str:
    """All tables and findings in Markdown."""
    found: Figures = result["figures"]
    parts = result["parts"]
    head = f"Encoder {parts['encoder']}, LLM {parts['llm']}; trained: {parts['trained']}. {result['note']}\n"
    return "\n".join([head, *(make(found) for make in (_heard, _words, _tone, _llm, _leak, _helped, _in_vain))])


def _heard(found: Figures) -> str:
    rows = [[own["what"], f"{own['clips']:,}", f"{own['hours']:.1f}", f"{own['weight']}"] for own in found["heard"]]
    return "### What L heard\n\nA weight is how often an epoch holds a clip.\n\n" + table(
        ["clips", "number", "hours", "weight"], rows
    )


def _words(found: Figures) -> str:
    rows = []
    for name, own in found["words"].items():
        same: Figures = own.get("same clips", {})
        rows.append(
            [
                name,
                ranged(own["L"]),
                _counts(own["L"]),
                *(ranged(same[who]) if same else "" for who in ("L", DECODER)),
                _counts(same["L"]) if same else "",
            ]
        )
    head = ["word error rate, %", "L", "n, speakers", "L, same clips", f"{DECODER}, same clips", "n, speakers"]
    return (
        "### Words: L by nearest token\n\nSpeakers that were never heard, 95 % intervals over them in brackets; less "
        f"is better.\n\n{table(head, rows)}"
    )


def _tone(found: Figures) -> str:
    head = ["right, %", "of", "P", "always the commonest", "n, speakers"]
    rows = [
        [name, test_set, ranged(own), f"{own['commonest']:.1f}", _counts(own)]
        for test_set, attributes in found["tone"].items()
        for name, own in attributes.items()
    ]
    return (
        "### Tone: P by nearest word\n\nPitch, energy and tempo are terciles of the training recordings; emotion is "
        f"one of eight. A figure is worth what it has above the commonest value.\n\n{table(head, rows)}"
    )


def _llm(found: Figures) -> str:
    own = found["likelihood"]
    names = [name for name in own if name != "n"]
    rows = [[name, f"{own[name]:.2f}"] for name in names]
    repeat = found["repeat"]
    again = [[name, ranged(repeat[name])] for name in repeat if name != "n"]
    return (
        "### What the LLM makes of L\n\nNegative log-likelihood of the LLM's own reply to the text, given other forms "
        f"of the same words; {own['n']} recordings, less is better, no interval was taken.\n\n"
        + table(["given", "nats a token"], rows)
        + "\nAsked to repeat what was said, after three examples in text: word error rate, which insertions may take "
        f"above 100 ({repeat['n']} recordings).\n\n" + table(["given", "%"], again)
    )


def _leak(found: Figures) -> str:
    own = found["leak"]
    return (
        "### Leak: emotion in L\n\nA linear reader of the mean of L, fitted on RAVDESS' actors 1 to 12 and asked about "
        f"13 to 18, finds one emotion of eight in {ranged(own['L'])} % (chance {CHANCE:.1f}, n {own['L']['n']}); in "
        f"the encoder's fourth layer, which P reads, {ranged(own['encoder'])}. L was not trained to be rid of it.\n"
    )


def _helped(found: Figures) -> str:
    sure = found["certainty"]
    loss = found["steps"]["validation loss"]
    nats = found["likelihood"]
    return (
        "### What helped\n\n"
        f"- Tokens seen from their middle. SmolLM2's lie to one side: the cosine of two of them is "
        f"{sure['cosine between tokens']} in the mean. An exact token among {sure['classes']:,} is told with a "
        f"probability of {sure['from the middle']} from the middle, and {sure['from zero']} from zero.\n"
        f"- Neighbouring groups read with each, and {_only(loss)} steps more: validation loss {loss['900']} to "
        f"{loss[_last(loss)]}. The two were not tried apart. (Before: {_course(loss)}.)\n"
        f"- Skipping silence: {nats['all groups']:.2f} to {nats['silence skipped']:.2f} nats a token.\n"
        f"- Reading tokens from a cosine of 0.5 instead of the trained 0.6: {_readings(found)} % of words wrong.\n"
    )


def _in_vain(found: Figures) -> str:
    steps = found["steps"]
    nats = found["likelihood"]
    return (
        "### What did not\n\n"
        f"- Two transformer layers in L: loss {steps['loss of two transformer layers at step 100']:.1f} at step 100, "
        "and slow. Lists of random words were half of the clips then, so the layers may not be to blame alone.\n"
        f"- Embeddings weighted by the probabilities of all tokens: {nats['posterior-weighted']:.2f} nats a token.\n"
    )


def _only(loss: Mapping[str, float]) -> str:
    return _last(loss).split(" ")[0]


def _last(loss: Mapping[str, float]) -> str:
    return list(loss)[-1]


def _course(loss: Mapping[str, float]) -> str:
    numbers = [(step, value) for step, value in loss.items() if step.isdigit()]
    return ", ".join(f"{value} at step {step}" for step, value in numbers)


def _readings(found: Figures) -> str:
    """Word error rates at the trained cosine and at the chosen one, set by set."""
    trained = "L at the trained cosine 0.6"
    return ", ".join(f"{own[trained]['value']:.1f} to {own['L']['value']:.1f}" for own in found["words"].values())


def _counts(figure: Mapping[str, float]) -> str:
    return f"{figure['n']}, {figure['speakers']}"
