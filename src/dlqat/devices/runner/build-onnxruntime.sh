#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# dlqat_runner with onnxruntime, in a folder of its own: build-onnxruntime.sh HEADERS LIBRARY FOLDER [COMPILER...]
#
# HEADERS holds onnxruntime_cxx_api.h. LIBRARY is onnxruntime's for the CPU and system that COMPILER (g++) builds for, out
# of its wheel or of its package for Android; it is copied beside the runner, which loads it when it starts.
set -euo pipefail
headers="$1" library="$2" folder="$3"
shift 3
compiler=("${@:-g++}")
mkdir -p "$folder"
"${compiler[@]}" -std=c++17 -O1 -w "$(cd "$(dirname "$0")" && pwd)/onnxruntime.cpp" -I "$headers" \
  -o "$folder/dlqat_runner" -static-libstdc++ -ldl -Wl,-rpath,"\$ORIGIN"
cp "$library" "$folder/libonnxruntime.so"
