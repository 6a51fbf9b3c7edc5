"""HTML pages, charts and figures that the commands draw.

May touch runtime's records and configurations; it computes nothing.
"""
