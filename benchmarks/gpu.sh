#!/usr/bin/env bash
# Everything that needs a GPU, on a bare machine, in under eight minutes: the most important first, each step with its
# own time limit, each result written at once.
#
#   benchmarks/gpu.sh OUT [--wheels DIR] [--model FILE.gguf] [--only "STEP ..."] [--rehearse]
#
#   OUT          a folder for results: one JSON or log a step, and summary.txt
#   --wheels     a folder of wheels for what this Python lacks (compressed-tensors, msgspec, gguf, torchao); no network
#   --model      SmolLM2-135M as GGUF; without it the steps `agree` and `switches` are left out
#   --only       some of: tests tiles kernels agree shapes profile switches; switches (six minutes by itself, and
#                DLQAT_DATA with wikitext-2/) only where it is named
#   --rehearse   the same on a CPU, small, in Triton's interpreter: shows that it runs, measures nothing
#
# Needs python3 (PYTHON=...) with torch, triton, transformers, accelerate, peft, safetensors, rich, typer, pytest.
set -u
cd "$(dirname "$0")/.."
test $# -ge 1 || { sed -n '2,17p' "$0"; exit 2; }
out=$1; shift
wheels='' model='' only='tests tiles kernels agree shapes profile' smoke=''
while test $# -gt 0; do
  case $1 in
    --wheels) wheels=$2; shift 2 ;;
    --model) model=$2; shift 2 ;;
    --only) only=$2; shift 2 ;;
    --rehearse) smoke=--smoke; shift ;;
    *) echo "gpu.sh: unknown option $1" >&2; exit 2 ;;
  esac
done
python=${PYTHON:-python3}
mkdir -p "$out"; out=$(cd "$out" && pwd)
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
if test -n "$wheels"; then
  site=$(mktemp -d)
  "$python" -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$site" "$wheels"/*.whl || exit 2
  export PYTHONPATH="$PYTHONPATH:$site"
fi
test -n "$smoke" || nvidia-smi >"$out/nvidia-smi.txt" 2>&1
"$python" -m pip list 2>/dev/null >"$out/packages.txt"

step() {  # NAME SECONDS COMMAND...
  name=$1 limit=$2; shift 2
  case " $only " in *" $name "*) ;; *) return ;; esac
  began=$SECONDS
  timeout "$limit" "$@" >"$out/$name.log" 2>&1
  echo "$name: exit $?, $((SECONDS - began)) s (limit $limit)" | tee -a "$out/summary.txt"
  tail -n "${LINES_SHOWN:-25}" "$out/$name.log" | cut -c1-300
}

# Kernels are compiled by each process for itself, so more processes are faster up to the cores.
step tests 150 "$python" -m pytest -q -W ignore -p no:cacheprovider -n "$(nproc)" tests/test_kernels.py
step tiles 120 "$python" benchmarks/kernel_tiles.py --results "$out" $smoke
step kernels 75 "$python" benchmarks/kernels.py --results "$out" $smoke
if test -n "$model"; then
  step agree 200 "$python" benchmarks/gpu_steps.py agree "$model" "${TEXT:-README.md}" --results "$out"
  step switches 360 "$python" benchmarks/switches.py "$model" --results "$out" --seconds 300 --processes 8
fi
step shapes 110 "$python" benchmarks/gpu_steps.py shapes --results "$out" $smoke
step profile 60 "$python" benchmarks/gpu_steps.py profile --results "$out" $smoke
cat "$out/summary.txt"
