"""Measure the standardisation buffers of the towers on training pictures -> `norms.safetensors` in the data folder.

Mean and standard deviation per channel over 600 training pictures (emoji, clip art, easy-vqa, rendered). For the 1280 head
channels half of the weight goes to the moments that the network's own batch statistics imply for photographs (a normal variable
through ReLU6): many of these channels hardly ever fire on drawings, and their tiny deviation there would blow up on a photograph.
"""

import torch
from safetensors.torch import save_file

import towers
from common import stable_fraction
from make_pictures import easy_vqa

PICTURES = {"emoji": 200, "clipart": 160, "easy_vqa": 120, "words": 20, "counts": 30, "positions": 40, "colours": 20, "charts": 10}


def sample(data, entries):
    """The training pictures to measure on, chosen by the hash of their path."""
    by_source = {"easy_vqa": list(easy_vqa(data)["train"])}
    for entry in entries:
        if entry["side"] == "train":
            by_source.setdefault(entry["source"], []).append(entry["image"])
    return [name for source, amount in PICTURES.items() for name in sorted(by_source[source], key=lambda n: stable_fraction("norms" + n))[:amount]]


def head_moments(beta, gamma):
    """Mean and variance of ReLU6(N(beta, gamma^2)) per channel, by quadrature."""
    z = torch.linspace(-6, 6, 4001, dtype=torch.float64)[:, None]
    density = torch.exp(-0.5 * z**2)
    density /= density.sum()
    values = (beta.double() + gamma.double().abs() * z).clamp(0, 6)
    mean = (values * density).sum(0)
    return mean, (values**2 * density).sum(0) - mean**2


def make_norms(data, entries, reference):
    """`reference`: Towers with any standardisation buffers. Returns the buffers by name."""
    sums = None
    for name in sample(data, entries):
        high_res, low_res = towers.prepare(towers.open_rgb(data / name))
        tokens, maps = reference.raw(high_res[None], low_res[None])
        rows = [tokens[0].double()] + [m[0].flatten(1).T.double() for m in maps]
        moments = [(len(r), r.sum(0), (r**2).sum(0)) for r in rows]
        sums = moments if sums is None else [tuple(a + b for a, b in zip(s, m)) for s, m in zip(sums, moments)]
    names = ["model.vision_tower.feature_norm."] + [f"model.vision_tower_aux.feature_norm.{i}." for i in range(3)]
    tensors = {}
    for index, (name, (count, total, squares)) in enumerate(zip(names, sums)):
        mean, variance = total / count, squares / count - (total / count) ** 2
        if index == 3:
            weights = reference.weights
            other, spread = head_moments(weights[towers.CNN_PREFIX + "_bn1.bias"], weights[towers.CNN_PREFIX + "_bn1.weight"])
            both = (mean + other) / 2
            variance = (variance + mean**2 + spread + other**2) / 2 - both**2
            mean = both
        tensors[name + "mean"], tensors[name + "std"] = mean.float(), variance.sqrt().clamp_min(1e-3).float()
    save_file(tensors, data / "norms.safetensors")
    return tensors
