"""Foreign formats, in both directions; the rest of the package sees canonical names only.

May import models, numerics and data.
"""
