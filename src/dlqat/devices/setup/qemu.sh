#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# An emulated ARM64 Linux with onnxruntime, in $DLQAT_DEVICES/arm64: qemu-user, Debian's arm64 libraries, the library of
# the aarch64 wheel, and dlqat_runner (../runner), which is built here. Nothing in it says anything about the speed of a
# phone. The headers, which no wheel has, are those of Debian 13: older than the library, which serves them (include/).
set -euo pipefail
source "$(dirname "$0")/_apt.sh"
target="$HOME_OF_DEVICES/arm64"
python="${PYTHON:-python3}"
onnxruntime="${ONNXRUNTIME:-1.31.1}"
stamp="onnxruntime $onnxruntime runner $(cat "$SETUP/../runner/"* | cksum | cut -d' ' -f1)"
if [ "$(cat "$target/ready" 2>/dev/null)" = "$stamp" ]; then exit 0; fi
rm -rf "$target.new"
unpack "$(dpkg --print-architecture)" "$target.new/host" /var/lib/dpkg/status qemu-user-static
find "$target.new/host" -type f ! -name qemu-aarch64-static -delete  # one of thirty
unpack arm64 "$target.new/root" /dev/null libc6 libstdc++6 libgcc-s1 libgomp1 zlib1g
unpack_of trixie "$target.new/headers" libonnxruntime-dev
mv "$target.new/headers/usr/include/onnxruntime" "$target.new/include"
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$target.new/site" \
  --only-binary=:all: --python-version 3.11 --implementation cp --abi cp311 --platform manylinux_2_28_aarch64 \
  --platform manylinux_2_27_aarch64 "onnxruntime==$onnxruntime"
build_arm64 build-onnxruntime.sh "$target.new/include" "$target.new"/site/onnxruntime/capi/libonnxruntime.so.* \
  "$target.new/runner"
rm -rf "$target.new/headers" "$target.new/site"
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
