"""Systems that can be evaluated (docs/evaluation.md): ours, and others behind the same protocol.

A system is one file, which implements `item.System`, and one entry of `named.SYSTEMS`.
"""
