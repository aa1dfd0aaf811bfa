#!/usr/bin/env bash
# Runs everything that needs a GPU and leaves records, page and logs in one folder; see docs/how-to/gpu.md.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  cat <<'TEXT'
Usage: tools/gpu_evidence.sh collect [--wheels DIR]          on a machine with network
       tools/gpu_evidence.sh install [--wheels DIR]          on the machine with the GPU, no network needed
       tools/gpu_evidence.sh run [PART...] [--out DIR] [--cpu]
       tools/gpu_evidence.sh headline [--out DIR] [--shapes tiny --cpu]
       tools/gpu_evidence.sh parts | status [--out DIR] | pack [--out DIR]

  collect   Download wheels of the locked dependencies, with a CUDA build of torch, into a folder.
  install   Make a virtual environment of those wheels alone (--no-index); --system keeps the torch that
            this machine already has and adds what is missing.
  run       Run parts, or all that have not ended yet. A part ends within nine minutes or is stopped, and
            goes on where it stopped when it is run again. Exit code: 0 if all parts asked for are done,
            1 if one failed, 75 if one ran out of time (run it again).
  headline  What must be known of a GPU, most important first, in eight minutes at most: tests that prove
            numbers, decode and memory of a 7B model, exact evaluation, DDPO by both engines, energy. Each step
            has its own time limit; summary.md and summary.json are written after every step. --shapes tiny
            rehearses the same commands on small models, with --cpu where there is no GPU.
  parts     Print the names of the parts.
  status    Say which parts are done.
  pack      Put the evidence into DIR.tgz, to be taken along: all but artifacts, such as trained weights.

Options:
  --wheels DIR   folder of wheels (default: wheels)
  --venv DIR     environment made by install and used by run (default: .venv-gpu if it exists, else the
                 python on the PATH; $PYTHON overrides both)
  --system       with install: see packages of the system
  --cuda TAG     with collect: a build of torch from PyTorch's own index, e.g. cu130 or cu128 (default: the
                 build on the package index, which is one for CUDA on PyPI)
  --no-torch     with collect: leave torch and what it needs out, for install --system
  --python X.Y   with collect: Python version of the machine with the GPU (default: 3.11)
  --out DIR      where evidence goes (default: gpu-evidence)
  --seconds N    time limit of a part (default: 540)
  --cpu          go through it all on a machine without a GPU: tests and benchmarks for a GPU are skipped,
                 and so are the cells of the suites, each with its reason
TEXT
}

fail() {
  echo "gpu_evidence: $*" >&2
  exit 2
}

# One line a part: name and what it runs. Suites are cut by cells; a suite's parts share one run.
PARTS=(
  tests
  bench-llama-2-7b bench-llama-3-8b bench-smollm2-135m
  bench-ddpo-bf16 bench-ddpo-fp32
  memory-smollm2-135m memory-mistral-7b memory-llama-3-8b memory-llama-2-7b
  ddpo-trl ddpo-native
  policies flow
  page
)

# What headline runs, most important first, and the seconds each may take.
HEADLINE=(headline-tests:150 headline-rates:25 headline-decode:165 headline-exact:90 headline-ddpo:85)
DEADLINE=470 # seconds of all of them together, whatever one of them may still have had

command=${1:-}
[ $# -gt 0 ] && shift
shapes='' wheels=wheels venv='' system='' cuda='' no_torch='' version=3.11 out=gpu-evidence limit=540 cpu=''
asked=()
while [ $# -gt 0 ]; do
  case $1 in
    --wheels | --venv | --cuda | --python | --out | --seconds | --shapes)
      [ $# -gt 1 ] || fail "$1 needs a value"
      case $1 in
        --wheels) wheels=$2 ;; --venv) venv=$2 ;; --cuda) cuda=$2 ;;
        --python) version=$2 ;; --out) out=$2 ;; --seconds) limit=$2 ;; --shapes) shapes=$2 ;;
      esac
      shift 2
      ;;
    --system) system=1 && shift ;;
    --cpu) cpu=1 && shift ;;
    --no-torch) no_torch=1 && shift ;;
    -h | --help) usage && exit 0 ;;
    -*) fail "unknown option $1; see --help" ;;
    *) asked+=("$1") && shift ;;
  esac
done
[[ $limit =~ ^[1-9][0-9]*$ ]] || fail "--seconds should be a number of seconds, not '$limit'"
[ -z "$shapes" ] || [ "$shapes" = tiny ] || fail "--shapes knows 'tiny' only, not '$shapes'"
for part in ${asked[@]+"${asked[@]}"}; do
  [[ " ${PARTS[*]} ${HEADLINE[*]%:*} " == *" $part "* ]] || fail "unknown part '$part'; parts: ${PARTS[*]}"
done

