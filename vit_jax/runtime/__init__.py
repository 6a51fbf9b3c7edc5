"""What surrounds a run: devices, processes, memory, logs, profiles.

May touch files and errors: it knows neither models nor data.
"""
