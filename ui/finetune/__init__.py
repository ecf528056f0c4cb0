"""The Fine-tune page: recordings, plan, training, result.

It knows no other page.
"""
