"""PyTorch reference of the built-in model's two vision towers and of its image preprocessing.

Low resolution: the first ten blocks of a DINOv2-small encoder (Hugging Face `Dinov2Model` mathematics, erf GELU, LayerScale,
LayerNorm eps 1e-6), 112x112 input, 8x8 patch tokens without the class token. High resolution: EfficientNet-Lite0 (BN eps 1e-3,
ReLU6, TensorFlow "SAME" padding), 256x256 input, taps at strides 8, 16 and 32. Both read the CLIP-normalised picture, return to
the [0, 1] range and normalise again as they were trained.
"""

import numpy
import torch
import torch.nn.functional as functional
from PIL import Image

CLIP_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
CLIP_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
IMAGENET_STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
PAD_COLOUR = (122, 116, 104)
HIGH_RES_SIZE, LOW_RES_SIZE = 256, 112
VIT_PREFIX = "model.vision_tower.vision_tower."
CNN_PREFIX = "model.vision_tower_aux."
VIT_LAYERS, VIT_HEADS = 10, 6
# (kernel, stride, repeats) of the seven stages
LITE0_STAGES = ((3, 1, 1), (3, 2, 2), (5, 2, 2), (3, 2, 3), (5, 1, 3), (5, 2, 4), (3, 1, 1))
STAGE_CHANNELS = (40, 112, 1280)


def open_rgb(path):
    """Read a picture as the official code does: `convert("RGB")`, alpha dropped."""
    with Image.open(path) as image:
        return image.convert("RGB")


