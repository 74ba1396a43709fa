"""Evaluation in two steps (docs/evaluation.md): `predict` asks systems, `score` measures what they answered.

`items` makes questions out of manifests, `predict` writes predictions.jsonl, `score` turns it into report.json and
needs neither torch nor a GPU.
"""
