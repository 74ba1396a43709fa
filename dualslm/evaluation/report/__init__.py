"""Turns report.json into pages: one self-contained HTML file and Markdown (docs/evaluation.md).

`tables` makes plain tables shaped as the paper's, `markdown` and `html` print them, `pages` writes the files, and
`published.json` holds the figures of other systems with their source. No number in a table is typed by hand.
"""
