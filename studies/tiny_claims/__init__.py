"""Which of the paper's claims hold in the tiny world (docs/study.md)."""
