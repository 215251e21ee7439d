"""The nodes' defaults that no setting declares itself.

They measured best on the development concepts of the small trained models (`testbed/`): see
`docs/methods.md`.
"""

METHOD = "ridge"
TEXT_METHOD = "calibrated tokens"
STRENGTH = 1.0

MAX_RANK = 64
"""Directions a layer, in the node whose eraser is complete. It measured like no limit for one
concept and for ten at once, where pure needs about 48, ridge 8 (`benchmarks/rank.py`)."""
