"""Compares what examples/logits.rs wrote with a reference and prints one row of a Markdown table per file.

    python compare.py REFERENCE.safetensors [--prefix adapter.] [--same-as FIRST.safetensors] NAME=FILE...

Columns: largest difference of visual tokens, text logits and picture logits, relative to the largest reference value; share of
rows whose best token is the reference's; with --same-as, whether every value equals FIRST's bit for bit.
"""

import argparse

import torch
from safetensors.torch import load_file

COLUMNS = ("tokens", "text.logits", "image.logits")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("reference")
    parser.add_argument("--prefix", default="", help="of the reference's names")
    parser.add_argument("--same-as")
    parser.add_argument("--header", action="store_true")
    parser.add_argument("--limit", type=float, help="exit with 1 when a difference is larger")
    parser.add_argument("files", nargs="+", metavar="NAME=FILE")
    arguments = parser.parse_args()
    reference = load_file(arguments.reference)
    same = load_file(arguments.same_as) if arguments.same_as else None
    if arguments.header:
        print("| from | visual tokens | text logits | picture logits | same best token | same bits |")
        print("|---|---|---|---|---|---|")
    worst = 0.0
    for item in arguments.files:
        name, path = item.rsplit("=", 1)
        found, cells, rows, agreeing = load_file(path), [], 0, 0
        for column in COLUMNS:
            wanted = reference.get(arguments.prefix + column)
            if wanted is None or column not in found:
                cells.append("–")
                continue
            assert found[column].shape == wanted.shape, (column, found[column].shape, wanted.shape)
            difference = ((found[column] - wanted).abs().max() / wanted.abs().max()).item()
            worst = max(worst, difference if difference == difference else float("inf"))
            cells.append(f"{difference:.1e}")
            if column != "tokens":
                rows += len(wanted)
                agreeing += (found[column].argmax(-1) == wanted.argmax(-1)).sum().item()
        bits = "–"
        if same is not None:
            shared = [n for n in found if n in same]
            bits = "yes" if shared and all(torch.equal(found[n], same[n]) for n in shared) else "no"
        print(f"| {name} | {' | '.join(cells)} | {agreeing} of {rows} | {bits} |")
    if arguments.limit is not None and not worst <= arguments.limit:
        raise SystemExit(f"largest difference {worst:.1e}, allowed {arguments.limit:.0e}")


if __name__ == "__main__":
    main()
