#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# ExecuTorch for the emulated ARM64 Linux of qemu.sh, in $DLQAT_DEVICES/arm64-executorch (about 400 MB).
#
# Its bindings are linked to torch. torch's own aarch64 wheels of the last versions need CUDA's libraries, 2 GB that
# nothing here runs; 2.10 is the last that does not. One function that ExecuTorch's kernels call to describe themselves
# to torch has since been renamed: the namespace of an enum in its signature. The enum is the same, so the new name is
# replaced by the old one. Nothing that computes is touched.
set -euo pipefail
bash "$(dirname "$0")/qemu.sh"
source "$(dirname "$0")/_apt.sh"
target="$HOME_OF_DEVICES/arm64-executorch"
python="${PYTHON:-python3}"
executorch="${EXECUTORCH:-1.5.1}" torch="${TORCH_ARM64:-2.10.0}"
stamp="executorch $executorch torch $torch"
if [ "$(cat "$target/ready" 2>/dev/null)" = "$stamp" ]; then exit 0; fi
rm -rf "$target.new"
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --target "$target.new/site" \
  --only-binary=:all: --python-version 3.11 --implementation cp --abi cp311 --platform manylinux_2_28_aarch64 \
  "executorch==$executorch" "torch==$torch"
rm -rf "$target.new/site/torch/"{include,test,bin} "$target.new/site/executorch/"{include,backends,examples}
"$python" - "$target.new/site" <<'EOF'
import sys
from pathlib import Path

(path,) = Path(sys.argv[1]).glob("executorch/extension/llm/custom_ops/*custom_ops_aot_lib.so")
content = path.read_bytes()
new, old = b"St6vectorINS_10headeronly3TagE", b"St6vectorIN2at3TagE"
start = content.index(b"\0_ZNR5torch7Library4_defE") + 1
name = content[start : content.index(b"\0", start)]
if name.count(new) == 1:  # in place: a shorter name, and the rest of its room filled with zeros
    path.write_bytes(content.replace(name + b"\0", name.replace(new, old).ljust(len(name) + 1, b"\0"), 1))
EOF
echo "$stamp" >"$target.new/ready"
rm -rf "$target"
mv "$target.new" "$target"
