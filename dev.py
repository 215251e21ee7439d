#!/usr/bin/env python3
"""The developer's one command: a real ComfyUI, the plugin and the shipped model on this machine.

    python3 dev.py setup     prepare everything (the other commands do it too, when needed)
    python3 dev.py demo      erase three concepts, write before/after pictures and a table
    python3 dev.py test      every check and test, on ComfyUI 0.30.0 and 0.3.75
    python3 dev.py serve     open ComfyUI with the plugin, the model and the example workflows
    python3 dev.py docs      write the tables of the docs that methods declare themselves
    python3 dev.py run FILE  run a Python file inside ComfyUI, without a server

Needs Python >= 3.10 and nothing else; `python3 dev.py --help` lists the choices.
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036  (said before anything newer is imported)
    sys.exit(
        f"dev.py needs Python 3.10 or newer, this is {sys.version.split()[0]} ({sys.executable})."
    )

from dev.commands import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
