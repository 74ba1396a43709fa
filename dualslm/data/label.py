"""`dualslm label`: pitch, energy and tempo labels for speech without them (beyond the paper; docs/label.md).

Every recording of a manifest is measured once (`voice.py`) and put in one of three bins by two thresholds: the
terciles of the manifest's own recordings, or numbers that the user gives. Existing labels are not changed.
"""

from __future__ import annotations

import json
import multiprocessing
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from dualslm.data import voice
from dualslm.data.cluster import Each
from dualslm.data.manifest import moved
from dualslm.data.manifest_index import rows
from dualslm.data.progress import Progress
from dualslm.data.tasks import Clip
from dualslm.data.tasks.attributes import ATTRIBUTES
from dualslm.data.voice import Voice
from dualslm.errors import DualSLMError
from dualslm.files import read_text, replacing

MEASURED: Mapping[str, str] = {"pitch": "Hz", "energy": "dB of full scale", "tempo": "syllables a second"}
TERCILES = (1 / 3, 2 / 3)
CHUNK = 16  # recordings sent to a worker at once, which saves round trips
ANY = "any"  # in place of a gender: thresholds for every speaker
Thresholds: TypeAlias = Mapping[str, tuple[float, float]]
"""Lower and upper threshold by gender, or under `ANY`."""


@dataclass
class Labelling:
    """Measurements of the recordings of a manifest, and their thresholds.

    Attributes:
        given: thresholds that the user gave, by attribute, then by gender or `ANY`; others are terciles.
        by_gender: compute the terciles of pitch for each gender separately.
        voices: measurements by path.
        genders: gender by path; None where it is unknown.
        faults: why a recording cannot be read, by path.
        thresholds: thresholds in use, by attribute, then by gender or `ANY`.
        counts: number of labels by attribute and value, for the report.
    """

    given: Mapping[str, Thresholds] = field(default_factory=dict)
    by_gender: bool = False
    voices: dict[str, Voice] = field(default_factory=dict)
    genders: dict[str, str | None] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    thresholds: dict[str, Thresholds] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def settle(self) -> None:
        """Computes the thresholds that were not given."""
        for name in MEASURED:
            own = dict(self.given.get(name, {}))
            # Thresholds for one gender alone leave the other speakers to the terciles.
            if ANY not in own and not {"male", "female"} <= own.keys():
                own |= {key: value for key, value in self._terciles(name).items() if key not in own}
            self.thresholds[name] = own

    def _terciles(self, name: str) -> Thresholds:
        found: dict[str, list[float]] = defaultdict(list)
        for path, one in self.voices.items():
            value = getattr(one, name)
            if value is not None:
                found[ANY].append(value)
                gender = self.genders[path]
                if self.by_gender and name == "pitch" and gender:
                    found[gender].append(value)
        terciles: dict[str, tuple[float, float]] = {}
        for key, values in found.items():
            low, high = (round(float(value), 2) for value in np.quantile(values, TERCILES))
            terciles[key] = (low, high)
        return terciles

    def bin(self, name: str, value: float, gender: str | None) -> str | None:
        """The label of a value.

        Args:
            name: name of the attribute.
            value: measurement, in the unit of `MEASURED`.
            gender: gender of the speaker; None where it is unknown.

        Returns:
            One of the three values of the attribute; None where there is no threshold for this speaker.
        """
        known = self.thresholds[name]
        # 190 Hz is low for a woman and high among everybody: labels by gender have no place for an unknown one.
        if gender is None and known.keys() - {ANY}:
            return None
        bounds = known.get(gender or ANY) or known.get(ANY)
        if bounds is None:
            return None
        return ATTRIBUTES[name].values[int(value >= bounds[0]) + int(value > bounds[1])]

    def labelled(self, clip: Clip, path: str) -> dict[str, Any]:
        """A recording with its labels and its measurements."""
        one = self.voices.get(path)
        if one is None:
            return dict(clip)
        values = {name: value for name in MEASURED if (value := getattr(one, name)) is not None}
        labels = dict(clip.get("labels") or {})
        for name, value in values.items():
            label = self.bin(name, value, self.genders[path])
            if ATTRIBUTES[name].value(clip) is not None:
                self.counts[f"{name} kept"] += 1  # a label by the corpus, or by a person, is better than ours
            elif label is not None:
                labels[name] = label
                self.counts[f"{name} {label}"] += 1
            else:
                self.counts[f"{name} without a threshold"] += 1  # the thresholds are by gender, which is unknown
        return {**clip, "labels": labels, "measured": values}


def label(
    source: Path, out: Path, labelling: Labelling, *, workers: int = 1, ask: bool = False, each: Each | None = None
) -> dict[str, Any]:
    """Writes a manifest with labels, and a report beside it.

    Args:
        source: path of the manifest.
        out: path of the new manifest, another file; `OUT.report.json` is written beside it.
        labelling: thresholds; receives the measurements.
        workers: number of processes that measure.
        ask: add the measured attributes to the tasks of lines that have tasks.
        each: measures on many machines (`Cluster.map`), in place of the processes.

    Returns:
        The report: thresholds with units, labels by value, and recordings that cannot be read, by reason.

    Raises:
        DualSLMError: the manifest cannot be read, or none of its recordings can be measured.
    """
    if out.resolve() == source.resolve():
        raise DualSLMError("the new manifest would replace the old one", got=str(out), do="give another name")
    voice.require()
    _measure_all(source, labelling, workers, each)
    if not labelling.voices:
        reason = next(iter(labelling.faults.values()), "no recordings")
        raise DualSLMError(f"nothing in {source} can be measured", got=reason, do="check the paths of the audio")
    labelling.settle()
    out.parent.mkdir(parents=True, exist_ok=True)
    # Read again instead of kept since the measuring: a manifest may be larger than memory.
    with replacing(out) as partial, partial.open("w", encoding="utf-8") as file:
        for _, row in rows(source):
            made = moved(_labelled(row, source.parent, labelling, ask), source.parent, out.parent)
            file.write(json.dumps(made, ensure_ascii=False) + "\n")
    found = _report(source, labelling)
    with replacing(out.with_suffix(".report.json")) as partial:
        partial.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return found


