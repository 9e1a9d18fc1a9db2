"""Class prototypes: synthetic tower features that say to the language side what the classifier of EfficientNet-Lite0 knows.

No permissive set of photographs exists in the package registries, but the network's classifier holds 1000 directions in the space
of its head. A prototype takes the features of a random training drawing (the donor), gives the head's 1280 pre-activation
channels the mean and deviation that the network's batch statistics tell for photographs, adds noise, and moves a smooth region of
the 8x8 map along the class direction (classifier row minus the mean row, together with some rows of classes of the same common
name) until the pooled classifier gives that name a probability drawn at random. ReLU6 follows, so the result is as sparse as real
head features. The other maps and the low-resolution tokens stay the donor's: the name can only come from the head.

Measured with a ridge probe trained on prototypes alone and tried on real photographs, see `probe`.
"""

import numpy
import torch
from safetensors.torch import save

import towers
from common import stable_fraction, stable_seed, write_bytes
from make_pictures import easy_vqa

PER_CLASS = 3
DONORS = 420
# of the donor's own pre-activation pattern, of white noise (both in units of the batch deviation), lowering of the background
DONOR_SCALE, NOISE_SCALE, BACKGROUND_SHIFT = 0.6, 0.6, 1.0
SIBLING_SHARE = 1.5
LOWEST, HIGHEST = 0.5, 0.98


def donors(data, entries, reference):
    """Tower outputs of the donors: (tokens [n,64,384], stage 3, stage 5, head before ReLU6) raw."""
    names = [entry["image"] for entry in entries if entry["side"] == "train" and entry["source"] in ("emoji", "clipart", "positions", "colours")]
    names = sorted(names, key=lambda n: stable_fraction("donor" + n))[: DONORS - 20]
    names += sorted(easy_vqa(data)["train"], key=lambda n: stable_fraction("donor" + n))[:20]
    parts = []
    for name in names:
        high_res, low_res = towers.prepare(towers.open_rgb(data / name))
        tokens, maps = reference.raw(high_res[None], low_res[None], activate_head=False)
        parts.append((tokens, *maps))
    return [torch.cat(column) for column in zip(*parts)]


def smooth_region(random):
    """[8,8] weights in (0, 1]: a Gaussian blob, or everywhere for one in five."""
    if random.random() < 0.2:
        return torch.ones(8, 8)
    rows, columns = numpy.mgrid[0:8, 0:8] / 3.5 - 1
    centre, width = random.uniform(-0.5, 0.5, 2), random.uniform(0.35, 1.25, 2)
    return torch.from_numpy(numpy.exp(-0.75 * (((rows - centre[0]) / width[0]) ** 2 + ((columns - centre[1]) / width[1]) ** 2))).float()


class PrototypeMaker:
    """Makes head maps of a class from donors."""

    def __init__(self, classifier, bias, beta, gamma, head, names):
        self.classifier, self.bias, self.beta, self.gamma = classifier, bias, beta.view(-1, 1, 1), gamma.abs().view(-1, 1, 1)
        self.head = head
        self.head_mean = head.mean((0, 2, 3)).view(-1, 1, 1)
        self.head_std = head.std((0, 2, 3)).view(-1, 1, 1)
        directions = classifier - classifier.mean(0)
        self.directions = directions / directions.norm(dim=1, keepdim=True)
        siblings = {}
        for index, (noun, _) in enumerate(names):
            siblings.setdefault(noun, []).append(index)
        self.siblings = [siblings[noun] for noun, _ in names]

    def make(self, index, donor, random):
        """Head map [1280,8,8] after ReLU6 for a class."""
        generator = torch.Generator().manual_seed(int(random.integers(2**62)))
        base = (self.head[donor] - self.head_mean) / self.head_std * self.gamma * DONOR_SCALE + self.beta - BACKGROUND_SHIFT
        base = base + NOISE_SCALE * self.gamma * torch.randn(base.shape, generator=generator)
        direction, group = self.directions[index], self.siblings[index]
        if len(group) > 1:
            shares = torch.from_numpy(random.random(len(group)) ** 3).float()
            direction = direction + SIBLING_SHARE * (shares / shares.sum()) @ self.directions[group]
        move = 50 * (direction / direction.norm()).view(-1, 1, 1) * smooth_region(random)
        target, low, high = random.uniform(LOWEST, HIGHEST), 0.0, 40.0
        for _ in range(13):
            middle = (low + high) / 2
            pooled = (base + middle * move).clamp(0, 6).mean((1, 2))
            probability = torch.softmax(self.classifier @ pooled + self.bias, 0)[group].sum().item()
            low, high = (low, middle) if probability > target else (middle, high)
        return (base + high * move).clamp(0, 6)


@torch.no_grad()
def make_prototypes(data, entries, reference, classifier, bias, names, per_class=PER_CLASS):
    """Write `features/<class>-<n>.safetensors` (float16, standardised) for all classes; returns manifest entries."""
    result = [{"image": f"features/{index:03d}-{copy}.safetensors", "class": index, "copy": copy} for copy in range(per_class) for index in range(1000)]
    if all((data / entry["image"]).exists() for entry in result):
        return result
    tokens, stage3, stage5, head = donors(data, entries, reference)
    weights = reference.weights
    maker = PrototypeMaker(classifier, bias, weights[towers.CNN_PREFIX + "_bn1.bias"], weights[towers.CNN_PREFIX + "_bn1.weight"], head, names)
    for entry in result:
        if (data / entry["image"]).exists():
            continue
        random = numpy.random.default_rng(stable_seed("prototype " + entry["image"]))
        donor = int(random.integers(len(head)))
        made = maker.make(entry["class"], donor, random)
        low_res, maps = reference.standardise(tokens[donor][None], [stage3[donor][None], stage5[donor][None], made[None]])
        tensors = {"low_res": low_res, **{f"high_res.{i}": m[0] for i, m in enumerate(maps)}}
        write_bytes(data / entry["image"], save({name: tensor.half().contiguous() for name, tensor in tensors.items()}))
    return result


@torch.no_grad()
def probe(data, entries, reference, names, photographs, truths):
    """Ridge probe on pooled, per-cell layer-normalised head features of the prototypes -> share of photographs named right."""
    from safetensors.torch import load_file

    nouns = sorted({noun for noun, _ in names})
    classes = torch.tensor([nouns.index(noun) for noun, _ in names])

    def features(head):
        return torch.nn.functional.layer_norm(head.permute(1, 2, 0), (head.shape[0],)).mean((0, 1))

    known = torch.stack([features(load_file(data / entry["image"])["high_res.2"].float()) for entry in entries])
    labels = classes[torch.tensor([entry["class"] for entry in entries])]
    middle = known.mean(0)
    known = known - middle
    targets = torch.nn.functional.one_hot(labels, len(nouns)).float()
    kernel = known @ known.T
    weights = known.T @ torch.linalg.solve(kernel + 0.3 * kernel.diagonal().mean() * torch.eye(len(known)), targets - targets.mean(0))
    right = 0
    for path, truth in zip(photographs, truths):
        high_res, low_res = towers.prepare(towers.open_rgb(path))
        _, maps = reference.standardise(*reference.raw(high_res[None], low_res[None]))
        right += nouns[int(((features(maps[2][0]) - middle) @ weights).argmax())] in truth
    return right / len(photographs)
