"""LLMs as judges of replies: CS and EGS scores (paper §IV-B), and whether a judge can be trusted (docs/judges.md).

`protocols` holds what a judge is asked, `data` keeps the judged text from giving orders, `questions` turns predictions
into questions, `ask` sends one to a server, `answers` reads what comes back, and `run` does it for all of them.
`tables` sums up, `agreement` compares judges, `sanity` tests a judge on replies whose order is known, and `panel` is
what `dualslm eval` runs. No torch.
"""
