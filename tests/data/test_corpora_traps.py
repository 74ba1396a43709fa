"""Known pitfalls of each corpus: small raw folders with one pitfall in each."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import soundfile
from support import standins
from support.badaudio import BAD, POINTER
from support.standins import Voice

from dualslm.data.corpora import CORPORA, librispeech, styletalk, textrolspeech
from dualslm.data.corpora.base import possible, split_of, translate
from dualslm.data.corpora.clips import probe
from dualslm.data.corpora.prepare import prepare
from dualslm.data.corpora.schema import read
from dualslm.errors import DualSLMError

MELD_HEADER = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime"


def run(name: str, raw: Path, out: Path, **settings: Any) -> dict[str, Any]:
    return prepare(CORPORA[name], raw, out, **settings)


def rows(path: Path) -> list[dict[str, Any]]:
    return [dict(row) for _, row in read(path)]


def last(row: dict[str, Any]) -> dict[str, Any]:
    part: dict[str, Any] = row["turns"][-1]["parts"][-1]
    return part


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    return tmp_path / "raw"


# ---------------------------------------------------------------------- what all share


@pytest.mark.parametrize("verify", [False, True])
def test_recordings_are_left_out_by_reason(tmp_path: Path, verify: bool) -> None:
    voice = Voice(tmp_path)
    good = voice.say(tmp_path / "good.wav", 0.4)
    long = voice.say(tmp_path / "long.flac", 2.0)
    (tmp_path / "pointer.wav").write_bytes(POINTER)
    assert probe(good, 1.0, verify=verify).seconds == 0.4
    reasons = {
        "too long": long,
        "LFS pointer": tmp_path / "pointer.wav",
        "missing audio": tmp_path / "none.wav",
        "unreadable": tmp_path,
    }
    for reason, path in reasons.items():
        info = probe(path, 1.0, verify=verify)
        assert (info.reason, info.seconds) == (reason, None)
        assert info.detail
    for name in ("text", "zero bytes", "zero samples"):
        assert probe(BAD[name][0](tmp_path / f"{name}.wav"), 1.0, verify=verify).reason == "unreadable", name


def test_only_decoding_finds_what_a_header_hides(tmp_path: Path) -> None:
    path = BAD["truncated flac"][0](tmp_path / "a.flac")
    assert probe(path, 10.0).seconds == 3.0
    assert probe(path, 10.0, verify=True).reason == "unreadable"


def test_our_splits_are_a_rule() -> None:
    counts = Counter(split_of(f"speaker {i}", 0) for i in range(4000))
    assert abs(counts["test"] - 200) < 45
    assert abs(counts["validation"] - 200) < 45
    assert [split_of(f"speaker {i}", 0) for i in range(40)] != [split_of(f"speaker {i}", 1) for i in range(40)]
    assert [split_of(key, 0) for key in ("6367", "p225", "0015")] == ["train", "train", "train"]  # frozen


def test_labels_are_translated_or_refused() -> None:
    maps = textrolspeech.LABELS
    assert translate({"tempo": "high", "gender": "", "pitch": None}, maps) == ({"tempo": "fast"}, None)
    assert translate({"tempo": "swift"}, maps) == ({}, "tempo 'swift'")
    assert possible(["emotion", "asr", "gender"], {"transcript": "x", "labels": {"gender": "male"}}) == [
        "asr",
        "gender",
    ]


def test_every_label_map_gives_values_of_the_schema() -> None:
    from dualslm.data.corpora.schema import LABELS

    for corpus in CORPORA.values():
        for name, values in corpus.labels.items():
            assert name == "emotion" or set(values.values()) <= set(LABELS[name]), (corpus.name, name)


# ---------------------------------------------------------------------- LibriSpeech


def test_librispeech_splits_and_sexes(raw: Path, tmp_path: Path) -> None:
    parts = {
        "train-clean-100": ["2053", "103"],
        "train-other-500": ["104"],
        "dev-clean": ["2078"],
        "dev-other": ["106"],
        "test-clean": ["107"],
    }
    standins.librispeech(raw / "LibriSpeech", parts)
    report = run("librispeech", raw, tmp_path / "out")
    assert {split: counts["talks"] for split, counts in report["splits"].items()} == {
        "train": 9,
        "validation": 6,
        "test-clean": 3,
    }
    first = rows(tmp_path / "out/train.jsonl")[0]
    assert last(first)["transcript"] == "he said it's 0"
    assert (first["speaker"], last(first)["labels"], first["source"]) == ("103", {"gender": "male"}, "train-clean-100")
    options = {"sex-corrections": True, "capitals": True, "part": ("train-clean-100", "dev-clean")}
    run("librispeech", raw, tmp_path / "out", options=options)
    assert not (tmp_path / "out/test-clean.jsonl").exists()
    mended = {row["speaker"]: last(row) for row in rows(tmp_path / "out/train.jsonl")}
    assert mended["2053"]["labels"] == {"gender": "male"}
    assert mended["103"]["transcript"] == "HE SAID IT'S 2"


def test_librispeech_names_may_hold_the_separator(raw: Path) -> None:
    standins.librispeech(raw, {"dev-clean": ["84"]})
    assert librispeech.speakers(raw / "SPEAKERS.TXT")["60"] == "M"
    (raw / "SPEAKERS.TXT").write_text("60 | X | dev-clean | 1 | A\n")
    with pytest.raises(DualSLMError, match="not LibriSpeech's"):
        librispeech.speakers(raw / "SPEAKERS.TXT")


def test_a_speaker_in_two_splits_is_refused(raw: Path, tmp_path: Path) -> None:
    standins.librispeech(raw, {"train-clean-100": ["1", "2"], "dev-clean": ["3", "2"]})
    with pytest.raises(DualSLMError, match="the speaker librispeech/2 is in two splits: got validation and train"):
        run("librispeech", raw, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.json*"))


# ---------------------------------------------------------------------- MELD


def small_meld(raw: Path) -> Path:
    """CSV files of a few rows each, with Windows line ends."""
    csvs = raw.parent / "csvs"
    csvs.mkdir()
    for number, part in enumerate(("train", "dev", "test")):
        lines = [MELD_HEADER]
        for dialogue, utterance in ((0, 0), (0, 2), (1, 0)):
            lines.append(f'{number},"It\u2019s {part}, yes",Joey,joy,positive,{dialogue},{utterance},1,1,"0","1"')
        (csvs / f"{part}_sent_emo.csv").write_bytes("\r\n".join([*lines, ""]).encode())
    return csvs


@pytest.mark.parametrize("layout", standins.MELD_FOLDERS)
@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_meld_in_every_layout(raw: Path, tmp_path: Path, layout: str, suffix: str) -> None:
    standins.meld(raw, small_meld(raw), layout, suffix)
    if layout == "nested":
        shutil.move(raw / "train_sent_emo.csv", raw / "train" / "train_sent_emo.csv")
    report = run("meld", raw, tmp_path / "out")
    assert [counts["usable"] for counts in report["splits"].values()] == [3, 3, 3]
    for split, part in (("train", "train"), ("validation", "dev"), ("test", "test")):
        for row in rows(tmp_path / f"out/{split}.jsonl"):
            assert last(row)["transcript"] == f"It\u2019s {part}, yes"
            assert standins.MELD_FOLDERS[layout][("train", "dev", "test").index(part)] in last(row)["audio"]


def test_meld_over_long_cuts_old_code_pages_and_new_labels(raw: Path, tmp_path: Path) -> None:
    csvs = small_meld(raw)
    text = (csvs / "dev_sent_emo.csv").read_text().replace("joy", "bliss", 1)
    (csvs / "dev_sent_emo.csv").write_text(text)
    standins.meld(raw, csvs)
    (raw / "test_sent_emo.csv").write_bytes((raw / "test_sent_emo.csv").read_bytes().decode().encode("cp1252"))
    (raw / "train_splits/dia1_utt0.wav").unlink()
    Voice(raw).say(raw / "train_splits/dia1_utt0.wav", 31.0)
    report = run("meld", raw, tmp_path / "out")["splits"]
    assert report["train"]["excluded"] == {"too long": 1}
    assert report["validation"]["excluded"] == {"label unknown": 1}
    assert last(rows(tmp_path / "out/test.jsonl")[0])["transcript"] == "It\u2019s test, yes"


def test_meld_video_needs_ffmpeg(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    csvs = small_meld(raw)
    standins.meld(raw, csvs)
    sound = raw / "train_splits/dia0_utt2.wav"
    sound.rename(sound.with_suffix(".mp4"))
    (raw / "dev_splits_complete/dia0_utt0.mp4").write_bytes(b"a wav stands beside it, so it is not needed")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DualSLMError, match=r"ffmpeg is not installed: got dia0_utt2.mp4"):
        run("meld", raw, tmp_path / "out")
    fake_ffmpeg(tmp_path / "ffmpeg")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert run("meld", raw, tmp_path / "out")["splits"]["train"]["usable"] == 3
    assert (tmp_path / "out/audio/train/dia0_utt2.wav").exists()
    assert last(rows(tmp_path / "out/train.jsonl")[1])["audio"] == "audio/train/dia0_utt2.wav"


def fake_ffmpeg(path: Path) -> None:
    """Copies its input, and fails where that holds no sound."""
    path.write_text('#!/bin/sh\nwhile [ $# -gt 1 ]; do [ "$1" = -i ] && in="$2"; shift; done\ncat "$in" > "$1"\n')
    path.chmod(0o755)


def test_meld_video_without_sound_is_counted(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    standins.meld(raw, small_meld(raw))
    sound = raw / "train_splits/dia0_utt2.wav"
    sound.rename(sound.with_suffix(".mp4"))
    (tmp_path / "ffmpeg").write_text("#!/bin/sh\necho 'Output file does not contain any stream' >&2\nexit 1\n")
    (tmp_path / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert run("meld", raw, tmp_path / "out")["splits"]["train"]["excluded"] == {"unreadable": 1}
    assert "does not contain any stream" in (tmp_path / "out/excluded.tsv").read_text()


# ---------------------------------------------------------------------- StyleTalk, DailyTalk


def test_contexts_begin_with_either_speaker() -> None:
    assert styletalk.turns("B : Hi!  A : At 10: it's B&B  time. B : Plan B: go") == [
        ("B", "Hi!"),
        ("A", "At 10: it's B&B time."),
        ("B", "Plan"),
        ("B", "go"),
    ]
    assert styletalk.turns("A: So, when do we leave?  ") == [("A", "So, when do we leave?")]


def dialogue(speakers: str) -> dict[str, dict[str, Any]]:
    said = {"emotion": "no emotion", "act": "inform", "topic": 1, "turn": len(speakers)}
    return {str(i): {**said, "speaker": int(who), "text": f" Line {i}. "} for i, who in enumerate(speakers)}


def test_dailytalk_orders_by_number_and_joins_turns(raw: Path, tmp_path: Path) -> None:
    metadata = tmp_path / "metadata.json"
    conversation = dialogue("0110" + "10" * 5)
    metadata.write_text(json.dumps({"7": dict(sorted(conversation.items()))}))  # "10" before "2", as JSON keys sort
    standins.dailytalk(raw, metadata)
    (raw / "data/7/3_0_d7.wav").unlink()
    report = run("dailytalk", raw, tmp_path / "out")
    (split,) = report["splits"]
    assert report["splits"][split]["excluded"] == {"missing audio": 1}
    conversations = {row["id"]: row for row in rows(tmp_path / f"out/{split}.jsonl")}
    assert list(conversations) == ["0_0_d7", "5_0_d7", "7_0_d7", "9_0_d7", "11_0_d7"]
    assert [turn["parts"][0] for turn in conversations["5_0_d7"]["turns"][1:4]] == [
        "Line 1. Line 2.",
        "Line 3.",
        "Line 4.",
    ]
    assert last(conversations["11_0_d7"])["transcript"] == "Line 11."
    run("dailytalk", raw, tmp_path / "out", options={"roles": "both"})
    double = next(row for row in rows(tmp_path / f"out/{split}.jsonl") if row["id"] == "2_1_d7")
    assert [part["transcript"] for part in double["turns"][-1]["parts"]] == ["Line 1.", "Line 2."]
    assert double["turns"][0] == {"role": "assistant", "parts": ["Line 0."]}
    assert double["seconds"] == round(sum(length(tmp_path / "out", part) for part in double["turns"][-1]["parts"]), 3)


def length(folder: Path, part: dict[str, Any]) -> float:
    return float(soundfile.info(str(folder / part["audio"])).duration)


# ---------------------------------------------------------------------- TextrolSpeech


PATHS = [  # in a caption file, on the disk, speaker
    ("VCTK-Corpus/wav48/p307/p307_129.wav", "VCTK-Corpus/wav48/p307/p307_129.wav", "vctk-p307"),
    ("VCTK-Corpus/wav48/p225/p225_001.wav", "wav48_silence_trimmed/p225/p225_001_mic1.flac", "vctk-p225"),
    (
        "/old/place/libritts/train-clean-360/3009/10328/3009_10328_000023_000002.wav",
        "LibriTTS/train-clean-360/3009/10328/3009_10328_000023_000002.wav",
        "libritts-3009",
    ),
    (
        "emotion_dataset/Emotional Speech Dataset (ESD)/Emotion Speech Dataset/0015/Sad/0015_001348.wav",
        "emotion_dataset/ESD/0015/Sad/0015_001348.wav",
        "esd-0015",
    ),
    ("D:\\data\\MEAD\\W028\\audio\\happy\\level_2\\020.wav", "MEAD/W028/audio/happy/level_2/020.wav", "mead-w028"),
    ("emotion_dataset/MESS compressed/A/1.wav", "emotion_dataset/MESScompressed/A/1.wav", "mess"),
    ("SAVEE-ALL-DC_d08", "SAVEE/ALL/DC_d08.wav", "savee-dc"),
    ("CREMA-D-AudioWAV-1014_DFA_HAP_XX", "CREMA-D/AudioWAV/1014_DFA_HAP_XX.wav", "cremad-1014"),
]


def caption(path: str, **labels: str) -> dict[str, str]:
    known = {"gender": "F", "pitch": "low", "tempo": "high", "energy": "normal", "emotion": "nan"}
    return {"num": "1", "wav_fp": path, **known, "style_prompt": "A voice.", "content_prompt": "Words.", **labels}


def test_textrolspeech_finds_recordings_under_other_names(raw: Path, tmp_path: Path) -> None:
    disk = [path for _, path, _ in PATHS]
    standins.textrolspeech(raw, [caption(path) for path, _, _ in PATHS], [*disk, disk[1].replace("mic1", "mic2")])
    (raw / "MEAD/W028/audio/happy/level_2/._020.wav").write_bytes(b"Mac OS X")
    run("textrolspeech", raw, tmp_path / "out")
    found = [row for path in (tmp_path / "out").glob("*.jsonl") for row in rows(path)]
    assert {row["speaker"]: last(row)["audio"] for row in found} == {
        speaker: f"../raw/{path}" for _, path, speaker in PATHS
    }
    labels = {"gender": "female", "pitch": "low", "tempo": "fast", "energy": "normal", "emotion": "neutral"}
    assert all(last(row)["labels"] == labels for row in found)


def test_textrolspeech_leaves_out_by_reason(raw: Path, tmp_path: Path) -> None:
    bad = "libritts/train-clean-360/1092/134562/1092_134562_000013_000004.wav"
    good = PATHS[0][0]
    lines = [caption(good), caption(good), caption(bad), caption(PATHS[1][0]), caption(PATHS[4][0], emotion="elated")]
    standins.textrolspeech(raw, lines, [good, bad])
    report = run("textrolspeech", raw, tmp_path / "out")["splits"]
    excluded = sum((Counter(counts["excluded"]) for counts in report.values()), Counter())
    assert excluded == {"duplicate": 1, "known bad": 1, "missing audio": 1, "label unknown": 1}


@pytest.mark.parametrize("by", ["speaker", "clip"])
def test_textrolspeech_splits_by_speaker_or_clip(raw: Path, tmp_path: Path, by: str) -> None:
    names = [f"VCTK-Corpus/wav48/p{i}/p{i}_{j:03}.wav" for i in range(100, 160) for j in range(3)]
    standins.textrolspeech(raw, [caption(name) for name in names], names)
    run("textrolspeech", raw, tmp_path / "out", options={"split-by": by})
    speakers = [{row["speaker"] for row in rows(path)} for path in sorted((tmp_path / "out").glob("*.jsonl"))]
    assert len(speakers) == 3
    assert (len(set.union(*speakers)) == sum(map(len, speakers))) == (by == "speaker")


# ---------------------------------------------------------------------- anything else


def test_jsonl_by_a_map_of_columns(tmp_path: Path) -> None:
    voice = Voice(tmp_path)
    folder = tmp_path / "mine"
    lines = [
        {
            "wav": f"clips/{i}.wav",
            "said": f"Line {i}",
            "sex": "Man",
            "who": f"s{i % 40}",
            "rate": "high",
            "feels": "Sad",
        }
        for i in range(200)
    ]
    for line in lines:
        voice.say(folder / line["wav"])
    lines[3]["sex"] = "robot"
    (folder / "all.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pairs = ("audio=wav", "transcript=said", "gender=sex", "speaker=who", "tempo=rate", "emotion=feels")
    report = run("jsonl", folder / "all.jsonl", tmp_path / "out", options={"map": pairs})["splits"]
    assert sum(counts["talks"] for counts in report.values()) == 199
    first = rows(tmp_path / "out/train.jsonl")[0]
    assert first["id"].startswith("all-")
    assert first["tasks"] == ["asr", "gender", "tempo", "emotion"]
    assert last(first)["labels"] == {"gender": "male", "tempo": "fast", "emotion": "sad"}
    assert (tmp_path / "out" / last(first)["audio"]).exists()


def test_jsonl_takes_conversations_and_a_file_for_each_split(tmp_path: Path) -> None:
    voice = Voice(tmp_path)
    folder = tmp_path / "mine"
    for name in ("train", "dev"):
        voice.say(folder / f"{name}.wav")
        turns = [{"role": "user", "parts": [{"audio": f"{name}.wav"}]}, {"role": "assistant", "parts": ["Yes."]}]
        (folder / f"{name}.jsonl").write_text(json.dumps({"id": name, "kind": "dual", "turns": turns}) + "\n")
    run("jsonl", folder, tmp_path / "out")
    assert rows(tmp_path / "out/validation.jsonl")[0]["turns"][0]["parts"][0]["audio"] == "../mine/dev.wav"
    shutil.copy(folder / "dev.jsonl", folder / "train.jsonl")
    with pytest.raises(DualSLMError, match=r"the clip .*dev\.wav is in two splits: got validation and train"):
        run("jsonl", folder, tmp_path / "out", again=True)
