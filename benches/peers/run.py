#!/usr/bin/env python3
"""Times other programs and ours on the same work, in turn, and prints the ratios.

    python3 benches/peers/run.py                        everything, results in target/peers/
    python3 benches/peers/run.py --peers llama.cpp --types Q4_0 Q4_K --stages prefill decode

Sets up what it needs below --work: a virtual environment with pinned packages, llama.cpp from the source distribution of its Python package,
the candle program beside this file. Each comparison is run in rounds, ours and the peer alternately, each waiting for an idle machine; all
timed runs of all rounds together give a median and a range. See README.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path

import machine

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

# What each peer can do, and what a type is called there.
TYPES = {
    "pytorch": {"F32": "f32", "BF16": "bf16"},
    "llama.cpp": {"Q4_0": "Q4_0", "Q4_K": "Q4_K", "Q8_0": "Q8_0", "BF16": "BF16"},
    "candle": {"F32": "f32", "BF16": "bf16", "Q4_0": "q4_0", "Q4_K": "q4_k", "Q8_0": "q8_0"},
}
STAGES = {
    "pytorch": ["low-res", "high-res", "mining", "prefill", "decode", "first-token"],
    "llama.cpp": ["prefill", "decode"],
    "candle": ["low-res", "high-res", "prefill", "decode"],
}


def say(text):
    print(text, file=sys.stderr, flush=True)


def output(command, **options):
    return subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True, **options).stdout


class Tools:
    """What the comparisons need, made when first asked for."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.work = arguments.work

    def mgm(self):
        if self.arguments.mgm:
            return self.arguments.mgm
        subprocess.run(["cargo", "build", "--release", "--package", "mgm"], check=True, cwd=ROOT)
        return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/mgm"

    def python(self):
        if self.arguments.python:
            return self.arguments.python
        directory = self.work / "venv"
        python = directory / "bin/python"
        if not (directory / "complete").exists():
            say("setting up the virtual environment")
            subprocess.run([sys.executable, "-m", "venv", directory], check=True)
            subprocess.run([python, "-m", "pip", "install", "--quiet", "--requirement", HERE / "requirements.txt"], check=True)
            (directory / "complete").touch()
        return python

    def llama_cpp(self):
        """The directory with llama-bench."""
        directory = self.arguments.llama_cpp or self.work / "llama.cpp"
        programs = directory / "build/bin"
        if not (programs / "llama-bench").exists():
            say("building llama.cpp")
            environment = dict(os.environ, PATH=f"{self.python().parent}{os.pathsep}{os.environ['PATH']}")
            if not (directory / "build/CMakeCache.txt").exists():
                subprocess.run([ROOT / "tools/llama_cpp/build.sh", directory], check=True, env=environment)
            self.mend(directory)
            subprocess.run(["cmake", "--build", directory / "build", "--target", "llama-bench"], check=True, env=environment)
        return programs

    @staticmethod
    def mend(directory):
        """GCC 12 takes it that `_tile_loadconfig` reads 8 of its 64 bytes and leaves the other stores out; programs then die of SIGILL."""
        file = directory / "source/vendor/llama.cpp/ggml/src/ggml-cpu/amx/mmq.cpp"
        call, barrier = "_tile_loadconfig(&tc);", '__asm__ volatile("" : : "r"(&tc) : "memory");'
        text = file.read_text()
        if "amx_tile" in machine.flags() and barrier not in text:
            file.write_text(text.replace(call, f"{barrier} {call}"))

    def gguf(self, shape, kind):
        path = self.work / f"{shape}-{kind}.gguf"
        if not path.exists():
            say(f"writing {path}")
            subprocess.run([self.python(), HERE / "make_gguf.py", shape, kind, path, "--ggml", self.llama_cpp()], check=True)
        return path

    def candle(self):
        target = self.work / "candle"
        environment = dict(os.environ, RUSTFLAGS="-C target-cpu=native", CARGO_TARGET_DIR=str(target))
        subprocess.run(["cargo", "build", "--release"], check=True, cwd=HERE / "candle", env=environment)
        return target / "release/peer-candle"


def lines(text):
    return {entry["stage"]: entry["seconds"] for entry in map(json.loads, text.splitlines())}


