"""How a model is trained: setup, step, loop, checkpoint, and the files of a run.

May touch all rooms but inspection and dedup; its step and its loop know no foreign format.
"""
