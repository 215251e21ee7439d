"""The nodes' defaults that no setting declares itself.

They measured best on the development concepts of the small trained model (`testbed/world/`): see
`docs/results.md`.
"""

METHOD = "ridge"
TEXT_METHOD = "uce"
STRENGTH = 1.0