def run_ours(tools, arguments, kind, dtype, stages):
    command = [tools.mgm(), "bench", "--shape", arguments.shape, "--weights", kind, "--threads", arguments.threads, "--no-gate",
               "--dtype", dtype, "--runs", arguments.runs, "--batch", "1", "--json", "-"]
    command += ["--hd"] if arguments.hd else []
    command += ["--level", arguments.level] if arguments.level else []
    command += ["--prefill", ",".join(map(str, arguments.prefill)), "--context", ",".join(map(str, arguments.context))]
    for stage in stages:
        command += ["--stage", stage]
    report = json.loads(output(command, stderr=subprocess.DEVNULL))
    names = {"low-res tower": "low-res", "high-res tower": "high-res", "mining": "mining", "first token": "first-token"}
    found = {}
    for cell in report["cells"]:
        stage = next((stage for name, stage in names.items() if cell["name"].startswith(name)), cell["name"])
        found[stage] = cell["seconds"]
    return found, {"machine": report["machine"], "ceilings": report["ceilings"], "program": report["program"]}


def run_peer(tools, arguments, peer, kind, stages):
    lengths = {"prefill": arguments.prefill, "decode": arguments.context}
    name, threads = TYPES[peer][kind], str(arguments.threads)
    environment = dict(os.environ, OMP_NUM_THREADS=threads, RAYON_NUM_THREADS=threads)
    if peer == "pytorch":
        if arguments.preload:
            environment["LD_PRELOAD"] = str(arguments.preload)
        command = [tools.python(), HERE / "peer_torch.py", "--shape", arguments.shape, "--dtype", name, "--threads", threads,
                   "--runs", arguments.runs, "--prefill", *arguments.prefill, "--context", *arguments.context, "--stages", *stages]
        command += ["--hd"] if arguments.hd else []
    elif peer == "llama.cpp":
        command = [tools.python(), HERE / "peer_llama_cpp.py", "--program", tools.llama_cpp() / "llama-bench",
                   "--model", tools.gguf(arguments.shape, kind), "--threads", threads, "--runs", arguments.runs]
        command += ["--prefill", *arguments.prefill] if "prefill" in stages else []
        command += ["--context", *arguments.context] if "decode" in stages else []
    else:
        command = [tools.candle(), name, arguments.runs]
        for stage in stages:
            command += [part for length in lengths[stage] for part in (stage, length)] if stage in lengths else [stage]
    return lines(output(command, env=environment, stderr=subprocess.DEVNULL if not arguments.verbose else None))


def stages_of(arguments, peer, kind):
    stages = [stage for stage in STAGES[peer] if not arguments.stages or stage in arguments.stages]
    if peer == "candle" and kind.startswith("Q"):
        stages = [stage for stage in stages if stage in ("prefill", "decode")]
    if peer == "candle" and (kind == "BF16" or arguments.hd or arguments.shape != "2b"):
        # candle's CLIP does not run in bf16, and the program knows one shape.
        stages = [stage for stage in stages if kind == "BF16" and stage in ("prefill", "decode")] if arguments.shape == "2b" else []
    if arguments.hd and peer != "pytorch":
        stages = []
    return stages


def describe(seconds):
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds), "runs": len(seconds), "seconds": seconds}


def compare(tools, arguments, peer, kind, stages):
    """Results of one peer and type, with each --dtype of ours: a list of rows."""
    # Full precision is full precision.
    dtypes = [dtype for dtype in arguments.dtypes if dtype == "auto" or kind != "F32"]
    times, about = {}, None
    for turn in range(arguments.rounds):
        for who in (*dtypes, peer):
            waited = machine.wait_until_idle(arguments.gate)
            name = who if who == peer else f"ours, {who}"
            say(f"{peer} {kind}, round {turn + 1} of {arguments.rounds}: {name} (waited {waited:.0f} s)")
            if who == peer:
                found = run_peer(tools, arguments, peer, kind, stages)
            else:
                found, about = run_ours(tools, arguments, kind, who, stages)
            for stage, seconds in found.items():
                times.setdefault((who, stage), []).extend(seconds)
    rows = []
    for (who, stage), seconds in times.items():
        if who != peer and (peer, stage) in times:
            mine, other = describe(seconds), describe(times[peer, stage])
            name = kind if who == "auto" else f"{kind} as {who}"
            rows.append({"peer": peer, "type": name, "stage": stage, "ours": mine, "theirs": other, "speedup": other["median"] / mine["median"]})
    return rows, about


