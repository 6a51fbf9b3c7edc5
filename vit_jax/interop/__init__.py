"""Foreign formats, in both directions: everything outside has one canonical tree of names.

May touch models, numerics and data.
"""
