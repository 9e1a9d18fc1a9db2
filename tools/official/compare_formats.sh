#!/usr/bin/env bash
# Makes a random checkpoint of one family in the official layout, loads it from every format, and prints how far visual tokens and
# logits are from transformers' and from each other.
#
#   tools/official/compare_formats.sh FAMILY WORK [TYPE…]
#
# FAMILY: 2b 7b 13b 8b 8x7b 34b. WORK: a folder for the files (5 to 30 GB at a time; every format is deleted when it has been read).
# TYPE: quantised pairs to compare too (default: f32 bf16 Q8_0 Q4_K_M). Variables: PYTHON (with torch, transformers, timm, peft),
# LAYERS, ASSETS (what tools/fetch_tokenizers.sh brought), KEEP=1 (leaves the checkpoint), CARGO_TARGET_DIR.
set -eu -o pipefail

family=$1
mkdir -p "$2/$1"
features=$(cd "$2" && pwd)/features.safetensors
work=$(cd "$2/$1" && pwd)
shift 2
types=${*:-f32 bf16 Q8_0 Q4_K_M}
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
python=${PYTHON:-python3}
target=${CARGO_TARGET_DIR:-$root/target}/release
mgm=$target/mgm
logits=$target/examples/logits
assets=${ASSETS:-$root/target/assets}
case $family in 2b) name=MGM-2B ;; 7b) name=MGM-7B ;; 13b) name=MGM-13B ;; 8b) name=MGM-8B ;; 8x7b) name=MGM-8x7B ;; 34b) name=MGM-34B ;; *) echo "unknown family $family" >&2; exit 2 ;; esac
model=$work/$name
reference=$work/reference.safetensors

[ -d "$model" ] || "$python" "$here/make_checkpoint.py" "$family" "$model" ${LAYERS:+--layers "$LAYERS"} --shard-bytes 1e9 --assets "$assets" >&2
[ -d "$work/adapter" ] || "$python" "$here/make_variant.py" "$model" adapter "$work/adapter" >&2
[ -f "$reference" ] || "$python" "$here/reference.py" "$model" "$reference" --adapter "$work/adapter/adapter" --features "$features" >&2

row() { # TITLE OUT [compare.py option…]
    local title=$1 out=$2
    shift 2
    "$python" "$here/compare.py" "$reference" "$@" "$title=$out"
}

run() { # TITLE MODEL [logits option…]; the row says whether the bits are those of the first format
    local title=$1 from=$2
    shift 2
    if "$logits" "$from" "$reference" "$work/out.safetensors" "$@" 2>"$work/log"; then
        echo "$title: $(tail -n 1 "$work/log")" >&2
        row "$title" "$work/out.safetensors" --same-as "$work/first.safetensors" ${prefix:+--prefix "$prefix"} ${limit:+--limit "$limit"}
    else
        echo "| $title | $(tail -n 1 "$work/log") |"
    fi
}

variant() { # NAME
    rm -rf "${work:?}/variant"
    "$python" "$here/make_variant.py" "$model" "$1" "$work/variant" >&2
}

limit=1e-4
prefix=
"$logits" "$model" "$reference" "$work/first.safetensors" --dtype f32
row "sharded safetensors" "$work/first.safetensors" --header --limit $limit
for kind in single bin bin-sharded; do
    variant $kind
    run "$kind" "$work/variant/$name" --dtype f32
done
variant towers-outside
run "towers outside" "$work/variant/$name" --dtype f32 --model-zoo "$work/variant/model_zoo"
variant stage1
base=$(find "$work/variant" -mindepth 1 -maxdepth 1 -type d ! -name '*-Pretrain')
run "stage-1 folder on its base" "$work/variant/$name-Pretrain" --dtype f32 --model-base "$base"
rm -rf "$work/variant"
prefix=adapter.
run "adapter, live" "$model" --dtype f32 --adapter "$work/adapter/adapter"
run "adapter folder alone" "$work/adapter/adapter" --dtype f32
"$mgm" models merge "$model" --adapter "$work/adapter/adapter" -o "$work/merged" >&2
run "adapter, merged" "$work/merged" --dtype f32
rm -rf "$work/merged"
prefix=
if [ "$family" = 2b ]; then
    prefix=erf.
    run "numerics of 4.38 (text)" "$model" --dtype f32 --gemma-numerics 4.38
    prefix=
fi
limit=
run "bf16 in memory" "$model" --dtype bf16
for type in $types; do
    rm -rf "$work/pair"
    "$mgm" models quantize "$model" --type "$type" -o "$work/pair" >&2
    file=$(find "$work/pair" -name '*.gguf' ! -name '*mmproj*')
    if [ "$type" = f32 ]; then
        run "GGUF pair $type" "$file" --dtype f32
    else
        run "GGUF pair $type" "$file"
    fi
done
rm -rf "$work/pair"
[ -n "${KEEP:-}" ] || rm -rf "$work"
