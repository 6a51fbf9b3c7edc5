"""Whether this machine, a data set, a configuration or a checkpoint holds together.

May touch what it checks; nothing below imports it. Functions import
what they check themselves: a broken installation must be told, too.
"""