def thresholds(texts: Iterable[str], name: str) -> Thresholds:
    """Reads thresholds from the command line.

    Args:
        texts: "LOW,HIGH" or "GENDER:LOW,HIGH", once or for each gender.
        name: name of the attribute for the error.

    Raises:
        DualSLMError: not two numbers in order, or an unknown gender.
    """
    found: dict[str, tuple[float, float]] = {}
    for text in texts:
        gender, _, numbers = text.rpartition(":")
        try:
            low, high = map(float, numbers.split(","))
            if not low <= high or gender not in ("", "male", "female"):
                raise ValueError
        except ValueError:
            raise DualSLMError(
                f"not thresholds for {name}", got=repr(text), do="write LOW,HIGH or for example female:180,250"
            ) from None
        found[gender or ANY] = (low, high)
    return found


def thresholds_of(report: Path) -> dict[str, Thresholds]:
    """The thresholds of an earlier run, so that another split is labelled by those of the training manifest.

    Args:
        report: `OUT.report.json` of that run.

    Raises:
        DualSLMError: it cannot be read, or is no report of `dualslm label`.
    """
    text = read_text(report, "the report", "give the OUT.report.json that dualslm label wrote")
    try:
        found = json.loads(text)["thresholds"]
        return {name: {who: (float(low), float(high)) for who, (low, high) in found[name].items()} for name in MEASURED}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        do = "give the OUT.report.json that dualslm label wrote"
        raise DualSLMError(f"{report} is no report of labels", got=repr(error), do=do) from error


# ---------------------------------------------------------------------- measuring


def _measure_all(source: Path, labelling: Labelling, workers: int, each: Each | None) -> None:
    jobs: dict[str, str] = {}  # transcript by path: a recording of several lines is measured once
    for _, row in rows(source):
        parts = (part for turn in row["turns"] for part in turn["parts"])
        for clip in (part for part in parts if isinstance(part, Mapping) and part.get("audio")):
            path = str(source.parent / clip["audio"])
            jobs.setdefault(path, str(clip.get("transcript") or ""))
            # One line may name the gender and another may not.
            labelling.genders[path] = labelling.genders.get(path) or ATTRIBUTES["gender"].value(clip)
    with Progress("measuring", len(jobs)) as progress:
        for path, result in zip(jobs, _measured(list(jobs.items()), workers, each), strict=True):
            progress.advance()
            if isinstance(result, Voice):
                labelling.voices[path] = result
            else:
                labelling.faults[path] = result


def _measured(jobs: Sequence[tuple[str, str]], workers: int, each: Each | None) -> Iterator[Voice | str]:
    """The measurements in the order of the jobs, so that the output does not depend on the number of workers."""
    if each is not None:
        chunks = (jobs[start : start + CHUNK] for start in range(0, len(jobs), CHUNK))
        yield from chain.from_iterable(each(_measure_chunk, chunks))
        return
    if workers <= 1:
        yield from map(_measure, jobs)
        return
    # Spawned, because forking copies a process whose threads may hold locks.
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(_measure, jobs, CHUNK)


def _measure_chunk(jobs: Sequence[tuple[str, str]]) -> list[Voice | str]:
    voice.require()  # this machine may lack what the first one has
    return [_measure(job) for job in jobs]


def _measure(job: tuple[str, str]) -> Voice | str:
    path, transcript = job
    try:
        return voice.measure(path, transcript)
    except DualSLMError as error:
        # Without the path, so that the report can count equal reasons.
        return f"{error.wrong.replace(path, 'the recording')}: {error.got}"


def _labelled(row: Mapping[str, Any], folder: Path, labelling: Labelling, ask: bool) -> dict[str, Any]:
    def part(one: Any) -> Any:
        known = isinstance(one, Mapping) and one.get("audio")
        return labelling.labelled(one, str(folder / one["audio"])) if known else one

    made = {**row, "turns": [{**turn, "parts": [part(one) for one in turn["parts"]]} for turn in row["turns"]]}
    if ask and "tasks" in row:
        made["tasks"] = list(dict.fromkeys([*row["tasks"], *MEASURED]))
    return made


# ---------------------------------------------------------------------- the report


def _report(source: Path, labelling: Labelling) -> dict[str, Any]:
    return {
        "manifest": source.name,
        "recordings": len(labelling.voices) + len(labelling.faults),
        "measured": len(labelling.voices),
        "unreadable": dict(Counter(labelling.faults.values()).most_common()),
        "unreadable_files": sorted(labelling.faults)[:100],
        "units": dict(MEASURED),
        "thresholds": {name: dict(own) for name, own in labelling.thresholds.items()},
        "labels": dict(sorted(labelling.counts.items())),
    }
