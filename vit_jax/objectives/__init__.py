"""What training minimises.

May touch models.
"""
