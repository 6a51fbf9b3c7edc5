"""Evaluation: one file per protocol, over every example exactly once.

May import models, objectives, data, runtime and pages; it loads no weights and trains nothing.
"""
