#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# An old version of ExecuTorch with the torch of its time, for the emulated ARM64, in
# $DLQAT_DEVICES/releases/PACKAGE-VERSION-arm64 (about 500 MB): _qemu-release.sh PACKAGE VERSION TORCH. Its runtime is in
# its Python bindings, so it runs in Debian's Python for ARM64, $DLQAT_DEVICES/arm64-python (100 MB).
set -euo pipefail
package="$1" version="$2" torch="$3"
bash "$(dirname "$0")/qemu.sh"
source "$(dirname "$0")/_apt.sh"
python="$HOME_OF_DEVICES/arm64-python"
if [ ! -x "$python/usr/bin/python3.11" ]; then
  rm -rf "$python.new"
  unpack arm64 "$python.new" /dev/null python3.11-minimal libpython3.11-stdlib libc6 libstdc++6 libgcc-s1 libgomp1 zlib1g
  cp -r "$HOME_OF_DEVICES/arm64/root/proc" "$python.new/proc"
  mv "$python.new" "$python"
fi
target="$HOME_OF_DEVICES/releases/$package-$version-arm64"
if [ -f "$target/ready" ]; then exit 0; fi
rm -rf "$target.new"
"${PYTHON:-python3}" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
  --python-version 3.11 --implementation cp --abi cp311 --abi none --platform manylinux_2_28_aarch64 \
  --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64 --platform any --target "$target.new" \
  "$package==$version" "torch==$torch" numpy typing_extensions filelock sympy mpmath networkx jinja2 markupsafe fsspec
find "$target.new/torch/bin" -type f ! -name torch_shm_manager -delete  # which torch looks for when it is imported
rm -rf "$target.new"/torch/{include,share,test} "$target.new/bin" "$target.new/share"
touch "$target.new/ready"
rm -rf "$target"
mv "$target.new" "$target"
