"""Training images that repeat test images: search, record, page.

May import data, models, evaluation, pages and interop.
"""
