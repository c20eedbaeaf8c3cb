#!/usr/bin/env bash
# The first quarter of an hour on a GPU: what tells most a second comes first, and every row is written when it is known.
#   OUT=folder bash benchmarks/gpu_first.sh                     all parts, nine minutes at most
#   OUT=folder bash benchmarks/gpu_first.sh build smoke ops     these parts, in the order of the script
#
#   OUT                     folder for rows.jsonl, table.md, parts.log and the logs
#   PYTHON                  with torch, pytest and so on (python3)
#   GPU_FIRST_SKIP_BUILD    1 takes libraries that are there and run on the GPU, whatever their age
#   GPU_FIRST_SECONDS       for the whole script (555)
#   GPU_FIRST_STRETCH       a whole factor for the limits of the parts, where a machine is slow (1)
#   GPU_FIRST_JOBS          processes for the tests of the kernels, where there is pytest-xdist (8)
#   GPU_FIRST_DEVICE        cpu runs small sizes without a GPU, to try the script; parts that need one are skipped
#
# A part that fails or runs out of time does not stop the others, but for the build. Exit status 1 if one did, or a row says
# so; 2 if a part or a factor is misspelt, before anything runs.
set -uo pipefail
: "${OUT:?set OUT to a folder}"
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
cd "$(dirname "$0")/.."
export OUT PYTHON=${PYTHON:-python3} GPU_FIRST_DEVICE=${GPU_FIRST_DEVICE:-cuda} PYTHONUNBUFFERED=1
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
SKIPPED=77 # exit status of a part that this machine cannot run
FAILED= # names of parts
ALL="facts build smoke launch ops sharpness loop hvp points sanitize kernels ncu table"
PARTS=" ${*:-$ALL} "
for name in $PARTS; do
  [[ " $ALL " == *" $name "* ]] || { echo "there is no part $name: choose some of $ALL" >&2 && exit 2; }
done
[[ ${GPU_FIRST_STRETCH:-1} =~ ^[1-9][0-9]*$ ]] || { echo "GPU_FIRST_STRETCH must be a whole number, got $GPU_FIRST_STRETCH" >&2 && exit 2; }

# part NAME SECONDS LOG COMMAND...: runs it if it was asked for and there is time; notes its seconds and exit status.
part() {
  local name=$1 limit=$(($2 * ${GPU_FIRST_STRETCH:-1})) log=$OUT/$3 began=$SECONDS left status
  shift 3
  [[ $PARTS == *" $name "* ]] || return 0
  left=$((${GPU_FIRST_SECONDS:-555} - SECONDS))
  [ "$limit" -gt "$left" ] && limit=$left
  if [ "$limit" -lt 8 ]; then
    echo "$name: no time left" | tee -a "$OUT/parts.log"
    FAILED+=" $name"
    return 0
  fi
  echo "== $name (at most $limit s)" >>"$log"
  timeout -k 5 "$limit" "$@" >>"$log" 2>&1
  status=$?
  if [ "$status" -eq "$SKIPPED" ]; then
    echo "$name: skipped: $(tail -n 1 "$log")" | tee -a "$OUT/parts.log"
    return 0
  fi
  [ "$status" -eq 0 ] || FAILED+=" $name"
  echo "$name: rc $status in $((SECONDS - began)) s (limit $limit), at $SECONDS s" | tee -a "$OUT/parts.log"
}

# A part that is a function of this script, in a shell of its own, which can be ended.
run() {
  set -o pipefail
  "$@"
}

needs_gpu() {
  [ "$GPU_FIRST_DEVICE" = cuda ] || { echo "needs a GPU" && exit "$SKIPPED"; }
}

facts() {
  date
  nvidia-smi
  nproc
  free -g | head -2
  $PYTHON -VV
  which "$PYTHON" nvcc c++ ninja compute-sanitizer ncu
  nvcc --version | tail -2
  c++ --version | head -1
  $PYTHON -m pip list 2>/dev/null | grep -i -E '^(torch|triton|numpy|scipy|setuptools|pip|pybind11|ninja|pytest|pytest-[a-z]*|hypothesis|safetensors|typer|rich|matplotlib|jinja2|optuna|plotly|psycopg|pytorch.optimizer) '
  true
}

