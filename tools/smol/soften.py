"""Data of the third, short stage: prototypes as unsure as photographs are, among reminders of everything else.

A prototype carries its class with a pooled probability of 0.5 to 0.98, but on real photographs the same network is often less sure:
0.3 for the right class and a long tail. This script writes data/features-soft/*.safetensors, prototypes whose probability map is
flattened by a temperature until its largest mean probability falls to a target drawn from 0.1 to 0.5, and data/train/stage3.json.
"""

import numpy
import torch
from safetensors.torch import load_file

from align import PROBABILITY_SCALE, save_all
from common import arguments, read_json, stable_fraction, stable_seed, write_bytes, write_json

# records of each source; the soft prototypes first
COUNTS = {"features/": 640, "unpacked/easy-vqa": 220, "images/emoji": 160, "images/clipart": 80, "": 100}


def soften(probabilities, target):
    """[1000,8,8] -> the same flattened by the smallest temperature that brings the largest pooled probability to the target."""
    logarithms = probabilities.clamp_min(1e-7).log()
    low, high = 1.0, 6.0
    for _ in range(12):
        middle = (low + high) / 2
        largest = torch.softmax(logarithms / middle, 0).mean((1, 2)).max().item()
        low, high = (middle, high) if largest > target else (low, middle)
    return torch.softmax(logarithms / high, 0)


def main():
    data = arguments(__doc__.splitlines()[0]).parse_args().data
    torch.set_num_threads(1)
    (data / "features-soft").mkdir(exist_ok=True)
    pools = {source: [] for source in COUNTS}
    records = [r for r in read_json(data / "train" / "stage1.json") if r["image"].startswith("features/")]
    records += [r for r in read_json(data / "train" / "stage2-short.json") if not r["image"].startswith("features/")]
    for record in records:
        pools[next(source for source in COUNTS if record["image"].startswith(source))].append(record)
    chosen = []
    for source, count in COUNTS.items():
        chosen += sorted(pools[source], key=lambda record: stable_fraction("stage3 " + record["id"]))[:count]
    for record in chosen:
        if not record["image"].startswith("features/"):
            continue
        soft = record["image"].replace("features/", "features-soft/")
        if not (data / soft).exists():
            tensors = load_file(data / record["image"])
            target = numpy.random.default_rng(stable_seed("soften " + soft)).uniform(0.1, 0.5)
            flat = soften(tensors["high_res.3"].float() / PROBABILITY_SCALE, target)
            tensors["high_res.3"] = (flat * PROBABILITY_SCALE).half()
            write_bytes(data / soft, save_all(tensors))
        record["image"] = soft
    write_json(data / "train" / "stage3.json", sorted(chosen, key=lambda record: stable_fraction("order " + record["id"])))


if __name__ == "__main__":
    main()
