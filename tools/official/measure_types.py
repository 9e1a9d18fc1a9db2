"""Writes a checkpoint in each type (`released` is the checkpoint itself) and measures: size, memory for writing, time to load and to the first token, memory for an answer.

    python measure_types.py MODEL [--types released,F16,…] [--runs 3] [--image FILE] [--work FOLDER] [--mgm FILE] [--keep]

Prints two Markdown tables. Times are medians of --runs runs of `mgm chat` with one picture; before a cold run the system is told to forget
the model's files (posix_fadvise), before a warm one they have just been read. Memory is the peak of the process's resident set as
the system counts it; `own` is the peak of the part that is not pages of mapped files, which the system can drop and read
again. Linux only. The exit status is 1 when a 4-bit model takes more than 700 MB beyond its files.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TYPES = "released,F16,BF16,Q8_0,Q6_K,Q5_K_M,Q4_K_M,Q4_0"
FOUR_BITS = ("Q4_K_M", "Q4_0")
ALLOWANCE = 700e6
QUESTION = "What is in the picture?"


class Run:
    """A finished process: seconds, output, peak of the resident set and of its anonymous part, in bytes."""

    def __init__(self, command):
        start = time.perf_counter()
        process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.own = 0
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            self.own = max(self.own, anonymous(process.pid))
            time.sleep(0.02)
        self.seconds = time.perf_counter() - start
        self.output = process.stdout.read()
        process.stdout.close()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"status {process.returncode}: {' '.join(map(str, command))}")
        self.peak = usage.ru_maxrss * 1024


def anonymous(pid):
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon:")), 0)


def forget(files):
    for path in files:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def remember(files):
    for path in files:
        with open(path, "rb") as file:
            while file.read(1 << 24):
                pass


def chat(arguments, model, files):
    """Cold and warm runs of one answer."""
    command = [arguments.mgm, "chat", "--model", model, "--image", arguments.image, "--json", "--max-new-tokens", "8",
               "--temperature", "0", QUESTION]
    runs = {}
    for kind, before in (("cold", forget), ("warm", remember)):
        runs[kind] = []
        for _ in range(arguments.runs):
            before(files)
            run = Run(command)
            run.answer = json.loads(run.output)
            runs[kind].append(run)
    return runs


def row(name, model, files, arguments):
    runs = chat(arguments, model, files)

    def median(kind, of):
        return statistics.median(of(run) for run in runs[kind])

    def load(run):
        return run.answer["timings"]["load"]

    def first(run):
        return sum(run.answer["timings"][part] for part in ("load", "encode", "prefill"))

    every = runs["cold"] + runs["warm"]
    peak, own = max(run.peak for run in every), max(run.own for run in every)
    size = sum(os.path.getsize(path) for path in files)
    answer = every[0].answer
    print(f"| {name} | {' + '.join(f'{os.path.getsize(path) / 1e6:,.0f}' for path in files[:2])} | {median('cold', load):.2f} | {median('warm', load):.2f} "
          f"| {median('cold', first):.1f} | {median('warm', first):.1f} | {peak / 1e6:,.0f} | {own / 1e6:,.0f} | {(peak - size) / 1e6:+,.0f} |", flush=True)
    print(f"{name}: {answer['tokens']}, answers equal: {len({run.answer['answer'] for run in every}) == 1}", file=sys.stderr)
    return peak - size


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--types", default=TYPES)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--image", type=Path, default=ROOT / "examples/cat.jpg")
    parser.add_argument("--work", type=Path, help="folder for the files that are written")
    parser.add_argument("--mgm", type=Path, default=ROOT / "target/release/mgm")
    parser.add_argument("--keep", action="store_true", help="leave the files in the work folder")
    arguments = parser.parse_args()
    shards = sorted(arguments.model.glob("*.safetensors"))
    total = sum(path.stat().st_size for path in shards)
    print("| | MB, language + vision | load, cold | load, warm | first token, cold | first token, warm | peak MB | own | beyond the files |")
    print("|---|---|---|---|---|---|---|---|---|")
    written, failed = [], []
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        folder = arguments.work if arguments.keep else Path(folder)
        for kind in arguments.types.split(","):
            if kind == "released":
                row(kind, arguments.model, shards, arguments)
                continue
            forget(shards)
            run = Run([arguments.mgm, "models", "quantize", arguments.model, "--type", kind, "-o", folder, "--name", "model", "--force"])
            written.append(f"| {kind} | {run.seconds:.0f} | {total / run.seconds / 1e6:.0f} | {run.peak / 1e6:,.0f} | {run.own / 1e6:,.0f} |")
            language, vision = folder / f"model-{kind}.gguf", folder / f"mmproj-model-{kind}.gguf"
            beyond = row(kind, language, [language, vision], arguments)
            if kind in FOUR_BITS and beyond > ALLOWANCE:
                failed.append(f"{kind}: {beyond / 1e6:.0f} MB beyond the files")
            if not arguments.keep:
                language.unlink()
                vision.unlink()
    print("\n| writing | seconds | MB/s | peak MB | own |\n|---|---|---|---|---|", *written, sep="\n")
    for failure in failed:
        print(failure)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
