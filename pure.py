"""The command line, called by this file's path: python <plugin folder>/pure.py inspect ...

It works from every folder and with a Python in isolated mode, such as ComfyUI's portable build has,
which looks for modules neither in the current folder nor beside the script.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from pure_core.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], "python pure.py"))
