"""The first alignment of the built-in model, in closed form and without a picture: the class channels of the high-resolution tower
are given the language model's own words for those classes.

Writes
* models/smol/classifier.safetensors: EfficientNet-Lite0's classifier (a fourth map of the tower: class probabilities per head cell,
  scaled by 16) and the low-resolution standardisation with its deviation widened four times, so that the queries do not drown what
  is mined;
* the fourth map and the wider standardisation into every data/features/*.safetensors that lacks them;
* data/train/initial.safetensors: miners and a linear projector. Let D be the 1000 x 576 matrix of centred word embeddings of the
  classes' common names, D = U S V^T cut to rank 384. A cell that shows class c with probability p is mined as about 20 p in channel
  c after LayerNorm; the value matrix's column c is U_c S^(1/2) k / 20 and the projector V S^(1/2) / k with the mean embedding as its
  bias, so such a cell enters the language model as its mean embedding moved p of the way to the class's word.
"""

import numpy
import torch
from gguf import GGUFReader, quants
from safetensors.torch import load_file, save

import convert_weights
import towers
from common import MODEL_DIRECTORY, arguments, read_json, write_bytes
from names import imagenet_names
from token_counts import Counter

PROBABILITY_SCALE = 16.0
QUERY_WIDENING = 4.0
WIDTH, CHANNELS, HIDDEN = 384, 40 + 112 + 1280 + 1000, 576
CELL_GAIN, VALUE_NORM = 20.0, 10.0
LOW_RES_STD = "model.vision_tower.feature_norm.std"
CNN = towers.CNN_PREFIX


def save_all(tensors):
    """The bytes of a safetensors file."""
    return save({name: tensor.contiguous() for name, tensor in tensors.items()})


def class_probabilities(head, classifier, bias):
    """Head map [1280,8,8] -> [1000,8,8]: softmax of the mean of each cell's logits and the picture's."""
    logits = torch.einsum("kc,chw->khw", classifier, head) + bias.view(-1, 1, 1)
    return torch.softmax((logits + logits.mean((1, 2), keepdim=True)) / 2, 0)


def write_classifier(full, stored):
    tensors = {
        CNN + "_fc.weight": full["_fc.weight"].half(),
        CNN + "_fc.bias": full["_fc.bias"],
        CNN + "feature_norm.3.mean": torch.zeros(1000),
        CNN + "feature_norm.3.std": torch.full((1000,), 1 / PROBABILITY_SCALE),
        LOW_RES_STD: stored[LOW_RES_STD].float() * QUERY_WIDENING,
    }
    write_bytes(MODEL_DIRECTORY / "classifier.safetensors", save_all(tensors))
    return tensors[CNN + "_fc.weight"].float(), tensors[CNN + "_fc.bias"]


def complete_features(data, stored, classifier, bias):
    mean, std = (stored[f"{CNN}feature_norm.2.{part}"].float().view(-1, 1, 1) for part in ("mean", "std"))
    for path in sorted((data / "features").glob("*.safetensors")):
        tensors = load_file(path)
        if "high_res.3" in tensors:
            continue
        head = (tensors["high_res.2"].float() * std + mean).clamp(0, 6)
        tensors["high_res.3"] = (class_probabilities(head, classifier, bias) * PROBABILITY_SCALE).half().contiguous()
        tensors["low_res"] = (tensors["low_res"].float() / QUERY_WIDENING).half()
        write_bytes(path, save_all(tensors))


def word_embeddings(gguf, names):
    """Mean embedding [576] and the centred mean embedding of each name's tokens [n,576]."""
    counter = Counter(gguf)
    table = next(t for t in GGUFReader(str(gguf)).tensors if t.name == "token_embd.weight")
    table = torch.from_numpy(numpy.ascontiguousarray(quants.dequantize(table.data, table.tensor_type)))
    rows = [table[counter.tokenizer.encode(" " + name).ids].mean(0) for name, _ in names]
    mean = torch.stack(rows).mean(0)
    return mean, torch.stack(rows) - mean


def initial(mean, words):
    generator = torch.Generator().manual_seed(1)
    uniform = lambda *shape: (torch.rand(*shape, generator=generator) * 2 - 1) / shape[-1] ** 0.5
    left, spread, right = torch.linalg.svd(words, full_matrices=False)
    left, spread, right = left[:, :WIDTH], spread[:WIDTH].sqrt(), right[:WIDTH]
    values = left * spread
    scale = VALUE_NORM / values.norm(dim=1).mean()
    tensors = {}
    for name, inputs in (("query", WIDTH), ("aux", CHANNELS), ("val", CHANNELS)):
        name = f"model.vlm_uni_{name}_projector."
        tensors[name + "0.weight"], tensors[name + "0.bias"] = torch.ones(inputs), torch.zeros(inputs)
        tensors[name + "1.weight"], tensors[name + "1.bias"] = uniform(WIDTH, inputs), torch.zeros(WIDTH)
    value = tensors["model.vlm_uni_val_projector.1.weight"]
    value *= 0.3
    value[:, -1000:] = (values * scale / CELL_GAIN).T
    tensors["model.mm_projector.weight"] = (right.T * spread / scale).contiguous()
    tensors["model.mm_projector.bias"] = mean.clone()
    return tensors


def main():
    options = arguments(__doc__.splitlines()[0]).parse_args()
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    files = convert_weights.paths(options.data)
    stored = load_file(MODEL_DIRECTORY / "towers.safetensors")
    full = convert_weights.lite0_weights(files["lite0"], True)
    classifier, bias = write_classifier(full, stored)
    names = imagenet_names(read_json(files["labels"]))
    tensors = initial(*word_embeddings(MODEL_DIRECTORY / "smollm2-135m-instruct.q4_1.gguf", names))
    write_bytes(options.data / "train" / "initial.safetensors", save_all(tensors))
    complete_features(options.data, stored, classifier, bias)


if __name__ == "__main__":
    main()
