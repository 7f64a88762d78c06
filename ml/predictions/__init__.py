"""Predictions for each contact: lifetime value, churn, the next purchase, when to write, and whether they
still hold.
"""
