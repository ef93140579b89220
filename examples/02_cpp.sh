#!/usr/bin/env bash
# The same potential from C++: builds examples/cpp and compares it with Python on silicon.
# Usage: 02_cpp.sh FOLDER, a folder that holds triforces.pt, such as the one that 01_demo.sh leaves.
set -euo pipefail
out=${1:?usage: 02_cpp.sh FOLDER}
if [ ! -f "$out/triforces.pt" ]; then
  echo "02_cpp.sh: $out holds no triforces.pt; run 01_demo.sh $out first" >&2
  exit 2
fi
sources=$(cd "$(dirname "$0")" && pwd)/cpp
cd "$out"
export OMP_NUM_THREADS=1
begin=$SECONDS
step() { printf '\n\033[1m[%3d s] %s\033[0m\n' $((SECONDS - begin)) "$*" >&2; "$@"; }

step bash "$sources/build.sh" ./triforces
step tfdeploy unpack triforces.pt aoti -o model.pt2

# Cutoff and elements, and the counts of a frozen composition, as the program wants them.
facts=$(tfdeploy info triforces.pt --json | python3 -c '
import json, sys
facts = json.load(sys.stdin)["facts"]
elements = [f"{k}:{v}" for k, v in facts["reference"].items()] or facts["elements"]
print(facts["cutoff"], *elements)')

python3 > python.json << 'PYTHON'
import json
from ase.build import bulk
from ase.io import read, write
from triforces_deploy.calculator import TriForcesCalculator
atoms = bulk("Si", "diamond", a=5.43).repeat(3)
atoms.rattle(0.05, seed=1)
write("structure.extxyz", atoms)
atoms = read("structure.extxyz")  # both programs see the digits of the file
atoms.calc = TriForcesCalculator("triforces.pt")
results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces(), "stress": atoms.get_stress(voigt=False)}
print(json.dumps({name: value if name == "energy" else value.tolist() for name, value in results.items()}))
PYTHON
# shellcheck disable=SC2086 # several words are meant
step ./triforces model.pt2 structure.extxyz $facts > cpp.json

python3 << 'PYTHON'
import json
import numpy as np
cpp, python = (json.load(open(f"{name}.json")) for name in ("cpp", "python"))
for name in python:
    ours, theirs = np.array(cpp[name]), np.array(python[name])
    deviation = np.abs(ours - theirs).max() / np.abs(theirs).max()
    print(f"{name:7s} C++ and Python differ by {deviation:.1e} relative")
    assert deviation < 1e-5, "the two programs disagree"
PYTHON
