"""What training minimises: losses over logits and targets, one value per example.

May import models.
"""
