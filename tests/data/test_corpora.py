"""Five corpora from their real metadata, with stand-ins for the recordings that are not here: every figure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import standins

from dualslm.data.corpora import CORPORA
from dualslm.data.corpora.apart import KINDS, prove
from dualslm.data.corpora.base import ApartKind
from dualslm.data.corpora.prepare import prepare
from dualslm.data.corpora.schema import TASKS, read
from dualslm.errors import DualSLMError

Rows = list[dict[str, Any]]


class Prepared:
    """The manifests of a corpus.

    Args:
        name: name of the corpus.
        raw: raw folder.
        out: folder for the manifests.
        options: options of the corpus.
    """

    def __init__(self, name: str, raw: Path, out: Path, **options: Any) -> None:
        self.out = out
        self.report = prepare(CORPORA[name], raw, out, options={k.replace("_", "-"): v for k, v in options.items()})
        self.splits = self.report["splits"]
        self.files = {split: out / f"{split}.jsonl" for split in self.splits}

    def rows(self, split: str) -> Rows:
        """The checked rows of a split."""
        return [dict(row) for _, row in read(self.files[split])]

    def counts(self, what: str) -> dict[str, Any]:
        """One count by split."""
        return {split: counts[what] for split, counts in self.splits.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return tmp_path_factory.mktemp


@pytest.fixture(scope="module")
def meld(shared: Path, folder: Callable[[str], Path]) -> Prepared:
    return Prepared("meld", standins.meld(folder("meld"), shared / "data/meld/MELD"), folder("out"))


@pytest.fixture(scope="module")
def styletalk(shared: Path, folder: Callable[[str], Path]) -> Prepared:
    return Prepared("styletalk", standins.styletalk(folder("styletalk"), shared / "data/styletalk"), folder("out"))


@pytest.fixture(scope="module")
def everyday(shared: Path, folder: Callable[[str], Path]) -> Path:
    skeleton = shared / "data/dailytalk/derived/metadata_skeleton_all2541.json"
    return standins.dailytalk(folder("dailytalk"), skeleton)


@pytest.fixture(scope="module")
def dailytalk(everyday: Path, folder: Callable[[str], Path]) -> Prepared:
    return Prepared("dailytalk", everyday, folder("out"))


@pytest.fixture(scope="module")
def librispeech(shared: Path, folder: Callable[[str], Path]) -> Prepared:
    return Prepared("librispeech", shared / "data/librispeech", folder("out"))


def words(row: dict[str, Any]) -> list[str]:
    return [part for turn in row["turns"] for part in turn["parts"] if isinstance(part, str)]


# ---------------------------------------------------------------------- MELD


def test_meld_has_all_rows_and_leaves_out_the_two_that_are_bad(meld: Prepared) -> None:
    assert meld.counts("rows") == {"train": 9989, "validation": 1109, "test": 2610}
    assert meld.counts("usable") == {"train": 9988, "validation": 1108, "test": 2610}
    assert meld.counts("excluded") == {"train": {"known bad": 1}, "validation": {"known bad": 1}, "test": {}}
    assert meld.splits["train"]["examples"] == {"known bad": ["train/dia125_utt3"]}
    assert meld.splits["validation"]["examples"] == {"known bad": ["validation/dia110_utt7"]}


def test_meld_has_the_emotions_of_the_release(meld: Prepared) -> None:
    assert meld.splits["test"]["labels"]["emotion"] == {
        "anger": 345,
        "disgust": 68,
        "fear": 50,
        "joy": 402,
        "neutral": 1256,
        "sadness": 208,
        "surprise": 281,
    }
    first = meld.rows("train")[0]
    assert first["turns"][0]["parts"][0]["transcript"].startswith("also I was the point person on my company\u2019s")
    assert (first["id"], first["speaker"], first["dialogue"]) == ("train/dia0_utt0", "Chandler", "train/0")


# ---------------------------------------------------------------------- StyleTalk


def test_styletalk_has_all_rows_forward_and_reversed(styletalk: Prepared) -> None:
    rows, talks = styletalk.counts("rows"), styletalk.counts("talks")
    assert rows["train"] + rows["validation"] == 1838
    assert talks == {split: count * (4 if split in ("train", "validation") else 1) for split, count in rows.items()}
    assert 60 < rows["validation"] < 125
    assert (rows["test"], rows["test-reversed"]) == (858, 858)
    assert styletalk.report["notes"]["begins with B"] == {"train.csv": 20, "eval.csv": 9}


def test_styletalk_turns_alternate_and_are_clean(styletalk: Prepared, shared: Path) -> None:
    raw = [row for name in ("train", "eval") for row in standins.read(shared / f"data/styletalk/{name}.csv")]
    by_id = {row["curr_audio_id"].removesuffix(".wav"): row for row in raw}
    others = 0
    for split in ("train", "validation", "test"):
        for row in (row for row in styletalk.rows(split) if "-from" not in row["id"]):
            assert [turn["role"] for turn in row["turns"]] == ["assistant", "user", "assistant", "user"]
            source, last = by_id[row["id"]], row["turns"][-1]["parts"][0]
            said = [*words(row), last["transcript"], row["reference"]]
            assert all(text == text.strip() and "  " not in text for text in said)
            assert not any(label in text for text in said for label in ("A :", "B :", "A: ", "B: "))
            assert source["curr_text"].strip() in (f"A: {last['transcript']}", f"B: {last['transcript']}")
            others += source["context"].startswith("B")
    assert others == 29


def test_styletalk_to_learn_from_is_cut_at_every_midpoint(
    styletalk: Prepared, shared: Path, folder: Callable[[str], Path]
) -> None:
    for split in ("train", "validation"):
        by_id = {row["id"]: row for row in styletalk.rows(split)}
        assert len(by_id) == styletalk.counts("talks")[split]
        for name, row in by_id.items():
            whole, _, start = name.partition("-from")
            assert row["turns"] == by_id[whole]["turns"][int(start or 0) :]
            same = ("seconds", "dialogue", "group", "reference", "tasks")
            assert [row[key] for key in same] == [by_id[whole][key] for key in same]
        lengths = Counter(len(row["turns"]) for row in by_id.values())
        assert set(lengths) == {1, 2, 3, 4}
        assert len(set(lengths.values())) == 1
    raw = standins.styletalk(folder("styletalk"), shared / "data/styletalk")
    uncut = Prepared("styletalk", raw, folder("out"), contexts="whole")
    assert uncut.counts("talks") == uncut.counts("rows") == styletalk.counts("rows")


def test_styletalk_reversed_is_the_answer_of_the_other(styletalk: Prepared) -> None:
    forward = {row["id"].replace("/c_", "/r_"): row for row in styletalk.rows("test")}
    reversed_ = {row["id"]: row for row in styletalk.rows("test-reversed")}
    assert forward.keys() == reversed_.keys()
    for name, row in reversed_.items():
        one = forward[name]
        assert [turn["role"] for turn in row["turns"]] == ["user", "assistant", "user", "assistant", "user"]
        assert words(row) == [*words(one), one["turns"][-1]["parts"][0]["transcript"]]
        assert row["turns"][-1]["parts"][0]["transcript"] == one["reference"]
        assert "reference" not in row


def test_styletalk_links_the_styles_of_one_text(styletalk: Prepared) -> None:
    groups: dict[tuple[str, str], set[str]] = {}
    for row in styletalk.rows("test"):
        last = row["turns"][-1]["parts"][0]
        groups.setdefault((row["group"], last["transcript"]), set()).add(last["audio"])
    assert sorted(map(len, groups.values())).count(3) == 18
    assert sorted(map(len, groups.values())).count(2) == 342
    labels = styletalk.splits["test"]["labels"]
    assert labels["tempo"] == {"fast": 157, "normal": 379, "slow": 322}
    assert labels["energy"] == {"high": 151, "low": 296, "normal": 411}


# ---------------------------------------------------------------------- DailyTalk


BREAKS = {"604": 1, "1023": 1, "1118": 1, "1187": 1, "2300": 1}


def test_dailytalk_has_all_utterances_and_joins_the_five_breaks(dailytalk: Prepared) -> None:
    assert sum(dailytalk.counts("rows").values()) == sum(dailytalk.counts("usable").values()) == 23_773
    assert dailytalk.report["notes"] == {"dialogues": 2541, "same speaker twice in a row": BREAKS}
    both = [row for split in dailytalk.splits for row in dailytalk.rows(split) if row["dialogue"] in BREAKS]
    double = {row["dialogue"] for row in both for turn in row["turns"] if len(turn["parts"]) == 2}
    joined = {row["dialogue"] for row in both if row["dialogue"] not in double}
    assert double | joined == BREAKS.keys()
    assert double


def test_dailytalk_is_cut_at_every_answered_user_turn(dailytalk: Prepared) -> None:
    depths: dict[int, int] = {}
    for split in dailytalk.splits:
        for row in dailytalk.rows(split):
            roles = [turn["role"] for turn in row["turns"]]
            assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
            assert row["reference"]
            assert all(
                isinstance(part, dict) == (turn["role"] == "user") for turn in row["turns"] for part in turn["parts"]
            )
            depths[len(roles)] = depths.get(len(roles), 0) + 1
    assert min(depths) == 1
    assert max(depths) >= 17
    assert depths[1] == 2541


def test_dailytalk_can_take_both_voices_for_the_user(everyday: Path, dailytalk: Prepared, tmp_path: Path) -> None:
    both = Prepared("dailytalk", everyday, tmp_path, roles="both")
    assert sum(both.counts("talks").values()) == 23_773 - 2541 - len(BREAKS)
    assert both.rows("test")[1]["turns"][0]["role"] == "assistant"


def test_dailytalk_takes_the_official_list(everyday: Path, shared: Path, tmp_path: Path) -> None:
    listed = shared / "data/dailytalk/preprocessed_data/DailyTalk/val_frame.txt"
    out = Prepared("dailytalk", everyday, tmp_path, validation_list=str(listed))
    assert out.counts("rows") == {"train": 23_773 - 1197, "validation": 1197}
    assert len({row["dialogue"] for row in out.rows("validation")}) == 128


def test_the_real_metadata_of_dailytalk(shared: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    standins.dailytalk(raw, shared / "data/dailytalk/metadata_first5_dialogues.json")
    out = Prepared("dailytalk", raw, tmp_path / "out")
    rows = [row for split in out.splits for row in out.rows(split)]
    first = next(row for row in rows if row["id"] == "2_1_d0")
    assert [turn["parts"][0] for turn in first["turns"]][1] == "I'm figuring out my budget."
    assert first["turns"][-1]["parts"][0]["transcript"] == "Umm…. What budget?"
    assert first["turns"][-1]["parts"][0]["labels"] == {"emotion": "neutral", "gender": "female"}


# ---------------------------------------------------------------------- LibriSpeech


def test_librispeech_counts_what_is_missing(librispeech: Prepared) -> None:
    dev = librispeech.splits["validation"]
    assert (dev["rows"], dev["usable"], dev["excluded"]) == (2703, 15, {"missing audio": 2688})
    assert librispeech.counts("usable") == {"validation": 15, "test-clean": 2, "test-other": 70}
    assert len((librispeech.out / "excluded.tsv").read_text().splitlines()) == 2688


def test_librispeech_is_whole_when_decoded(shared: Path, tmp_path: Path) -> None:
    corpus, raw = CORPORA["librispeech"], shared / "data/librispeech/LibriSpeech"
    report = prepare(corpus, raw, tmp_path, options={"part": ("dev-clean",)}, verify=True)
    assert report["splits"]["validation"]["usable"] == 15


# ---------------------------------------------------------------------- TextrolSpeech

VARIANTS = {
    "TextrolSpeech": {"item_name": "wav_fp", "dur": "tempo", "txt": "content_prompt"},
    "VccmDataset": {},
    "speed and volume": {"dur": "speed", "energy": "volume"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_textrolspeech_captions_in_every_variant(shared: Path, tmp_path: Path, variant: str) -> None:
    source = standins.read(shared / "data/textrolspeech/VccmDataset/controlspeech_test.csv")
    names = VARIANTS[variant]
    rows = [{names.get(key, key): value for key, value in row.items()} for row in source]
    files = [standins.textrol_path(row["item_name"]) for row in source]
    raw = tmp_path / "raw"
    raw.mkdir()
    standins.textrolspeech(raw, rows, files)
    out = Prepared("textrolspeech", raw, tmp_path / "out")
    assert sum(out.counts("rows").values()) == sum(out.counts("usable").values()) == 1500
    labels: dict[str, int] = {}
    for split in out.splits:
        for row in out.rows(split):
            part = row["turns"][0]["parts"][0]
            assert part["caption"]
            assert part["transcript"]
            assert part["labels"].keys() == {"gender", "pitch", "tempo", "energy", "emotion"}
            assert row["tasks"] == [task for task in TASKS if task in part["labels"]]
            for value in part["labels"].values():
                labels[value] = labels.get(value, 0) + 1
    assert (labels["fast"], labels["slow"], labels["male"], labels["neutral"]) == (247, 243, 711, 1318)


# ---------------------------------------------------------------------- apart


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("meld", ("clip", "dialogue")),
        ("styletalk", ("clip", "dialogue")),
        ("dailytalk", ("clip", "dialogue")),
        ("librispeech", KINDS),
    ],
)
def test_nothing_is_in_two_splits(name: str, kinds: tuple[ApartKind, ...], request: pytest.FixtureRequest) -> None:
    prepared: Prepared = request.getfixturevalue(name)
    prove(prepared.files, kinds)
    several = {split: path for split, path in prepared.files.items() if not split.startswith("test-")}
    if len(several) > 1:
        leak = json.loads(prepared.files["test"].read_text().splitlines()[0])
        leaky = prepared.out / "leaky.jsonl"
        leaky.write_text(json.dumps(leak) + "\n")
        with pytest.raises(DualSLMError, match=r"is in two splits: got (test and train|train and test)"):
            prove({"test": prepared.files["test"], "train": leaky}, kinds)
