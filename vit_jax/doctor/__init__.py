"""Whether this machine, a data set, a configuration or a checkpoint holds together.

May touch what it checks; nothing below imports it.
"""
