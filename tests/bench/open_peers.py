"""Folders of each foreign format at a real size: how long one takes to open, and how much memory.

    OMP_NUM_THREADS=1 .venv/bin/python tests/bench/open_peers.py --output runs/open_peers.jsonl

The golden folders of tests/formats/conftest.py are written with d_model 2304 and 16,384 latents, 300 MB in
float32, one after the other, and each is opened in a process of its own. A JSON line for each case: bytes of
its files, seconds to open, and by how much the process grew at its peak, in bytes and over those of the
files. Cases in the output file are not run again.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.formats import conftest as golden

D_MODEL, D_SAE = 2304, 16384
OPEN = """
import json, sys, time
from saelens_lite.sae.any_kind import load_any
import numpy, safetensors.torch, torch
torch.load, torch.empty(1)
def of(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before, start = of("VmRSS"), time.perf_counter()
module = load_any(sys.argv[1])
print(json.dumps({"seconds": time.perf_counter() - start, "grew_bytes": of("VmHWM") - before,
                  "parameter_bytes": sum(p.numel() * p.element_size() for p in module.parameters())}))
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path)
    parser.add_argument("--only", nargs="*", help="names of cases")
    args = parser.parse_args()
    there = args.output.read_text().splitlines() if args.output and args.output.exists() else []
    done = {json.loads(line)["case"] for line in there}
    golden.D, golden.N = D_MODEL, D_SAE
    golden.LLAMA |= {"d_model": D_MODEL, "expansion_factor": D_SAE / D_MODEL}
    for name, (form, where, facts, write) in golden.CASES.items():
        if name in done or (args.only and name not in args.only):
            continue
        with tempfile.TemporaryDirectory() as tmp:
            folder = Path(tmp, where or name)
            folder.mkdir(parents=True)
            write(folder, torch.Generator().manual_seed(0))
            held = sum(file.stat().st_size for file in Path(tmp).rglob("*") if file.is_file())
            command = [sys.executable, "-c", OPEN, str(folder / facts.get("file", ""))]
            opened = subprocess.run(command, capture_output=True, text=True)
        line = {"case": name, "format": form, "file_bytes": held}
        if opened.returncode:
            line |= {"error": opened.stderr.strip().splitlines()[-1]}
        else:
            found = json.loads(opened.stdout.splitlines()[-1])
            line |= found | {"grew_over_files": found["grew_bytes"] / held}
        print(json.dumps(line), flush=True)
        if args.output:
            args.output.parent.mkdir(parents=True, exist_ok=True)
            with args.output.open("a") as file:
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
