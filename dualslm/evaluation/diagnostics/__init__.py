"""Diagnostics of disentanglement and context (ours): what the paper claims, measured where it could fail.

Each takes any model and any manifest, on recordings or on cached frames. It gives figures with n and a 95 % interval
over groups (speakers, or sentences), the value of each figure if there were nothing to find, and a sentence that
explains them. `dualslm eval RUN --instruments` puts them into the report; `run` is where they start.
"""
