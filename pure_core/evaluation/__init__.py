"""Counting how well a concept is gone and what is kept, and keeping the counts."""
