"""HTML pages, charts and figures that the commands draw.

May import runtime's records and configurations; it computes nothing.
"""
