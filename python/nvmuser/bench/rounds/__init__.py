"""Comparisons: what is compared, and rounds of jobs in a balanced order."""
