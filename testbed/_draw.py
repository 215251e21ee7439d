from dev.browser import find_browser
from testbed.comfy.editor import opened
from testbed.comfy.help_pictures import *
from testbed.comfy.thumbnails import template, pairs, thumbnail, FOLDER as T

name = "Find the layers to erase in"
with ComfyServer() as server:
    with opened(server.address, str(find_browser()), "PURE_Compare") as editor:
        editor.page.set_viewport_size({"width": 1600, "height": 1700})
        editor.use("nodes2")
        workflow = example(name)
        for node in workflow["nodes"]:
            node["mode"] = 0
        editor.open(workflow)
        take(editor, by_type(workflow, "PURE_LayerSweep"), "PURE_LayerSweep")
        print(editor.errors, flush=True)
        editor.use("classic") if False else None
    prompt = template(name, {"PURE_LayerSweep": {"prompts": 2, "steps": 8, "by": "block"}})
    import time

    t = time.time()
    thumbnail(pairs(server, prompt)).save(T / f"{name}.jpg", quality=90)
    print("thumb", time.time() - t, flush=True)
