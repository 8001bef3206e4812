"""The append-only record of a run, and the statistics, tables, plots and report made from records alone.

Nothing here imports jax: a report is made on any machine that can read the run folders.
"""