build() {
  needs_gpu
  local options=()
  [ "${GPU_FIRST_SKIP_BUILD:-0}" = 1 ] && options=(--as-is)
  time $PYTHON tools/build_for_gpu.py "${options[@]}"
}

# Warnings are shown and are no errors: another torch and another Python have others. A test that hangs is ended.
tests() {
  needs_gpu
  local options=(-q -p no:cacheprovider -W default -rfE --tb=short --durations=5)
  $PYTHON -c 'import pytest_timeout' 2>/dev/null && options+=(--timeout 60)
  $PYTHON -m pytest "${options[@]}" "$@" 2>&1 | cut -c1-400
}

# The thousands of tests of the kernels.
kernels() {
  local options=()
  $PYTHON -c 'import xdist' 2>/dev/null && options=(-n "${GPU_FIRST_JOBS:-8}")
  tests "${options[@]}" tests/gpu/test_*_kernels.py
}

# Without torch's pool of memory every tensor is an allocation of its own, so that no access beyond one goes unseen.
sanitize() {
  needs_gpu
  local tool status=0
  tool=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer /usr/local/cuda*/compute-sanitizer/compute-sanitizer 2>/dev/null | head -1)
  [ -n "$tool" ] || { echo "there is no compute-sanitizer" && exit "$SKIPPED"; }
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout 45 "$tool" --tool memcheck --error-exitcode 9 $PYTHON -m benchmarks.gpu_first.smoke ops || status=$?
  echo "memcheck: rc $status"
  timeout 45 "$tool" --tool racecheck --error-exitcode 9 $PYTHON -m benchmarks.gpu_first.smoke ops || { status=$? && echo "racecheck: rc $status"; }
  return "$status"
}

counters() {
  needs_gpu
  local tool
  tool=$(command -v ncu || ls /usr/local/cuda*/bin/ncu 2>/dev/null | head -1)
  [ -n "$tool" ] || { echo "there is no ncu" && exit "$SKIPPED"; }
  "$tool" --clock-control none --csv --page raw \
    --metrics gpu__time_duration.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed,dram__bytes.sum,sm__warps_active.avg.pct_of_peak_sustained_active,sm__throughput.avg.pct_of_peak_sustained_elapsed,launch__registers_per_thread,launch__grid_size,launch__occupancy_limit_registers \
    -k 'regex:map_kernel|append_kernel|gram_kernel|fill_kernel|walk_kernel|add_tables|combine_kernel|blend_kernel|chain_kernel|xent_kernel|each_kernel|affine_kernel|softmax_kernel|gather_kernel|scatter_kernel|apply_kernel|project_kernel|fold_kernel' \
    $PYTHON -m benchmarks.gpu_first.ops once
}
export SKIPPED
export -f run needs_gpu facts build tests kernels sanitize counters

part facts 20 setup.log bash -c 'run facts'
part build 170 setup.log bash -c 'run build'
[[ "$FAILED " == *" build "* ]] && {
  echo "the build failed: without it the other parts say nothing" | tee -a "$OUT/parts.log"
  exit 1
}
part smoke 60 bench.log "$PYTHON" -m benchmarks.gpu_first.smoke
part launch 60 tests.log bash -c 'run tests tests/gpu/test_launch.py'
part ops 100 bench.log "$PYTHON" -m benchmarks.gpu_first.ops
part sharpness 60 bench.log "$PYTHON" -m benchmarks.gpu_first.sharpness
part loop 90 tests.log bash -c 'run tests tests/gpu/test_loop.py tests/gpu/test_measures.py'
part hvp 60 bench.log "$PYTHON" -m benchmarks.gpu_first.hvp
part points 45 bench.log "$PYTHON" -m benchmarks.gpu_first.points
part sanitize 95 sanitize.log bash -c 'run sanitize'
part kernels 90 tests.log bash -c 'run kernels'
part ncu 45 ncu.log bash -c 'run counters'
[[ $PARTS != *" table "* ]] || timeout 15 "$PYTHON" -m benchmarks.gpu_first.table || FAILED+=" table"
grep -hE '^(FAILED|ERROR)|passed|failed' "$OUT/tests.log" 2>/dev/null | cut -c1-180 | tail -n 40
grep -hE 'ERROR SUMMARY|RACECHECK SUMMARY|rc ' "$OUT/sanitize.log" 2>/dev/null
[ -z "$FAILED" ]