collect() {
  local pip=("${PYTHON:-python3}" -m pip) locked
  mkdir -p "$wheels"
  locked=$(mktemp)
  grep -v '^torch==' constraints.txt >"$locked"
  local target=(--dest "$wheels" --only-binary :all: --python-version "$version" --implementation cp
    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64
    --platform linux_x86_64)
  if [ -z "$no_torch" ]; then
    local torch source=()
    torch=$(grep '^torch==' constraints.txt | cut -d' ' -f1)
    [ -z "$cuda" ] || torch+=+$cuda source=(--extra-index-url "https://download.pytorch.org/whl/$cuda")
    "${pip[@]}" download "${target[@]}" ${source[@]+"${source[@]}"} --constraint "$locked" "$torch"
    if compgen -G "$wheels/torch-*+cpu-*" >/dev/null; then
      fail "this package index has torch for CPUs only; choose a build with --cuda TAG"
    fi
  fi
  # Everything else exactly as locked; what those need is in the lock.
  "${pip[@]}" download "${target[@]}" --no-deps --requirement "$locked"
  "${pip[@]}" download "${target[@]}" --no-deps 'setuptools>=77' wheel
  rm -f "$locked"
  echo "$(find "$wheels" -name '*.whl' | wc -l) wheels, $(du -sh "$wheels" | cut -f1), in $wheels"
}

install() {
  [ -d "$wheels" ] || fail "there is no folder $wheels: make it with 'collect' on a machine with network"
  venv=${venv:-.venv-gpu}
  "${PYTHON:-python3}" -m venv ${system:+--system-site-packages} "$venv"
  local pip=("$venv/bin/python" -m pip install --no-index --find-links "$wheels")
  "${pip[@]}" 'setuptools>=77' wheel
  "${pip[@]}" --no-build-isolation --editable '.[ddpo]' pytest pytest-benchmark pytest-timeout
  "$venv/bin/python" -c 'import torch; print("torch", torch.__version__, "CUDA:", torch.cuda.is_available())'
}

python_of_run() {
  if [ -n "${PYTHON:-}" ]; then
    echo "$PYTHON"
  elif [ -n "$venv" ]; then
    echo "$venv/bin/python"
  elif [ -x .venv-gpu/bin/python ]; then
    echo .venv-gpu/bin/python
  else
    command -v python3
  fi
}

# What a part runs. pytest's exit code 5 (all deselected) would be a mistake of ours and stays a failure.
commands_of() {
  local bench=("$python" -m pytest -o addopts= --benchmark-only -rs -s -p no:cacheprovider)
  local suite=("$python" -m bench run --plain --retry-failed --results "$out/results")
  case $1 in
    tests) "$python" -m pytest tests/gpu -rs -p no:cacheprovider --junit-xml "$out/tests.xml" ;;
    bench-ddpo-bf16) "${bench[@]}" benchmarks/test_ddpo.py -m gpu -k bf16 --benchmark-json "$out/$1.json" ;;
    bench-ddpo-fp32) "${bench[@]}" benchmarks/test_ddpo.py -m gpu -k 'not bf16' --benchmark-json "$out/$1.json" ;;
    bench-*) "${bench[@]}" benchmarks/test_gpu.py -k "${1#bench-}" --benchmark-json "$out/$1.json" ;;
    memory-*) "${suite[@]}" suites/gpu-memory.yaml --only "${1#memory-}*" ;;
    ddpo-trl) "${suite[@]}" suites/gpu-ddpo.yaml --only '* trl *' ;;
    ddpo-native) "${suite[@]}" suites/gpu-ddpo.yaml --only '*compressibility · [0-9]*' ;;
    policies) "${suite[@]}" suites/gpu-policies.yaml ;;
    flow) "${suite[@]}" suites/gpu-flow.yaml ;;
    page) page ;;
    headline-tests) # what proves numbers first; compiling takes the time of all the rest
      "$python" -m pytest tests/gpu/test_gpu_streaming.py tests/gpu/test_gpu_memory.py tests/gpu/test_gpu_ddpo.py \
        tests/gpu/test_gpu_kept.py \
        -k 'not compile' -v -rs -p no:cacheprovider --junit-xml "$out/tests.xml" ;;
    headline-decode) headline_decode ;;
    headline-*) "$python" tools/gpu_headline.py "${1#headline-}" --out "$out" $(headline_shapes) ;;
  esac
}

headline_shapes() {
  [ -z "$cpu" ] || echo --device cpu
  [ -z "$shapes" ] || echo --model random:tiny --pipeline emoji-sd
}

# The suite as it is, or the same suite of small shapes; passes are measured one after the other.
headline_decode() {
  local suite=suites/gpu-headline.yaml
  if [ -n "$shapes" ]; then
    suite=$out/gpu-headline.yaml
    sed -e 's/random:llama-2-7b/random:tiny/' -e 's/1024, 4096, 16384, 32768/64, 128/' -e 's/4+1020/4+28/' \
      -e 's/window 1024/window 32/' -e "s/device: cuda/device: $([ -n "$cpu" ] && echo cpu || echo cuda)/" \
      suites/gpu-headline.yaml >"$suite"
  fi
  "$python" -m bench run "$suite" --plain --retry-failed --results "$out/results"
}

