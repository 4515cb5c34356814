#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# dlqat_runner for Linux, from an unpacked wheel of ExecuTorch: build-executorch.sh EXECUTORCH TORCH_LIB FOLDER [COMPILER...]
#
# EXECUTORCH is the wheel's folder `executorch`, TORCH_LIB torch's folder `lib`, both for the CPU that COMPILER (g++)
# builds for. The kernels of llama:: are in a library that is linked to torch and, for no symbol, to the Python bindings:
# an empty library of that name, loaded first, stands in for them. Nothing of Python runs.
set -euo pipefail
executorch="$1" torch="$2" folder="$3"
shift 3
compiler=("${@:-g++}")
source="$(cd "$(dirname "$0")" && pwd)/executorch.cpp"
version="$(sed -n 's/^__version__ = "\([^"+]*\).*/\1/p' "$executorch/version.py")"
mkdir -p "$folder"
bindings="$(basename "$executorch"/extension/pybindings/_C.*.so)"
echo | "${compiler[@]}" -shared -x c - -o "$folder/$bindings" -Wl,-soname,"$bindings"
places=("$executorch/lib" "$executorch/extension/llm/custom_ops" "$torch")
found=() # where the runner looks for them: beside itself, and where they are, as seen from there
for place in "${places[@]}"; do found+=("\$ORIGIN/$(realpath --relative-to="$folder" "$place")"); done
libraries=("$bindings" libexecutorch.so libexecutorch_threadpool.so libexecutorch_kernels_optimized.so
  libexecutorch_kernels_quantized.so libexecutorch_backend_xnnpack.so libcustom_ops_aot_lib.so)
"${compiler[@]}" -std=c++17 -O1 -w -DC10_USING_CUSTOM_GENERATED_MACROS -DDLQAT_EXECUTORCH="\"$version\"" "$source" \
  -idirafter "$executorch/include" -I"$executorch/include/executorch/runtime/core/portable_type/c10" \
  -o "$folder/dlqat_runner" -L"$folder" "${places[@]/#/-L}" -Wl,--no-as-needed "${libraries[@]/#/-l:}" \
  -Wl,--allow-shlib-undefined -Wl,--disable-new-dtags -Wl,-rpath,"$(IFS=:; echo "\$ORIGIN:${found[*]}")"
