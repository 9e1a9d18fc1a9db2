"""Compares what examples/logits.rs wrote with a reference and prints one row of a Markdown table.

    python compare.py REFERENCE.safetensors NAME [FILE] [options]

Columns: largest difference of visual tokens, of the text prompt's logits, of those of its last rows fed one by one through the cache,
of the prompts with one and with two pictures, each relative to the largest reference value; share of rows whose best token is the
reference's; with --same-as, whether every value equals that file's bit for bit. Without FILE the row is the yardstick: what the
reference itself loses in bf16. The exit status is 1 when a difference is larger than allowed.
"""

import argparse

import torch
from safetensors.torch import load_file

# Name in the file, name in the reference, heading.
COLUMNS = (
    ("tokens", "tokens", "visual tokens"), ("text.logits", "text.logits", "text"), ("text.steps", "text.logits", "one by one"),
    ("image.logits", "image.logits", "one picture"), ("pair.logits", "pair.logits", "two pictures"),
)
YARDSTICK = "bf16."


def difference(found, wanted):
    value = ((found - wanted).abs().max() / wanted.abs().max()).item()
    return value if value == value else float("inf")


def same_bits(found, path):
    same = load_file(path)
    # The other file may have looked at more pictures.
    shared = [(value, same[name][: len(value)]) for name, value in found.items() if name in same]
    return "yes" if shared and all(torch.equal(one, other) for one, other in shared) else "no"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("reference")
    parser.add_argument("name")
    parser.add_argument("file", nargs="?")
    parser.add_argument("--prefix", default="", help="of the reference's names")
    parser.add_argument("--same-as")
    parser.add_argument("--header", action="store_true")
    parser.add_argument("--limit", type=float, help="largest difference allowed")
    parser.add_argument("--yardsticks", type=float, help="largest difference allowed, in those of the reference's own bf16")
    parser.add_argument("--step-yardsticks", type=float, help="the same for the rows fed one by one")
    arguments = parser.parse_args()
    reference = load_file(arguments.reference)
    if arguments.file:
        found = load_file(arguments.file)
    else:
        found = {n.removeprefix(YARDSTICK): value for n, value in reference.items() if n.startswith(YARDSTICK)}
    if arguments.header:
        print(f"| from | {' | '.join(heading for *_, heading in COLUMNS)} | same best token | same bits |")
        print(f"|---|{'---|' * len(COLUMNS)}---|---|")
    cells, failures, rows, agreeing = [], [], 0, 0
    for column, name, heading in COLUMNS:
        wanted, value = reference.get(arguments.prefix + name), found.get(column)
        if wanted is None or value is None:
            cells.append("–")
            continue
        # The last rows, and the tokens of the first pictures, may be all there is.
        if column == "text.steps":
            wanted = wanted[-len(value) :]
        elif column == "tokens":
            wanted = wanted[: len(value)]
        if value.shape != wanted.shape:
            raise SystemExit(f"{heading}: shape {tuple(value.shape)}, expected {tuple(wanted.shape)}")
        worst = difference(value, wanted)
        cells.append(f"{worst:.1e}")
        if column != "tokens":
            rows += len(wanted)
            agreeing += (value.argmax(-1) == wanted.argmax(-1)).sum().item()
        limits = [arguments.limit]
        factor = arguments.step_yardsticks if column == "text.steps" else arguments.yardsticks
        if factor:
            limits.append(factor * difference(reference[YARDSTICK + name], reference[name]))
        failures += [f"{heading}: {worst:.1e}, allowed {limit:.1e}" for limit in limits if limit is not None and not worst <= limit]
    bits = same_bits(found, arguments.same_as) if arguments.same_as else "–"
    print(f"| {arguments.name} | {' | '.join(cells)} | {agreeing} of {rows} | {bits} |", flush=True)
    if failures:
        raise SystemExit(f"{arguments.name}: {'; '.join(failures)}")


if __name__ == "__main__":
    main()
