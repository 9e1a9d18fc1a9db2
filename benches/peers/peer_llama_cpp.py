"""llama.cpp: its own llama-bench on a file of random weights. Prints one JSON object a stage. Called by run.py."""

import argparse
import json
import subprocess
from pathlib import Path

arguments = argparse.ArgumentParser()
arguments.add_argument("--program", type=Path, required=True)
arguments.add_argument("--model", type=Path, required=True)
arguments.add_argument("--prefill", type=int, nargs="*", default=[])
arguments.add_argument("--context", type=int, nargs="*", default=[])
arguments.add_argument("--decoded", type=int, default=16, help="tokens of one timed run of decoding")
arguments.add_argument("--runs", type=int, default=5)
arguments.add_argument("--threads", type=int, required=True)
arguments = arguments.parse_args()


def bench(*options):
    command = [arguments.program, "--model", arguments.model, "--threads", arguments.threads, "--repetitions", arguments.runs,
               "--output", "json", *options]
    output = subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True).stdout
    return [nanoseconds / 1e9 for nanoseconds in json.loads(output)[0]["samples_ns"]]


for length in arguments.prefill:
    print(json.dumps({"stage": f"prefill {length}", "seconds": bench("-p", length, "-n", 0)}), flush=True)
for context in arguments.context:
    seconds = bench("-p", 0, "-n", arguments.decoded, "-d", context)
    print(json.dumps({"stage": f"decode after {context}", "seconds": [s / arguments.decoded for s in seconds]}), flush=True)
