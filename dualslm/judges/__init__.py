"""LLMs as judges of replies: CS and EGS scores (paper §IV-B), and whether a judge can be trusted (docs/judges.md).

`protocols` says what a judge is asked, `data` keeps the judged text from giving orders, `questions` turns predictions
into questions, `ask` puts one to a server, `answers` reads what comes back, `run` does it for all. `tables` sums up,
`agreement` compares judges, `sanity` tries a judge on replies whose order is known,
and `command` is the part of `dualslm eval`. No torch.
"""

from dualslm.judges.protocols import PROTOCOLS
from dualslm.judges.run import Outcome, compare, judge, verdicts
from dualslm.judges.sanity import calibration, controls, trust
from dualslm.judges.spec import JudgeSpec
from dualslm.judges.tables import summary

__all__ = [
    "PROTOCOLS",
    "JudgeSpec",
    "Outcome",
    "calibration",
    "compare",
    "controls",
    "judge",
    "summary",
    "trust",
    "verdicts",
]
