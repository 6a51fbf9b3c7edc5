"""What surrounds a run: devices, processes, memory, logs, profiles.

May import files and errors: it knows neither models nor data.
"""
