"""Verdicts → figures as plain data: means with intervals, what is unscored, length, agreement, and pairwise wins.

Nothing is averaged over judges: each stands on its own line, as in the paper's Table IV. An item that was judged
several times counts once, with its mean.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np

from dualslm.evaluation.judges import agreement
from dualslm.evaluation.judges.protocols import PROTOCOLS, Protocol
from dualslm.evaluation.judges.questions import label
from dualslm.evaluation.judges.run import kind_of
from dualslm.evaluation.metrics.bootstrap import Floats, figure

TOTAL = "total"
PER_WORDS = 10  # a slope is points per so many words
Record: TypeAlias = Mapping[str, Any]
Table: TypeAlias = list[dict[str, Any]]


def summary(verdicts: Sequence[Record], *, seed: int = 0) -> dict[str, Any]:
    """Everything that verdicts say.

    Args:
        verdicts: records of verdicts.jsonl, pairwise ones too.
        seed: of the resamples.

    Returns:
        Tables as lists of rows: `protocols`, `judges`, `scores`, `coverage`, `agreement`, `repeats`, `pairs`.
    """
    single = [one for one in verdicts if not _protocol(one).pairwise]
    double = [one for one in verdicts if _protocol(one).pairwise]
    return {
        "protocols": _protocols(verdicts),
        "judges": _judges(verdicts),
        "scores": _scores(single, seed),
        "coverage": _coverage(verdicts),
        "agreement": _agreement(single),
        "repeats": _repeats(single),
        "pairs": _pairs(double, seed),
    }


def _protocol(record: Record) -> Protocol:
    return PROTOCOLS[record["protocol"]]


def _dimensions(protocol: Protocol) -> list[str]:
    return [*protocol.allowed, *([TOTAL] if protocol.total else [])]


def _value(record: Record, dimension: str) -> float:
    scores = record["scores"]
    return float(sum(scores.values()) if dimension == TOTAL else scores[dimension])


def _scale(protocol: Protocol, dimension: str) -> list[int]:
    if dimension != TOTAL:
        return [int(value) for value in protocol.allowed[dimension]]
    ends = [sum(int(values[place]) for values in protocol.allowed.values()) for place in (0, -1)]
    return [*range(ends[0], ends[1] + 1)]


def _groups(records: Iterable[Record], *keys: str) -> dict[tuple[Any, ...], list[Record]]:
    """Records by keys, in order of appearance; `system` means with its view."""
    found: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in records:
        found[tuple(label(record) if key == "system" else record[key] for key in keys)].append(record)
    return found


def _scored(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if record["status"] == "scored"]


# ---------------------------------------------------------------------- what was asked, and what came back


def _protocols(records: Sequence[Record]) -> Table:
    return [
        {
            "protocol": name,
            "prints": sorted({record["protocol_sha"] for record in some}),
            "sees": _protocol(some[0]).sees,
            "scale": {key: [values[0], values[-1]] for key, values in _protocol(some[0]).allowed.items()},
        }
        for (name,), some in _groups(records, "protocol").items()
    ]


def _judges(records: Sequence[Record]) -> Table:
    out = []
    for (name, model), some in _groups(records, "judge", "model").items():
        served = sorted({str((record["served"] or {}).get("model")) for record in some if record["served"]})
        rungs = Counter(record["rung"] for record in some if record["rung"])
        out.append({"judge": name, "model": model, "served": served, "rungs": dict(rungs)})
    return out


def _coverage(records: Sequence[Record]) -> Table:
    out = []
    for (judge, protocol, system), some in _groups(records, "judge", "protocol", "system").items():
        reasons = Counter(kind_of(one["reason"]) for one in some if one["status"] != "scored")
        counts = {
            "n": len(some),
            "scored": len(_scored(some)),
            "by_rule": sum(one["rung"] is None for one in _scored(some)),
            "asked_again": sum(one["asked"] > 1 for one in some),
            "unscored": dict(sorted(reasons.items())),
        }
        out.append({"judge": judge, "protocol": protocol, "system": system, **counts})
    return out


# ---------------------------------------------------------------------- means, and how they hang on length


def _scores(records: Sequence[Record], seed: int) -> Table:
    out = []
    for (judge, protocol, system), some in _groups(_scored(records), "judge", "protocol", "system").items():
        ways = {one["direction"] for one in some}
        parts = {"all": some} | {way: [one for one in some if one["direction"] == way] for way in sorted(ways - {None})}
        for way, part in parts.items() if len(parts) > 2 else [("all", some)]:
            for dimension in _dimensions(PROTOCOLS[protocol]):
                row = {"judge": judge, "protocol": protocol, "system": system, "direction": way}
                out.append({**row, "dimension": dimension, **_mean(part, dimension, seed)})
    return out


def _mean(records: Sequence[Record], dimension: str, seed: int) -> dict[str, Any]:
    """Mean, mean length and slope by length, with intervals over clusters."""
    items = _groups(records, "item_id")
    sums_NC, clusters = [], []
    for (item,), some in items.items():
        x, y = float(np.mean([one["words"] for one in some])), float(np.mean([_value(one, dimension) for one in some]))
        sums_NC.append((1.0, x, y, x * x, x * y))
        clusters.append(str(some[0]["cluster"] or item))
    counts = np.array(sums_NC)
    mean = figure(counts, clusters, _average, seed=seed).as_json()
    varied = len({*counts[:, 1]}) > 1
    slope = figure(counts, clusters, _slope, seed=seed).as_json() if varied else dict.fromkeys(("value", "low", "high"))
    return {
        **{"mean" if key == "value" else key: value for key, value in mean.items()},
        "words": float(counts[:, 1].mean()),
        **{f"slope_{key}": slope[key] for key in ("value", "low", "high")},
    }


def _average(sums: Floats) -> Floats:
    out: Floats = sums[..., 2] / sums[..., 0]
    return out


def _slope(sums: Floats) -> Floats:
    """Points per `PER_WORDS` words by least squares; NaN where all replies are of one length."""
    n, x, y, xx, xy = np.moveaxis(sums, -1, 0)
    spread = n * xx - x * x
    with np.errstate(invalid="ignore", divide="ignore"):
        out: Floats = PER_WORDS * (n * xy - x * y) / np.where(spread > 1e-9 * n * xx, spread, np.nan)
    return out


# ---------------------------------------------------------------------- between judges, and one with itself


def _agreement(records: Sequence[Record]) -> Table:
    first = [one for one in _scored(records) if one["repeat"] == 0]
    out = []
    for (name,), some in _groups(first, "protocol").items():
        for dimension in _dimensions(PROTOCOLS[name]):
            by_judge = {judge: _by_reply(part, dimension) for (judge,), part in _groups(some, "judge").items()}
            scale = _scale(PROTOCOLS[name], dimension)
            rows = _compared(by_judge, scale)
            for row in rows:
                row["tau"] = _tau(*(by_judge[judge] for judge in row["judges"]))
            if len(by_judge) > 2:
                rows.append({"judges": [*by_judge], "alpha": agreement.alpha(_matrix(list(by_judge.values())))})
            out += [{"protocol": name, "dimension": dimension, **row} for row in rows]
    return out


def _repeats(records: Sequence[Record]) -> Table:
    out = []
    for (judge, name), some in _groups(_scored(records), "judge", "protocol").items():
        for dimension in _dimensions(PROTOCOLS[name]):
            times = {str(n): _by_reply(part, dimension) for (n,), part in _groups(some, "repeat").items()}
            rows = _compared(times, _scale(PROTOCOLS[name], dimension))
            if rows:
                mean = {key: float(np.mean([row[key] for row in rows])) for key in ("exact", "within_one")}
                whole = {"alpha": agreement.alpha(_matrix(list(times.values()))), **mean, "repeats": len(times)}
                out.append({"judge": judge, "protocol": name, "dimension": dimension, "n": rows[0]["n"], **whole})
    return out


Replies: TypeAlias = Mapping[tuple[str, str], float]
"""Scores by system and item."""


def _by_reply(records: Iterable[Record], dimension: str) -> Replies:
    return {(label(one), one["item_id"]): _value(one, dimension) for one in records}


def _matrix(raters: Sequence[Replies]) -> Floats:
    every = list(dict.fromkeys(key for one in raters for key in one))
    return np.array([[one.get(key, np.nan) for key in every] for one in raters])


def _compared(raters: Mapping[str, Replies], scale: Sequence[int]) -> Table:
    """Two raters at a time, on the replies that both have scored."""
    out = []
    for one, two in combinations(raters, 2):
        shared = [key for key in raters[one] if key in raters[two]]
        if not shared:
            continue
        a, b = (np.array([raters[name][key] for key in shared]) for name in (one, two))
        measures = {
            "alpha": agreement.alpha(np.stack([a, b])),
            "kappa": agreement.kappa(a, b, scale),
            "spearman": agreement.spearman(a, b),
            "exact": agreement.near(a, b, 0),
            "within_one": agreement.near(a, b, 1),
        }
        out.append({"judges": [one, two], "n": len(shared), **measures})
    return out


def _tau(one: Replies, two: Replies) -> float | None:
    """Of the order of the systems by their means, on the replies that both judges scored."""
    shared = [key for key in one if key in two]
    systems = list(dict.fromkeys(system for system, _ in shared))
    means = [[_mean_of(judge, system, shared) for system in systems] for judge in (one, two)]
    return agreement.tau(*means)


def _mean_of(judge: Replies, system: str, shared: Sequence[tuple[str, str]]) -> float:
    return float(np.mean([judge[key] for key in shared if key[0] == system]))


# ---------------------------------------------------------------------- two replies side by side


def _pairs(records: Sequence[Record], seed: int) -> Table:
    """A win counts only where both orders name the same system; where they differ it is a tie, and counted."""
    out = []
    for (judge, protocol, _), some in _groups(records, "judge", "protocol", "system").items():
        one, two = _names(some)
        items = {item: _scored(both) for (item,), both in _groups(some, "item_id").items()}
        whole = [both for both in items.values() if len(both) == 2]
        row: dict[str, Any] = {"judge": judge, "protocol": protocol, "systems": [one, two], "n": len(whole)}
        row["incomplete"] = len(items) - len(whole)
        if whole:
            ends = [tuple(_winner(record) for record in both) for both in whole]
            wins = [end[0] if end[0] == end[1] else None for end in ends]
            clusters = [str(both[0]["cluster"] or both[0]["item_id"]) for both in whole]
            points = np.array([({one: 1.0, two: 0.0}.get(str(win), 0.5), 1.0) for win in wins])
            row |= {"wins": wins.count(one), "losses": wins.count(two), "ties": wins.count(None)}
            row |= {"inconsistent": sum(end[0] != end[1] for end in ends)}
            row |= {"win_rate": figure(points, clusters, seed=seed).as_json(), "first": _first(whole, clusters, seed)}
        out.append(row)
    return out


def _names(records: Sequence[Record]) -> tuple[str, str]:
    one, two = records[0]["order"]
    return one, two


def _winner(record: Record) -> str | None:
    place = {"first": 0, "second": 1}.get(record["scores"]["better"])
    return None if place is None else str(record["order"][place])


def _first(items: Sequence[Sequence[Record]], clusters: Sequence[str], seed: int) -> dict[str, Any] | None:
    """How often the reply shown first wins, in percent of the choices: 50 for a judge that does not mind the order."""
    chosen = [[record["scores"]["better"] for record in both if record["scores"]["better"] != "tie"] for both in items]
    if not any(chosen):
        return None
    counts = np.array([(both.count("first"), len(both)) for both in chosen], dtype=np.float64)
    return figure(counts, clusters, seed=seed).as_json()
