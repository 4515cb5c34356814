#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# ExecuTorch for the emulated ARM64 Linux of qemu.sh, in $DLQAT_DEVICES/arm64-executorch (about 350 MB): its aarch64
# wheel, and dlqat_runner (../runner), which is built here with Debian's cross compiler.
#
# The kernels of llama:: are linked to torch. The last versions of torch's aarch64 wheel need CUDA's libraries, 2 GB that
# nothing here runs; 2.10 is the last that does not. One function that these kernels call to describe themselves to torch
# has been renamed since: the namespace of an enum in its signature. The enum is the same, so the name is set back.
# Nothing that computes is touched.
set -euo pipefail
bash "$(dirname "$0")/qemu.sh"
source "$(dirname "$0")/_apt.sh"
target="$HOME_OF_DEVICES/arm64-executorch"
python="${PYTHON:-python3}"
executorch="${EXECUTORCH:-1.5.1}" torch="${TORCH_ARM64:-2.10.0}"
stamp="executorch $executorch torch $torch runner $(cat "$SETUP/../runner/"* | cksum | cut -d' ' -f1)"
if [ "$(cat "$target/ready" 2>/dev/null)" = "$stamp" ]; then exit 0; fi
rm -rf "$target.new"
mkdir -p "$target.new"
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$target.new/wheels" \
  --only-binary=:all: --python-version 3.11 --implementation cp --abi cp311 --platform manylinux_2_28_aarch64 \
  "executorch==$executorch" "torch==$torch"
"$python" - "$target.new" <<'EOF'
import sys
import zipfile
from pathlib import Path

root = Path(sys.argv[1])
wanted = ("executorch/lib/", "executorch/include/", "executorch/extension/", "executorch/version.py", "torch/lib/")
unwanted = ("libtorch_python.so", "_llm_runner", "libjitbackend_test", "libtorchbind_test", "libbackend_with_compiler")
for wheel in root.glob("wheels/*.whl"):
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n.startswith(wanted) and not any(u in n for u in unwanted)]
        archive.extractall(root, names)
    wheel.unlink()
(path,) = root.glob("executorch/extension/llm/custom_ops/*custom_ops_aot_lib.so")
content = path.read_bytes()
new, old = b"St6vectorINS_10headeronly3TagE", b"St6vectorIN2at3TagE"
start = content.index(b"\0_ZNR5torch7Library4_defE") + 1
name = content[start : content.index(b"\0", start)]
if name.count(new) == 1:  # in place: a shorter name, and the rest of its room filled with zeros
    path.write_bytes(content.replace(name + b"\0", name.replace(new, old).ljust(len(name) + 1, b"\0"), 1))
EOF
build_arm64 build-executorch.sh "$target.new/executorch" "$target.new/torch/lib" "$target.new/runner"
rm -rf "$target.new/wheels" "$target.new/executorch/include"
echo "$stamp" >"$target.new/ready"
rm -rf "$target"
mv "$target.new" "$target"
