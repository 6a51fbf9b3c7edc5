"""What a model is worth: one file for each protocol, over every example exactly once.

May touch models, objectives, data, runtime and pages; it loads nothing and trains nothing.
"""
