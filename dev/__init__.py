"""The environment tool behind `dev.py`; nothing here is part of the plugin."""