headline() {
  local step name worst=0 code begun=$SECONDS left pace=1
  [ -z "$cpu" ] || pace=4 # a rehearsal shows that it works, not how fast
  grace=5
  check_device
  for step in "${HEADLINE[@]}"; do
    name=${step%:*} code=0 limit=$((pace * ${step#*:})) left=$((pace * DEADLINE - SECONDS + begun))
    [ "$limit" -le "$left" ] || limit=$left
    if [ "$limit" -lt 5 ]; then
      code=75
    else
      run_part "$name" || code=$?
    fi
    [ "$code" -eq 0 ] || unmeasured "$name" "$code"
    [ "$code" -le "$worst" ] || worst=$code
    "$python" tools/gpu_headline.py summary --out "$out"
  done
  cat "$out/summary.md"
  return "$worst"
}

# A step that did not end well says so beside what it measured.
unmeasured() {
  local why="ended with exit code $2; see logs/$1.log"
  [ "$2" -ne 75 ] || why="stopped: its time (or that of all steps) was up"
  printf '{"name": "%s", "value": null, "unit": "", "reason": "%s"}\n' "$1" "$why" >>"$out/$1.jsonl"
}

page() {
  local run
  for run in "$out"/results/gpu-*/*/; do
    [ -s "$run/records.jsonl" ] || continue
    "$python" -m bench report "$run" || [ $? -eq 3 ] # 3: drawn, but nothing was measured
    echo "page: ${run}index.html"
  done
}

# A suite ends with 3 where a cell failed, as one must that does not fit the card, or where nothing was
# measured, as without a GPU. Anywhere else it is a failure.
ended_well() {
  [ "$2" -eq 0 ] && return
  [ "$2" -eq 3 ] || return
  case $1 in
    memory-llama-2-7b) ;;
    memory-* | ddpo-* | policies | flow | headline-decode) [ -n "$cpu" ] ;;
    *) false ;;
  esac
}

run_part() {
  local part=$1 code=0 begun=$SECONDS
  echo "== $part (at most $limit s)"
  # In a process group of its own, so that the time limit reaches everything; INT lets the harness tidy up.
  timeout --signal INT --kill-after "${grace:-30}" "$limit" "$BASH" "$0" _part "$part" "${passed_on[@]}" \
    >>"$out/logs/$part.log" 2>&1 || code=$?
  tail -n 4 "$out/logs/$part.log" | sed 's/^/   /'
  if [ "$code" -eq 124 ] || [ "$code" -eq 137 ] || [ "$code" -eq 130 ]; then
    echo "   $part was stopped after $((SECONDS - begun)) s; run it again to go on"
    return 75
  elif ended_well "$part" "$code"; then
    echo "$code, $((SECONDS - begun)) s, $(date -u +%FT%TZ)" >"$out/done/$part"
  else
    echo "   $part failed with exit code $code; see $out/logs/$part.log"
    return 1
  fi
}

check_device() {
  if [ -z "$cpu" ]; then
    "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' ||
      fail "torch of $python sees no CUDA device; --cpu goes through it all without one"
  fi
  mkdir -p "$out/logs" "$out/done"
  "$python" -m bench doctor --offline >"$out/doctor.txt" 2>&1 || true
  command -v nvidia-smi >/dev/null && nvidia-smi -q >"$out/nvidia-smi.txt" 2>&1
  passed_on=(--out "$out" --venv "$venv" ${cpu:+--cpu} ${shapes:+--shapes "$shapes"})
}

run() {
  local todo=("${PARTS[@]}") part worst=0 code
  [ ${#asked[@]} -eq 0 ] || todo=("${asked[@]}")
  check_device
  for part in "${todo[@]}"; do
    if [ ${#asked[@]} -eq 0 ] && [ "$part" != page ] && [ -e "$out/done/$part" ]; then
      echo "== $part is done ($(cat "$out/done/$part"))"
      continue
    fi
    code=0
    run_part "$part" || code=$?
    [ "$code" -le "$worst" ] || worst=$code
  done
  echo "evidence is in $out"
  return "$worst"
}

status() {
  local part
  for part in "${PARTS[@]}"; do
    if [ -e "$out/done/$part" ]; then
      echo "done     $part ($(cat "$out/done/$part"))"
    elif [ -e "$out/logs/$part.log" ]; then
      echo "begun    $part"
    else
      echo "waiting  $part"
    fi
  done
}

pack() {
  [ -d "$out" ] || fail "there is no folder $out: run something first"
  tar --create --gzip --file "${out%/}.tgz" --exclude '*/artifacts' --directory "$out" .
  echo "${out%/}.tgz, $(du -h "${out%/}.tgz" | cut -f1)"
}

python=$(python_of_run)
case $command in
  collect) collect ;;
  install) install ;;
  run) run ;;
  headline) headline ;;
  _part) commands_of "${asked[0]}" ;;
  parts) printf '%s\n' "${PARTS[@]}" ;;
  status) status ;;
  pack) pack ;;
  '' | -h | --help | help) usage ;;
  *) fail "unknown command '$command'; see --help" ;;
esac
