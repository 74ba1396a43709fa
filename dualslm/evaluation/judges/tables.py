"""Turns verdicts into tables of plain data: means with intervals, unscored items, length, agreement, pairwise wins.

Nothing is averaged over judges: each has rows of its own, as in the paper's Table IV. An item that was judged several
times counts once, with its mean.
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
DIRECTIONS = (None, "forward", "reversed")
SLOPE_WORDS = 10  # a slope is in points per so many words
Record: TypeAlias = Mapping[str, Any]
Table: TypeAlias = list[dict[str, Any]]


def summary(verdicts: Sequence[Record], *, seed: int = 0) -> dict[str, Any]:
    """All tables of the verdicts.

    Args:
        verdicts: records of verdicts.jsonl, pairwise ones included.
        seed: seed of the resamples.

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
    lowest = sum(int(values[0]) for values in protocol.allowed.values())
    highest = sum(int(values[-1]) for values in protocol.allowed.values())
    return [*range(lowest, highest + 1)]


def _groups(records: Iterable[Record], *keys: str) -> dict[tuple[Any, ...], list[Record]]:
    """Records by the values of some keys, in order of appearance; `system` stands for the system with its view."""
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
            # Two fingerprints under one name mean that verdicts of two wordings are mixed.
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
            "by_rule": sum(one["rung"] is None for one in _scored(some)),  # no judge was asked
            "asked_again": sum(one["asked"] > 1 for one in some),
            "unscored": dict(sorted(reasons.items())),
        }
        out.append({"judge": judge, "protocol": protocol, "system": system, **counts})
    return out


# ---------------------------------------------------------------------- means, and how they hang on length


def _scores(records: Sequence[Record], seed: int) -> Table:
    out = []
    for (judge, protocol, system), some in _groups(_scored(records), "judge", "protocol", "system").items():
        # What was asked for a second figure, under another circumstance, has a row of its own and is not in "all".
        parts = {"all": [one for one in some if one["direction"] in DIRECTIONS] or some}
        directions = {one["direction"] for one in some} - {None}
        if len(directions) > 1:  # a single direction would only repeat the row of all
            for direction in sorted(directions):
                parts[direction] = [one for one in some if one["direction"] == direction]
        for direction, part in parts.items():
            for dimension in _dimensions(PROTOCOLS[protocol]):
                row = {"judge": judge, "protocol": protocol, "system": system, "direction": direction}
                out.append({**row, "dimension": dimension, **_mean(part, dimension, seed)})
    return out


def _mean(records: Sequence[Record], dimension: str, seed: int) -> dict[str, Any]:
    """Mean score, mean length and slope of the score over the length, with intervals over clusters."""
    rows = []
    clusters = []
    for (item,), some in _groups(records, "item_id").items():
        x = float(np.mean([one["words"] for one in some]))
        y = float(np.mean([_value(one, dimension) for one in some]))
        rows.append((1.0, x, y, x * x, x * y))  # all that a mean and a least-squares slope need, as sums
        clusters.append(str(some[0]["cluster"] or item))
    counts_NC = np.array(rows)
    mean = figure(counts_NC, clusters, _average, is_share=False, seed=seed).as_json()
    slope: dict[str, float | None] = dict.fromkeys(("value", "low", "high"))
    if len({*counts_NC[:, 1]}) > 1:  # replies of one length, such as those of the generic control, have no slope
        slope = figure(counts_NC, clusters, _slope, is_share=False, seed=seed).as_json()
    return {
        **{"mean" if key == "value" else key: value for key, value in mean.items()},
        "words": float(counts_NC[:, 1].mean()),
        **{f"slope_{key}": slope[key] for key in ("value", "low", "high")},
    }


def _average(sums: Floats) -> Floats:
    out: Floats = sums[..., 2] / sums[..., 0]
    return out


def _slope(sums: Floats) -> Floats:
    """Points per `SLOPE_WORDS` words by least squares; NaN where all replies are of one length."""
    n, x, y, xx, xy = np.moveaxis(sums, -1, 0)
    spread = n * xx - x * x
    # A resample may draw replies of one length only. Its spread is 0 up to rounding, and no slope can be told.
    with np.errstate(invalid="ignore", divide="ignore"):
        out: Floats = SLOPE_WORDS * (n * xy - x * y) / np.where(spread > 1e-9 * n * xx, spread, np.nan)
    return out


