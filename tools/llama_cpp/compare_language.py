#!/usr/bin/env python3
"""Runs language files of ours in llama.cpp and compares: token ids of texts, greedy continuations, logits.

Usage: compare_language.py DIR MODEL [--types F16,…] [--tokens 64] [--prompts N] [--work FOLDER] [--threads 2] [--programs FOLDER]

DIR is what build.sh was given. MODEL is anything `mgm models quantize` takes; it is written in each type, and every file is loaded by
llama.cpp as it is. Three ways of computing with the same file are compared:

* exact: its weights as f32, products in f32, by this project (`--dtype f32`). llama.cpp does the same with the file expanded to F32 by its own
  llama-quantize. How far the two are apart (`exact twice`), and for how many prompts they write the same tokens, says that both
  understand the file alike;
* ours, and llama.cpp, as they run: both round activations to 8 bits (F16, BF16: to 16) before they multiply with blocks.

The two roundings are not the same, so their best tokens may differ where two candidates are close. Hence, over the tokens that llama.cpp writes
after each prompt: KL divergence from the exact distribution, |difference| of logits in standard deviations of the exact logits (largest and
mean), share of equal best tokens. `as run` counts prompts whose greedy continuations agree in all tokens; `gap` is the largest distance in
exact logits (same unit) of two tokens at which continuations part. `equal ids` counts texts that both tokenise alike.

Needs numpy, safetensors, diskcache, jinja2, and cargo on the path. Ends with status 1 when ids differ, when exact twice differs
by more than 1e-3 (Gemma: 1e-2), when ours is farther from exact than llama.cpp by more than a half (both round alike, and the divergence of few prompts is
noisy), or when they part at two tokens that are not close.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from llama import Llama, load_binding

# |difference| of two computations in f32, in standard deviations. llama.cpp looks Gemma's GELU up in a table of 16-bit floats.
SAME, SAME_BUT_GELU = 1e-3, 1e-2
ROOT = Path(__file__).resolve().parents[2]
TYPES = "F16,BF16,Q8_0,Q6_K,Q5_K_M,Q4_K_M,Q4_0"
PROMPTS = [
    "The capital of France is Paris. The capital of Italy is",
    "Once upon a time there was a small dog who",
    "Question: What is a cat?\nAnswer: A cat is",
    "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n",
    "Here is a list of seven fruits: apple, banana,",
    "The weather today is cold and it is snowing, so I will",
    "Water boils at 100 degrees. Ice melts at",
    "Dear Sir or Madam,\n\nI am writing to you because",
]
TEXTS = PROMPTS + [
    "", " ", "  two  spaces ", "\n\n\ttabs and\r\nlines", "Größe, naïve, İstanbul, 日本語, 한국어, العربية",
    "🙂 emoji 👩‍👩‍👧 joined", "1234567 3.14159 1,000,000 0x1F", "don't we'll I'M THEY'RE", "a</s>b <s> c", "<bos>x<eos>", "<|im_start|>user\nHi<|im_end|>\n",
    "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n", "A chat between a curious user and an artificial intelligence assistant. USER: Hi ASSISTANT:",
    "fn main() {\n    println!(\"{}\", 1 + 2);\n}\n", "\u00a0non-breaking\u2003space", "x" * 50, "e\u0301 combining é",
]


def built(arguments, kind, name, *package):
    """Path of a program of ours."""
    if arguments.programs:
        return Path(arguments.programs) / name
    lines = subprocess.run(["cargo", "build", "--release", *package, kind, name, "--message-format=json"],
                           cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return [path for path in (json.loads(line).get("executable") for line in lines) if path][-1]


class Ours:
    def __init__(self, program, path, folder, exact=False):
        self.program, self.path, self.folder, self.exact = program, path, folder, exact

    def run(self, greedy=0, **inputs):
        """Lists of prompts (`ids`), continuations (`follow`) and texts to lists of results."""
        tensors = {}
        for kind, values in inputs.items():
            for i, value in enumerate(values):
                tensors[f"{kind}.{i}"] = (np.frombuffer(value.encode(), dtype=np.uint8).copy() if kind == "text"
                                          else np.array(value, dtype=np.int64))
        source, out = self.folder / "inputs.safetensors", self.folder / "outputs.safetensors"
        save_file(tensors, source)
        command = [self.program, self.path, source, out, "--greedy", greedy]
        command += ["--dtype", "f32", "--at-once"] if self.exact else []
        subprocess.run([str(part) for part in command], check=True)
        results = {}
        for name, value in load_file(out).items():
            kind, index = name.split(".")
            results.setdefault(kind, {})[int(index)] = value
        return {kind: [values[i] for i in sorted(values)] for kind, values in results.items()}


def log_softmax(logits):
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


class Distance:
    """How far logits are from the exact ones, over rows of all prompts."""

    def __init__(self):
        self.kl, self.largest, self.mean, self.agree = [], [], [], []

    def add(self, exact, found):
        p = log_softmax(exact)
        self.kl += list((np.exp(p) * (p - log_softmax(found))).sum(axis=1))
        error = np.abs(found - exact) / exact.std(axis=1, keepdims=True)
        self.largest += list(error.max(axis=1))
        self.mean += list(error.mean(axis=1))
        self.agree += list(exact.argmax(axis=1) == found.argmax(axis=1))

    def cells(self):
        return [f"{np.mean(self.kl):.2e}", f"{np.max(self.largest):.3f}", f"{np.mean(self.mean):.4f}",
                f"{np.mean(self.agree):.1%}"]


class Parted:
    """Where greedy continuations of the same prompts part."""

    def __init__(self):
        self.places = []

    def add(self, prompt, ours, theirs):
        at = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), None)
        if at is not None:
            # Both have written the same so far.
            self.places.append((prompt + ours[:at], ours[at], theirs[at]))

    def gap(self, exact):
        """The largest distance in exact logits, in standard deviations, of the two tokens."""
        if not self.places:
            return 0.0
        rows = exact.run(ids=[so_far for so_far, *_ in self.places], follow=[[ours] for _, ours, _ in self.places])["whole"]
        return max(float(abs(row[0, ours] - row[0, theirs]) / row[0].std()) for row, (_, ours, theirs) in zip(rows, self.places))


def compare(arguments, binding, program, mgm, kind, folder, failures):
    subprocess.run([mgm, "models", "quantize", arguments.model, "--type", kind, "-o", folder, "--name", "model", "--force"],
                   check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    path = folder / f"model-{kind}.gguf"
    (folder / f"mmproj-model-{kind}.gguf").unlink(missing_ok=True)
    theirs = Llama(binding, path, threads=arguments.threads)
    exact, ours = Ours(program, path, folder, exact=True), Ours(program, path, folder)
    prompts = [theirs.tokenize(text) for text in PROMPTS[:arguments.prompts]]

    found = ours.run(text=TEXTS)["tokens"]
    unequal = [text for text, ids in zip(TEXTS, found) if list(ids) != theirs.tokenize(text)]
    for text in unequal:
        failures.append(f"{kind}: {text!r}: ours {list(found[TEXTS.index(text)])}, llama.cpp {theirs.tokenize(text)}")

    greedy = [theirs.greedy(prompt, arguments.tokens) for prompt in prompts]
    follow = [tokens for tokens, _ in greedy]
    twin = exact.run(greedy=arguments.tokens, ids=prompts, follow=follow)
    reference = twin["whole"]
    run = ours.run(greedy=arguments.tokens, ids=prompts, follow=follow)
    distances = {name: Distance() for name in ("ours, at once", "llama.cpp, at once", "ours, one by one", "llama.cpp, one by one")}
    parted = Parted()
    for i, prompt in enumerate(prompts):
        other, steps = greedy[i]
        distances["ours, at once"].add(reference[i], run["whole"][i])
        distances["ours, one by one"].add(reference[i], run["steps"][i])
        distances["llama.cpp, at once"].add(reference[i], theirs.whole(prompt, other))
        distances["llama.cpp, one by one"].add(reference[i], steps)
        parted.add(prompt, list(map(int, run["greedy"][i])), other)
    theirs.close()
    gap = parted.gap(exact)

    # The same weights as f32 in llama.cpp.
    expanded = folder / "expanded.gguf"
    twice, twins = 0.0, Parted()
    subprocess.run([Path(arguments.directory) / "build/bin/llama-quantize", "--allow-requantize", path, expanded, "F32"], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    theirs = Llama(binding, expanded, threads=arguments.threads)
    for i, prompt in enumerate(prompts):
        rows = reference[i]
        twice = max(twice, float((np.abs(theirs.whole(prompt, follow[i]) - rows) / rows.std(axis=1, keepdims=True)).max()))
        twins.add(prompt, list(map(int, twin["greedy"][i])), theirs.greedy(prompt, arguments.tokens)[0])
    theirs.close()
    limit = SAME_BUT_GELU if theirs.architecture == "gemma" else SAME
    expanded.unlink()

    same, twin_same = (len(prompts) - len(where.places) for where in (parted, twins))
    print(f"| {kind} | {len(TEXTS) - len(unequal)} of {len(TEXTS)} | {twice:.1e}; {twin_same} of {len(prompts)} | {same} of {len(prompts)} | "
          f"{f'{gap:.3f}' if parted.places else '–'} | | | | | |")
    for name, distance in distances.items():
        print(f"| | | | | | {name} | {' | '.join(distance.cells())} |")
    sys.stdout.flush()

    if twice > limit:
        failures.append(f"{kind}: exact twice differs by {twice:.1e}")
    if (apart := twins.gap(exact)) > 2 * limit:
        failures.append(f"{kind}: exact twice parts at tokens {apart:.4f} apart")
    for way in ("at once", "one by one"):
        kl = [np.mean(distances[f"{who}, {way}"].kl) for who in ("ours", "llama.cpp")]
        if kl[0] > 1.5 * kl[1] + 1e-7:
            failures.append(f"{kind}, {way}: KL {kl[0]:.2e}, llama.cpp's {kl[1]:.2e}")
    error = 2 * max(max(distance.largest) for distance in distances.values())
    if gap > error:
        failures.append(f"{kind}: they part at tokens {gap:.3f} apart, twice the largest error is {error:.3f}")
    path.unlink()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory")
    parser.add_argument("model")
    parser.add_argument("--types", default=TYPES)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    parser.add_argument("--work", help="folder for large temporary files")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--programs", help="folder with `mgm` and the example `language`, instead of building them")
    arguments = parser.parse_args()
    binding = load_binding(arguments.directory)
    program, mgm = built(arguments, "--example", "language", "-p", "mini-gemini"), built(arguments, "--bin", "mgm", "-p", "mgm")
    print("| type | equal ids | exact twice; same tokens | as run: same tokens | gap | | KL | largest | mean | best token |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    failures = []
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        for kind in arguments.types.split(","):
            compare(arguments, binding, program, mgm, kind, Path(folder), failures)
    print()
    for failure in failures:
        print(failure)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
