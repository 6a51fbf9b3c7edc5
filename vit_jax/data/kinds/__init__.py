"""The kinds of data sets, one file each: a name in, named splits out.

May import the sources and splits of data.
"""
