"""How a model is trained: setup, step, loop, checkpoint, and the files of a run.

May import all subpackages but inspection and dedup; its step and loop know no foreign format.
"""
