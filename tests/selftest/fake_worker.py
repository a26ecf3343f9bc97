"""Stands for the process of the self-test, without PyTorch: does with each case what $PLAN says of its mask."""

import json
import os
import sys
import time
from pathlib import Path

START = json.loads(os.environ.get("START", '{"gpu": "a GPU"}'))
if not START:
    sys.exit("died at the start")
print(json.dumps(START), flush=True)
for line in sys.stdin:
    what = json.loads(os.environ["PLAN"])[json.loads(line)["case"].get("mask", "decode")]
    print(json.dumps({"obtained": True}), flush=True)
    if what == "hang":
        if mark := os.environ.get("MARK"):
            Path(mark).write_text(str(os.getpid()))
        time.sleep(600)
    if what == "die":
        print("last words", file=sys.stderr, flush=True)
        os.abort()
    print(json.dumps({"status": what, "detail": f"process {os.getpid()}", "seconds": 0.1}), flush=True)
