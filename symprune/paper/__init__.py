"""From measured rows to what people read: theory, comparisons, verdicts, tables, figures, notebooks, the
report.
"""
