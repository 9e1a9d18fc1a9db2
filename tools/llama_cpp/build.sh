#!/bin/sh
# Builds llama.cpp, the reference of the comparisons in this directory. Not part of the tests or of any build.
#
# Usage: build.sh DIR
# Leaves DIR/source and the programs and libraries in DIR/build/bin. Needs python3 with pip, tar, a C++ compiler, cmake; uses
# ninja when it is there. The source comes from the source distribution of llama-cpp-python, which holds llama.cpp's.
set -eu

package=llama-cpp-python
version=0.3.11
archive=llama_cpp_python-0.3.11.tar.gz
sha256=b32fd06a7d19c7e25e8f920e5451fda99a99682648576848e4dc1c6d60af686d

[ $# -eq 1 ] || { echo "usage: build.sh DIR" >&2; exit 2; }
mkdir -p "$1"
cd "$1"

if ! [ -f "$archive" ]; then
    python3 -m pip download --quiet --no-deps --no-binary="$package" "$package==$version" -d .
fi
found=$(sha256sum "$archive" | cut -d' ' -f1)
if [ "$found" != "$sha256" ]; then
    echo "$archive: expected sha256 $sha256, found $found" >&2
    exit 1
fi
rm -rf source
mkdir source
tar xzf "$archive" -C source --strip-components=1

generator="Unix Makefiles"
if command -v ninja >/dev/null; then
    generator=Ninja
fi
cmake -S source/vendor/llama.cpp -B build -G "$generator" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON \
    -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_EXAMPLES=OFF
cmake --build build --parallel "${JOBS:-2}" --target llama llama-quantize llama-imatrix llama-cli
ls build/bin
