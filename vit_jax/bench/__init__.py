"""Speed: of training, inference, input and start-up, beside other implementations.

Each contender is a process of its own; the contenders of a task take turns in short rounds, so that
whatever else the machine does falls on all of them, and the median round counts.
"""
