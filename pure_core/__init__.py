"""The mathematics and the file formats of PURE: tensors in, tensors out.

Nothing in here knows ComfyUI. Data flows one way: `activations` are captured elsewhere and
collected here, `bases` and `methods` turn them into an `eraser`, `report` says what the eraser
does to the rows it was fitted on, and `eraser_file` keeps it.

Paper: PURE (arXiv 2605.25765).
"""

__version__ = "0.1.0"
