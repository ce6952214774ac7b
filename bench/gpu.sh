#!/usr/bin/env bash
# Builds, tests and measures on the GPU of this machine, in under nine minutes; needs PyTorch, triton, nvcc, cmake, ninja and
# pytest, and no network. A stage that fails or runs out of its time does not stop the others.
#
#   bench/gpu.sh                        all stages, in the order below
#   bench/gpu.sh build training         only these
#   bench/gpu.sh --self-test            the same script on the CPU with a tiny model: does the script itself work?
#   TOTAL=1500 bench/gpu.sh autotune    more time: seconds for all stages together, or TRAINING=300 for one
#
# Results: rows as JSON lines in $OUT (bench/results if not set), what was printed in $OUT/gpu.log.
set -u
cd "$(dirname "$0")/.."

# stage:seconds at most. autotune compiles for minutes; in a whole run it gets what is left.
STAGES="build:100 tests:130 sanitize:40 ops:70 training:75 inference:50 profile:25 latency:40 autotune:300"
TOTAL=${TOTAL:-530}
[ "${1:-}" = --self-test ] && OUT=${OUT:-build/self-test} # no results of a machine
OUT=${OUT:-bench/results}
PYTHON=${PYTHON:-python3}
DEVICE=cuda TINY="" TRIAL=0
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$PWD/build/inductor}
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$PWD/build/triton} # kept between runs on one machine

build() {
  $PYTHON -c "import torch, triton; print('torch', torch.__version__, 'triton', triton.__version__)"
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
  cmake -S . -B build/gpu -G Ninja -DCCT_PYTHON="$(command -v "$PYTHON")" -DCCT_CUDA=1 && cmake --build build/gpu &&
    $PYTHON -m cct_kernels
}

tests() { # all dtypes, all cases; in several processes, as nearly all of the time goes into compiling kernels
  local shards=${SHARDS:-12} failed=0 code i pids=() logs=$PWD/build/gpu-tests
  mkdir -p "$logs"
  for ((i = 0; i < shards; i++)); do
    CCT_TEST_SHARD=$i/$shards OMP_NUM_THREADS=1 timeout $((LIMIT - 5)) "$PYTHON" -m pytest -q -rf -p no:cacheprovider \
      ${TESTS:-tests/test_gpu.py tests/test_graphed.py tests/test_warmup.py tests/test_training_graph.py tests/test_seqpool.py \
      tests/test_device_guard.py} -k "not instruction_set" >"$logs/$i.log" 2>&1 &
    pids+=($!)
  done
  for ((i = 0; i < shards; i++)); do
    wait "${pids[i]}"
    code=$?
    if [ $code -ne 0 ] && [ $code -ne 5 ]; then # 5: no test in this share
      failed=1
      [ $code -eq 124 ] && echo "share $i: out of time"
      grep -E "^(FAILED|ERROR|E  )" "$logs/$i.log" | head -n 40
    fi
    tail -n 1 "$logs/$i.log"
  done
  return $failed
}

sanitize() { # the tests before have compiled these kernels: compiling under the sanitizer would take its time
  local tool=${COMPUTE_SANITIZER:-$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)} failed=0 code
  [ -x "$tool" ] || { echo "compute-sanitizer is not here: left out"; return 0; }
  set -o pipefail
  for check in memcheck racecheck; do
    echo "-- $check"
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout $((LIMIT / 2)) "$tool" --tool "$check" --target-processes all --error-exitcode 9 \
      "$PYTHON" -m bench.gpu_small --seconds $((LIMIT / 2 - 15)) | tail -n 25
    code=$?
    [ $code -eq 124 ] && echo "$check: out of time"
    case $code in 0 | 124) ;; *) failed=1 ;; esac
  done
  return $failed
}

# shellcheck disable=SC2086
rows() { $PYTHON -m bench.gpu_rows "$1" --device $DEVICE --out "$OUT" $TINY; }
ops() { rows ops; }
training() { rows training; }
inference() { rows inference; }
latency() { rows latency; }
autotune() { rows autotune; }
# shellcheck disable=SC2086
profile() { $PYTHON -m bench.gpu_profile --device $DEVICE $TINY; }

self_test() { # what a machine without a GPU can say about this script
  $PYTHON -m bench.gpu_small --device cpu --seconds 5
}

case "${1:-}" in
--self-test)
  shift
  DEVICE=cpu TINY=--tiny TRIAL=1 STAGES="self_test:60 ops:60 training:60 inference:60 profile:60 latency:60"
  ;;
-*) sed -n '2,10p' "$0"; exit 2 ;;
esac
wanted="$*"
[ -n "$wanted" ] || for entry in $STAGES; do wanted+="${entry%:*} "; done
for name in $wanted; do
  case " $STAGES " in *" $name:"*) ;; *) echo "unknown stage $name; there are: $STAGES" >&2; exit 2 ;; esac
done
mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd)
export -f build tests sanitize rows ops training inference latency profile autotune self_test
export PYTHON OUT DEVICE TINY LIMIT

began=$SECONDS report=""
for entry in $STAGES; do
  name=${entry%:*}
  case " $wanted " in *" $name "*) ;; *) continue ;; esac
  variable=$(echo "$name" | tr '[:lower:]' '[:upper:]')
  limit=${!variable:-${entry#*:}} left=$((TOTAL - SECONDS + began))
  [ "$limit" -gt "$left" ] && limit=$left
  if [ "$limit" -lt 3 ]; then
    report+="$name: left out, no time"$'\n'
    continue
  fi
  LIMIT=$limit start=$SECONDS
  echo "==== $name (at most $limit s)"
  timeout --kill-after=5 "$limit" bash -c "$name"
  code=$?
  result=ok
  [ $code -ne 0 ] && result="FAILED (exit $code)"
  [ $code -eq 124 ] && result="out of time"
  report+="$name: $result, $((SECONDS - start)) s"$'\n'
done > >(tee "$OUT/gpu.log") 2>&1

{
  [ $TRIAL = 1 ] || $PYTHON -m bench.gpu_summary --results "$OUT"
  echo "stages:"
  printf '%s' "$report"
} 2>&1 | tee -a "$OUT/gpu.log"
case "$report" in *FAILED* | *"tests: out of time"*) exit 1 ;; esac
