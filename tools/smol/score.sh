#!/usr/bin/env bash
# Scores the built-in model on every held-out set in data/eval, with and without its high-resolution tower.
#
#   tools/smol/score.sh [QUESTIONS]      easy-VQA questions to ask, all 9,673 by default
set -euo pipefail
cd "$(dirname "$0")/../.."
questions=${1:-9673}
mgm=${MGM:-target/release/mgm}
for tower in "" --without-high-res; do
    echo "== smol ${tower}"
    # The flag stands unquoted because it is absent the first time.
    "$mgm" eval data/eval/easy_vqa.json --image-folder data --limit "$questions" $tower
    "$mgm" eval data/eval/{photos,emoji,clipart,words,counts,positions}.json --image-folder data $tower
done
