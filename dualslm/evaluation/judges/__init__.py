"""LLMs as judges of replies: CS and EGS scores (paper §IV-B), and whether a judge can be trusted (docs/judges.md).

`protocols` says what a judge is asked, `data` keeps the judged text from giving orders, `questions` turns predictions
into questions, `ask` puts one to a server, `answers` reads what comes back, `run` does it for all. `tables` sums up,
`agreement` compares judges, `sanity` tries a judge on replies whose order is known,
and `command` is the part of `dualslm eval`. No torch.
"""

from dualslm.evaluation.judges.protocols import PROTOCOLS
from dualslm.evaluation.judges.run import Outcome, compare, judge, verdicts
from dualslm.evaluation.judges.sanity import calibration, controls, trust
from dualslm.evaluation.judges.spec import JudgeSpec
from dualslm.evaluation.judges.tables import summary

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
