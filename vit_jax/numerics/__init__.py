"""How layers compute on a machine; what they compute is said in models.

May touch nothing but errors.
"""