def pad_to_square(image):
    """Pad to a square with the reference colour, odd pixel at the bottom or right."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new("RGB", (side, side), PAD_COLOUR)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def prepare(image):
    """PIL RGB image -> (high_res [3,256,256], low_res [3,112,112]), CLIP-normalised float32."""
    image = pad_to_square(image)
    if image.size != (HIGH_RES_SIZE, HIGH_RES_SIZE):
        image = image.resize((HIGH_RES_SIZE, HIGH_RES_SIZE), Image.BICUBIC)
    pixels = torch.from_numpy(numpy.asarray(image).astype(numpy.float32) * numpy.float32(1 / 255)).permute(2, 0, 1)
    high_res = (pixels - CLIP_MEAN) / CLIP_STD
    low_res = functional.interpolate(high_res[None], size=(LOW_RES_SIZE, LOW_RES_SIZE), mode="bilinear", align_corners=False)[0]
    return high_res, low_res


def resize_positions(table, rows, columns):
    """Bicubic resize (a = -0.75, no antialias, as Hugging Face) of a [1, 1+n*n, c] position table; the class row is kept."""
    side = int(round((table.shape[1] - 1) ** 0.5))
    patches = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    patches = functional.interpolate(patches, size=(rows, columns), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], patches.permute(0, 2, 3, 1).reshape(1, rows * columns, -1)], dim=1)


def vit_states(weights, pixels, layers=VIT_LAYERS, prefix=VIT_PREFIX):
    """[b,3,h,w] normalised with ImageNet statistics -> [b, 1+n, 384], the state after `layers` blocks."""

    def tensor(name):
        return weights[prefix + name]

    def norm(x, name):
        return functional.layer_norm(x, x.shape[-1:], tensor(name + ".weight"), tensor(name + ".bias"), 1e-6)

    def linear(x, name):
        return functional.linear(x, tensor(name + ".weight"), tensor(name + ".bias"))

    patches = functional.conv2d(pixels, tensor("embeddings.patch_embeddings.projection.weight"), tensor("embeddings.patch_embeddings.projection.bias"), stride=14)
    rows, columns = patches.shape[-2:]
    x = patches.flatten(2).transpose(1, 2)
    x = torch.cat([tensor("embeddings.cls_token").expand(x.shape[0], -1, -1), x], dim=1)
    positions = tensor("embeddings.position_embeddings")
    if positions.shape[1] != x.shape[1]:
        positions = resize_positions(positions, rows, columns)
    x = x + positions
    for index in range(layers):
        name = f"encoder.layer.{index}."
        h = norm(x, name + "norm1")
        query, key, value = (
            linear(h, f"{name}attention.attention.{part}").unflatten(-1, (VIT_HEADS, -1)).transpose(1, 2) for part in ("query", "key", "value")
        )
        h = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + linear(h, name + "attention.output.dense") * tensor(name + "layer_scale1.lambda1")
        h = functional.gelu(linear(norm(x, name + "norm2"), name + "mlp.fc1"))
        x = x + linear(h, name + "mlp.fc2") * tensor(name + "layer_scale2.lambda1")
    return x


def lite0_maps(weights, pixels, prefix=CNN_PREFIX, activate_head=True):
    """[b,3,s,s] as (255x - 127)/128 -> the maps after stage 3 [b,40,s/8,s/8], stage 5 [b,112,s/16,s/16], head [b,1280,s/32,s/32].

    `activate_head=False` leaves the ReLU6 after the head's batch norm away.
    """

    def batch_norm(x, name):
        return functional.batch_norm(x, *(weights[f"{prefix}{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")), eps=1e-3)

    def convolution(x, name, stride=1, groups=1):
        weight = weights[f"{prefix}{name}.weight"]
        total = [max((-(-size // stride) - 1) * stride + weight.shape[-1] - size, 0) for size in x.shape[-2:]]
        x = functional.pad(x, (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2))
        return functional.conv2d(x, weight, stride=stride, groups=groups)

    x = functional.relu6(batch_norm(convolution(pixels, "_conv_stem", 2), "_bn0"))
    taps, block = [], 0
    for stage, (_, first_stride, repeats) in enumerate(LITE0_STAGES):
        for repeat in range(repeats):
            name, stride, entry = f"_blocks.{block}.", first_stride if repeat == 0 else 1, x
            if f"{prefix}{name}_expand_conv.weight" in weights:
                x = functional.relu6(batch_norm(convolution(x, name + "_expand_conv"), name + "_bn0"))
            x = functional.relu6(batch_norm(convolution(x, name + "_depthwise_conv", stride, x.shape[1]), name + "_bn1"))
            x = batch_norm(convolution(x, name + "_project_conv"), name + "_bn2")
            if stride == 1 and entry.shape[1] == x.shape[1]:
                x = x + entry
            block += 1
        if stage in (2, 4):
            taps.append(x)
    head = batch_norm(convolution(x, "_conv_head"), "_bn1")
    taps.append(functional.relu6(head) if activate_head else head)
    return taps


class Towers:
    """Both towers with the standardisation buffers of a `towers.safetensors` file."""

    def __init__(self, weights):
        self.weights = {name: tensor.float() for name, tensor in weights.items()}

    @classmethod
    def load(cls, path):
        from safetensors.torch import load_file

        return cls(load_file(path))

    @torch.no_grad()
    def raw(self, high_res, low_res, activate_head=True):
        """Batches of prepared pictures -> (tokens [b,64,384], [maps]) before standardisation."""
        low_pixels = (low_res * CLIP_STD + CLIP_MEAN - IMAGENET_MEAN) / IMAGENET_STD
        high_pixels = ((high_res * CLIP_STD + CLIP_MEAN) * 255 - 127) / 128
        return vit_states(self.weights, low_pixels)[:, 1:], lite0_maps(self.weights, high_pixels, activate_head=activate_head)

    def standardise(self, tokens, maps):
        """(x - mean) / std per channel with the stored buffers."""
        name = "model.vision_tower.feature_norm."
        tokens = (tokens - self.weights[name + "mean"]) / self.weights[name + "std"]
        result = []
        for index, values in enumerate(maps):
            name = f"model.vision_tower_aux.feature_norm.{index}."
            mean, std = (self.weights[name + part].view(-1, 1, 1) for part in ("mean", "std"))
            result.append((values - mean) / std)
        return tokens, result
