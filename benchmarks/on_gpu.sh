#!/bin/sh
# Everything that needs a GPU, within 8 minutes: the tests with the marker `gpu`, training, decoding and transcription.
#
#     sh benchmarks/on_gpu.sh [FOLDER]      # FOLDER receives the output of each part; a new one by default
#
# Installs .venv first if there is none (`make install`; that needs a package index, and its time is not counted). The
# last line is one JSON object: what ran, what failed, and the figures. Without a GPU it is {"gpu": null}.
set -u
cd "$(dirname "$0")/.." || exit 1
out=${1:-$(mktemp -d)}
mkdir -p "$out"

if ! nvidia-smi >"$out/nvidia-smi.txt" 2>&1; then
    echo "no GPU: nvidia-smi finds none, so nothing was run" >&2
    echo '{"gpu": null}'
    exit 0
fi

if [ ! -x .venv/bin/python ]; then
    make install >"$out/install.txt" 2>&1 && .venv/bin/pip install --quiet -r requirements/test.txt >>"$out/install.txt" 2>&1
    installed=$?
    if [ $installed -ne 0 ]; then
        tail -n 5 "$out/install.txt" >&2
        echo "{\"gpu\": true, \"ran\": [], \"failed\": [\"install\"], \"skipped\": [\"tests\", \"training\", \"decoding\", \"transcription\"]}"
        exit 1
    fi
fi
bin=.venv/bin
# CTranslate2 needs cuBLAS of CUDA 12, which a PyTorch for a newer CUDA does not bring.
if ! $bin/python -c 'import nvidia.cublas.lib' 2>/dev/null || ! ls .venv/lib/python*/site-packages/nvidia/cublas/lib/libcublas.so.12 >/dev/null 2>&1; then
    $bin/pip install --quiet nvidia-cublas-cu12 >>"$out/install.txt" 2>&1 || echo "nvidia-cublas-cu12 was not installed" >&2
fi

part() { # NAME SECONDS COMMAND...: its output and exit status are files in $out
    name=$1 seconds=$2
    shift 2
    echo "$name (at most $seconds s): $*" >&2
    timeout -k 5 "$seconds" "$@" >"$out/$name.txt" 2>"$out/$name.errors.txt"
    echo $? >"$out/$name.status"
}
part tests 150 $bin/pytest -m gpu -p no:cacheprovider tests/serve/test_gpu.py
part training 110 $bin/python benchmarks/training_speed.py --device cuda --short
part decoding 110 $bin/python benchmarks/decode.py --device cuda
part transcription 90 $bin/python benchmarks/transcription_speed.py --device cuda --minutes 10

$bin/python - "$out" <<'PYTHON'
import json, sys
from pathlib import Path

out = Path(sys.argv[1])
told = {"gpu": True, "torch": None, "ran": [], "failed": {}, "skipped": [], "results": {}}
try:
    import torch
    told["torch"] = torch.__version__
    told["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "not seen by this PyTorch"
except Exception as error:
    told["torch"] = repr(error)
for name in ("tests", "training", "decoding", "transcription"):
    status = int((out / f"{name}.status").read_text())
    lines = (out / f"{name}.txt").read_text(errors="replace").strip().splitlines() or [""]
    errors = (out / f"{name}.errors.txt").read_text(errors="replace").strip().splitlines() or [""]
    told["ran"].append(name)
    if status:
        told["failed"][name] = "timeout" if status in (124, 137) else (errors[-1] or lines[-1])[:500]
    if name == "tests":
        told["results"][name] = lines[-1]
        if "skipped" in lines[-1] and "passed" not in lines[-1]:
            told["skipped"].append(name)
    else:
        try:
            told["results"][name] = json.loads(lines[-1])
        except ValueError:
            pass
print(json.dumps(told))
sys.exit(bool(told["failed"]))
PYTHON