def versions(tools, peers):
    found = {}
    if "pytorch" in peers:
        names = ["torch", "transformers", "timm"]
        code = f"import importlib.metadata as m; print(*[n + ' ' + m.version(n) for n in {names}], sep=', ')"
        found["pytorch"] = output([tools.python(), "-c", code]).strip()
    if "llama.cpp" in peers:
        script = (ROOT / "tools/llama_cpp/build.sh").read_text()
        version = next(line.partition("=")[2] for line in script.splitlines() if line.startswith("version="))
        found["llama.cpp"] = f"of llama-cpp-python {version}"
    if "candle" in peers:
        found["candle"] = "candle-transformers 0.11.1, target-cpu=native"
    return found


def milliseconds(entry):
    def number(seconds):
        value = 1e3 * seconds
        return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"

    return f"{number(entry['median'])} [{number(entry['min'])} .. {number(entry['max'])}] n{entry['runs']}"


def markdown(result):
    about = result["machine"]
    yield f"{about['processor']}, {about['threads']} of {about['cores']} cores, level {about['level']}, {result['date']}; " + "; ".join(
        f"{peer}: {version}" for peer, version in result["versions"].items()
    )
    yield ""
    yield "Milliseconds: median [shortest .. longest] and number of timed runs. Above 1 the ratio says how many times faster mgm is."
    yield ""
    yield "| stage | type | mgm | peer | | ratio |"
    yield "|---|---|---|---|---|---|"
    for row in result["rows"]:
        yield f"| {row['stage']} | {row['type']} | {milliseconds(row['ours'])} | {row['peer']} | {milliseconds(row['theirs'])} | {row['speedup']:.2f} |"


def write(path, text):
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.rename(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="+", choices=TYPES, default=list(TYPES))
    parser.add_argument("--types", nargs="+", choices=sorted({kind for kinds in TYPES.values() for kind in kinds}))
    parser.add_argument("--stages", nargs="+", choices=STAGES["pytorch"])
    parser.add_argument("--dtypes", nargs="+", choices=["auto", "int8"], default=["auto", "int8"],
                        help="how ours holds the weights: as they are, and rounded to 8 bits with what they are multiplied with")
    parser.add_argument("--shape", choices=["2b", "7b", "8b"], default="2b")
    parser.add_argument("--hd", action="store_true")
    parser.add_argument("--prefill", type=int, nargs="+", default=[640])
    parser.add_argument("--context", type=int, nargs="+", default=[640])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5, help="timed runs of a round, at least")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--level", help="instruction-set level of ours")
    parser.add_argument("--gate", type=float, default=300, help="longest wait for an idle machine, in seconds")
    parser.add_argument("--work", type=Path, default=ROOT / "target/peers", help="where everything is set up and the results go")
    parser.add_argument("--mgm", type=Path, help="a built mgm, in place of building it")
    parser.add_argument("--python", type=Path, help="a Python that has the packages of requirements.txt")
    parser.add_argument("--llama-cpp", type=Path, help="a directory that tools/llama_cpp/build.sh filled")
    parser.add_argument("--preload", type=Path, help="a library that PyTorch is started with (LD_PRELOAD)")
    parser.add_argument("--verbose", action="store_true", help="show what the peers say")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)

    tools, rows, failed, about = Tools(arguments), [], [], None
    for peer in arguments.peers:
        for kind in TYPES[peer]:
            stages = stages_of(arguments, peer, kind)
            if not stages or (arguments.types and kind not in arguments.types):
                continue
            try:
                found, about = compare(tools, arguments, peer, kind, stages)
            except subprocess.CalledProcessError as error:
                failed.append(f"{peer} {kind}: {Path(error.cmd[0]).name} ended with {error.returncode}")
                say(failed[-1])
                continue
            rows += found
            result = {"date": date.today().isoformat(), "shape": arguments.shape, "hd": arguments.hd, **about,
                      "versions": versions(tools, arguments.peers), "failed": failed, "rows": rows}
            # Written after every comparison: what was measured is not lost with what fails later.
            write(arguments.work / "peers.json", json.dumps(result, indent=1) + "\n")
            write(arguments.work / "peers.md", "\n".join(markdown(result)) + "\n")
    if rows:
        print("\n".join(markdown(result)))
    sys.exit(1 if failed or not rows else 0)


if __name__ == "__main__":
    main()
