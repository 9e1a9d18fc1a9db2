#!/usr/bin/env bash
# Makes a random checkpoint of one family in the official layout, loads it from every format, and prints how far visual tokens and
# logits are from transformers' on the same files, and whether the formats give the same bits.
#
#   tools/official/compare_formats.sh FAMILY WORK [TYPE…]
#
# FAMILY: 2b 7b 13b 8b 8x7b 34b. WORK: a folder for the files (5 to 30 GB at a time; every format is deleted when it has been read).
# TYPE: GGUF pairs (default: f32 bf16 f16 Q8_0 Q6_K Q5_K_M Q4_K_M Q4_0). Variables: PYTHON (with what requirements.txt names),
# LAYERS (of the language model), PAIRS_ONLY=1 (leaves out the first table), HD=1 (the configuration of the HD release), ASSETS (what tools/fetch_tokenizers.sh brought), KEEP=1
# (leaves the checkpoint), CARGO_TARGET_DIR. Before it: cargo build --release -p mgm -p mini-gemini --bins --examples.
# Exit status: 0 if nothing is further away than it may be.
set -eu -o pipefail

family=$1
case $family in 2b) name=MGM-2B ;; 7b) name=MGM-7B ;; 13b) name=MGM-13B ;; 8b) name=MGM-8B ;; 8x7b) name=MGM-8x7B ;; 34b) name=MGM-34B ;; *) echo "unknown family $family" >&2; exit 2 ;; esac
hd=${HD:+-hd}
name=$name${HD:+-HD}
mkdir -p "$2/$family$hd"
work=$(cd "$2/$family$hd" && pwd)
features=$(dirname "$work")/features$hd
shift 2
types=${*:-f32 bf16 f16 Q8_0 Q6_K Q5_K_M Q4_K_M Q4_0}
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
python=${PYTHON:-python3}
target=${CARGO_TARGET_DIR:-$root/target}/release
mgm=$target/mgm
logits=$target/examples/logits
assets=${ASSETS:-$root/target/assets}
model=$work/$name
reference=$work/reference.safetensors
first=$work/first.safetensors
status=0

[ -d "$model" ] || "$python" "$here/make_checkpoint.py" "$family" "$model" ${LAYERS:+--layers "$LAYERS"} ${HD:+--hd} --shard-bytes 1e9 --assets "$assets" >&2
[ -d "$work/adapter" ] || "$python" "$here/make_variant.py" "$model" adapter "$work/adapter" >&2
[ -f "$reference" ] || "$python" "$here/reference.py" "$model" "$reference" --adapter "$work/adapter/adapter" --features "$features.safetensors" >&2

load() { # OUT MODEL [logits option…]
    local out=$1
    shift
    if ! "$logits" "$1" "$reference" "$out" "${@:2}" 2>"$work/log"; then
        echo "$1: $(tail -n 1 "$work/log")" >&2
        return 1
    fi
    echo "$*: $(tail -n 1 "$work/log")" >&2
}

row() { # REFERENCE TITLE [compare.py argument…]
    "$python" "$here/compare.py" "$@" || status=1
}

run() { # TITLE PREFIX MODEL [logits option…]: in f32 and with one picture, against the checkpoint's reference
    local title=$1 prefix=$2
    shift 2
    if load "$work/out" "$@" --dtype f32 --pictures 1; then
        row "$reference" "$title" "$work/out" --limit 1e-4 ${prefix:+--prefix "$prefix"} $([ -n "$prefix" ] || echo --same-as "$first")
    else
        status=1
        echo "| $title | not loaded |"
    fi
}

variant() { # NAME
    rm -rf "${work:?}/variant"
    "$python" "$here/make_variant.py" "$model" "$1" "$work/variant" >&2
}

load "$first" "$model" --dtype f32
formats() {
    row "$reference" "sharded safetensors" "$first" --header --limit 1e-4
    for kind in single bin bin-sharded; do
        variant $kind
        case $kind in single) title="one safetensors file" ;; bin) title="one torch file" ;; *) title="sharded torch files" ;; esac
        run "$title" "" "$work/variant/$name"
    done
    variant towers-outside
    run "towers outside, in a model zoo" "" "$work/variant/$name" --model-zoo "$work/variant/model_zoo"
    variant stage1
    base=$(find "$work/variant" -mindepth 1 -maxdepth 1 -type d ! -name '*-Pretrain')
    run "\`mm_projector.bin\` on its base" "" "$work/variant/$name-Pretrain" --model-base "$base"
    rm -rf "$work/variant"
    run "adapter, live" adapter. "$model" --adapter "$work/adapter/adapter"
    run "adapter folder alone" adapter. "$work/adapter/adapter"
    "$mgm" models merge "$model" --adapter "$work/adapter/adapter" -o "$work/merged" >&2
    run "adapter, merged to bf16" merged. "$work/merged"
    rm -rf "$work/merged"
    [ "$family" != 2b ] || run "numerics of 4.38" erf. "$model" --gemma-numerics 4.38
    load "$work/out" "$model"
    row "$reference" "kept in bf16" "$work/out" --yardsticks 1 --step-yardsticks 1
    row "$reference" "(transformers in bf16)"
}

[ -n "${PAIRS_ONLY:-}" ] || formats

echo
losses=
header=--header
for type in $types; do
    rm -rf "$work/pair"
    "$mgm" models quantize "$model" --type "$type" -o "$work/pair" >&2
    file=$(find "$work/pair" -name '*.gguf' ! -name 'mmproj*')
    case $type in
        # The very values of the checkpoint.
        f32 | bf16) same=$reference ;;
        *)
            same=$work/reference-pair.safetensors
            rm -f "$same"
            kind=quantised
            [ "$type" != f16 ] || kind=f16
            "$python" "$here/reference.py" "$model" "$same" --pair "$file" --features "$features-$kind.safetensors" >&2
            ;;
    esac
    load "$work/out" "$file" --dtype f32 --pictures 1
    row "$same" "$type, expanded to f32" "$work/out" $header --limit 1e-4 --same-as "$first"
    header=
    [ "$type" != f32 ] || continue
    load "$work/out" "$file" --pictures 1
    # Over blocks, rows are rounded to 8 bits: with AVX-512 any number of them, elsewhere a few. See docs/loading-report.md.
    case $type in bf16 | f16) limit=1 ;; *) limit=5 ;; esac
    row "$same" "$type, as stored" "$work/out" --yardsticks $limit --step-yardsticks $limit
    row "$same" "(transformers in bf16)"
    losses+=$("$python" "$here/compare.py" "$reference" "$type, as stored" "$work/out" $([ -n "$losses" ] || echo --header))$'\n'
done
rm -rf "$work/pair"
printf '\n%s' "$losses"
[ -n "${KEEP:-}" ] || rm -rf "$work"
exit $status
