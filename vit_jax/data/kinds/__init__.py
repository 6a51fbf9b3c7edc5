"""The kinds of data sets, a file for each: a name in, named splits out.

May touch the sources and splits of data.
"""
