"""Queue a workflow and fetch its pictures: python run.py "Erase a concept.json" [server]"""

import json
import sys
import time
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

workflow = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
server = sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:8188"
request = json.dumps({"prompt": workflow}).encode()
run = json.load(urlopen(f"{server}/prompt", request))["prompt_id"]
while run not in (history := json.load(urlopen(f"{server}/history/{run}"))):
    time.sleep(1)
print(history[run]["status"]["status_str"])
for node, shown in history[run]["outputs"].items():
    for kind in ("images", "pure_before", "pure_after"):
        for number, picture in enumerate(shown.get(kind, [])):
            file = Path(f"{node} {workflow[node]['_meta']['title']} {kind} {number}.png")
            file.write_bytes(urlopen(f"{server}/view?{urlencode(picture)}").read())
            print(file)