# ---------------------------------------------------------------------- between judges, and one with itself


def _agreement(records: Sequence[Record]) -> Table:
    """How two judges agree, for each pair; with three or more judges also the alpha of all of them."""
    first = [one for one in _scored(records) if one["repeat"] == 0]
    out = []
    for (name,), some in _groups(first, "protocol").items():
        for dimension in _dimensions(PROTOCOLS[name]):
            by_judge = {judge: _by_reply(part, dimension) for (judge,), part in _groups(some, "judge").items()}
            scale = _scale(PROTOCOLS[name], dimension)
            rows = _compared(by_judge, scale)
            for row in rows:
                row["tau"] = _rank_agreement(*(by_judge[judge] for judge in row["judges"]))
            if len(by_judge) > 2:
                rows.append({"judges": [*by_judge], "alpha": agreement.alpha(_matrix(list(by_judge.values())))})
            out += [{"protocol": name, "dimension": dimension, **row} for row in rows]
    return out


def _repeats(records: Sequence[Record]) -> Table:
    """How a judge agrees with itself: its repeats are compared as if they were judges."""
    out = []
    for (judge, name), some in _groups(_scored(records), "judge", "protocol").items():
        for dimension in _dimensions(PROTOCOLS[name]):
            by_repeat = {str(n): _by_reply(part, dimension) for (n,), part in _groups(some, "repeat").items()}
            rows = _compared(by_repeat, _scale(PROTOCOLS[name], dimension))
            if rows:
                mean = {key: float(np.mean([row[key] for row in rows])) for key in ("exact", "within_one")}
                whole = {"alpha": agreement.alpha(_matrix(list(by_repeat.values()))), **mean, "repeats": len(by_repeat)}
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
    """Every two raters, on the replies that both have scored."""
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


def _rank_agreement(one: Replies, two: Replies) -> float | None:
    """Kendall's tau of the order of the systems by their means, on the replies that both judges scored."""
    shared: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for key in one:
        if key in two:
            shared[key[0]].append(key)
    means = [[float(np.mean([scores[key] for key in keys])) for keys in shared.values()] for scores in (one, two)]
    return agreement.tau(*means)


# ---------------------------------------------------------------------- two replies side by side


def _pairs(records: Sequence[Record], seed: int) -> Table:
    """Wins of the first system of each pair. A win counts only where both orders name the same system, else a tie."""
    out = []
    for (judge, protocol, _), some in _groups(records, "judge", "protocol", "system").items():
        one, two = some[0]["order"]
        items = [_scored(both) for both in _groups(some, "item_id").values()]
        complete = [both for both in items if len(both) == 2]
        row: dict[str, Any] = {"judge": judge, "protocol": protocol, "systems": [one, two], "n": len(complete)}
        row["incomplete"] = len(items) - len(complete)
        if complete:
            winners = [tuple(_winner(record) for record in both) for both in complete]
            wins = [first if first == second else None for first, second in winners]
            clusters = [str(both[0]["cluster"] or both[0]["item_id"]) for both in complete]
            # A tie is half a point for each side, so that two equal systems have a rate of 50 %.
            points_N2 = np.array([({one: 1.0, two: 0.0}.get(str(win), 0.5), 1.0) for win in wins])
            row |= {"wins": wins.count(one), "losses": wins.count(two), "ties": wins.count(None)}
            row["inconsistent"] = sum(first != second for first, second in winners)
            row["win_rate"] = figure(points_N2, clusters, seed=seed).as_json()
            row["first"] = _first(complete, clusters, seed)
        out.append(row)
    return out


def _winner(record: Record) -> str | None:
    better = record["scores"]["better"]
    return None if better == "tie" else str(record["order"][0 if better == "first" else 1])


def _first(items: Sequence[Sequence[Record]], clusters: Sequence[str], seed: int) -> dict[str, Any] | None:
    """How often the reply that is shown first wins, in percent of the choices; 50 where the order has no influence."""
    chosen = [[record["scores"]["better"] for record in both if record["scores"]["better"] != "tie"] for both in items]
    if not any(chosen):
        return None
    counts = np.array([(both.count("first"), len(both)) for both in chosen], dtype=np.float64)
    return figure(counts, clusters, seed=seed).as_json()
