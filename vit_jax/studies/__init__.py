"""Protocols of many training runs, each an ordinary working directory.

May touch training and all that it touches; nothing below imports it.
"""
