"""Training images that repeat test images: search, record, page.

May touch data, models, evaluation, pages and interop.
"""
