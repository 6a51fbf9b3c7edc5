"""Protocols of many training runs, each in an ordinary workdir.

May import training and all that it may; nothing below imports it.
"""
