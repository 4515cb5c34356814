#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# An emulated ARM64 Linux with Python and onnxruntime, in $DLQAT_DEVICES/arm64: qemu-user, Debian's arm64 libraries,
# arm64 wheels. Nothing in it says anything about the speed of a phone.
set -euo pipefail
source "$(dirname "$0")/_apt.sh"
target="$HOME_OF_DEVICES/arm64"
python="${PYTHON:-python3}"
onnxruntime="${ONNXRUNTIME:-1.31.1}" onnx="${ONNX:-1.23.2}"
stamp="onnxruntime $onnxruntime onnx $onnx"
if [ "$(cat "$target/ready" 2>/dev/null)" = "$stamp" ]; then exit 0; fi
rm -rf "$target.new"
unpack "$(dpkg --print-architecture)" "$target.new/host" /var/lib/dpkg/status qemu-user-static
unpack arm64 "$target.new/root" /dev/null \
  libc6 libstdc++6 libgcc-s1 python3.11-minimal libpython3.11-stdlib libgomp1 zlib1g libexpat1 libffi8
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$target.new/site" \
  --only-binary=:all: --python-version 3.11 --implementation cp --abi cp311 --abi abi3 \
  --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64 \
  --platform manylinux2014_aarch64 \
  "onnxruntime==$onnxruntime" "onnx==$onnx" "numpy<2.4" flatbuffers protobuf packaging ml_dtypes typing_extensions
# qemu 7.2 shows the x86 /proc/cpuinfo to the program, and onnxruntime crashes on it. -L redirects this path, too.
# The file must fit the -cpu that is emulated: cortex-a76.
mkdir -p "$target.new/root/proc"
for core in 0 1; do
  printf 'processor\t: %s\nBogoMIPS\t: 100.00\nFeatures\t: %s\nCPU implementer\t: 0x41\nCPU architecture: 8\n' \
    "$core" "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp ssbs"
  printf 'CPU variant\t: 0x4\nCPU part\t: 0xd0b\nCPU revision\t: 1\n\n'
done >"$target.new/root/proc/cpuinfo"
echo "$stamp" >"$target.new/ready"
rm -rf "$target"
mv "$target.new" "$target"
