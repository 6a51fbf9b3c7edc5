"""Checks of this machine, a data set, a configuration or a checkpoint.

May import what it checks; nothing below imports it. Functions import what they check, so that a
broken installation is reported too.
"""
