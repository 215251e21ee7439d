"""Queue a workflow and fetch its pictures: python run.py "Erase a concept.json" [server]"""

import json
import sys
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

workflow = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
server = sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:8188"
try:
    queued = json.load(urlopen(f"{server}/prompt", json.dumps({"prompt": workflow}).encode()))
except HTTPError as error:
    sys.exit(f"{server} refused the workflow: {error.read().decode()}")
if queued["node_errors"]:
    print(f"{server} refused a part: {json.dumps(queued['node_errors'])}", file=sys.stderr)
while not (run := json.load(urlopen(f"{server}/history/{queued['prompt_id']}"))):
    time.sleep(1)
(run,) = run.values()
for node, shown in run["outputs"].items():
    for kind in ("images", "pure_before", "pure_after"):
        for number, picture in enumerate(shown.get(kind, [])):
            file = Path(f"{node} {workflow[node]['_meta']['title']} {kind} {number}.png")
            file.write_bytes(urlopen(f"{server}/view?{urlencode(picture)}").read())
            print(file)
errors = [said["exception_message"] for kind, said in run["status"]["messages"] if "error" in kind]
if run["status"]["status_str"] != "success":
    sys.exit("\n".join(errors) or "The run was cancelled.")
