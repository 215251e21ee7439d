"""The only place that touches ComfyUI's own modules: layers, capturing, patching, files."""
