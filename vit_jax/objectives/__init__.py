"""What training minimises: losses over logits and targets, one value for each example.

May touch models.
"""
