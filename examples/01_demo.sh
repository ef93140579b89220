#!/usr/bin/env bash
# From nothing to LAMMPS on two ranks: every step is one command. `make demo` runs this; so can you.
# Usage: 01_demo.sh FOLDER
set -euo pipefail
out=${1:?usage: 01_demo.sh FOLDER}
if [ -e "$out" ]; then
  echo "01_demo.sh: $out exists; name a new folder or remove it first" >&2
  exit 2
fi
mkdir -p "$out" && cd "$out"
export OMP_NUM_THREADS=1 # a core each for what runs side by side, and ranks that can be compared
begin=$SECONDS
step() { printf '\n\033[1m[%3d s] %s\033[0m\n' $((SECONDS - begin)) "$*" >&2; "$@"; }

step tfdeploy label -o labels.extxyz

# The model and its baseline of the same budget train side by side.
(tfdeploy train demo --no-streams --data labels.extxyz -o baseline > baseline.txt 2>&1) &
baseline=$!
trap 'kill $baseline 2>/dev/null || true' EXIT
step tfdeploy train demo --data labels.extxyz -o run
wait $baseline
trap - EXIT

step tfdeploy evaluate run/best.ckpt --baseline baseline/best.ckpt -o values.npz
tfdeploy evaluate run/best.ckpt --baseline baseline/best.ckpt --json > errors.json
step tfdeploy export run/best.ckpt -o triforces.pt
step tfdeploy verify triforces.pt --against run/best.ckpt
tfdeploy verify triforces.pt --against run/best.ckpt --json > verify.json
step tfdeploy certify triforces.pt --checkpoint run/best.ckpt --seconds 60 -o certificate.html

step tfdeploy defect triforces.pt --host Si --atoms 1000 --vacancies 2 --defect Si_i --defect Ge_Si:3 \
  --heat 100 --equilibrate 100 --produce 300 --every 10 -o md
cd md
step lmp -in in.defect -var name one -log one.log > one.txt
step mpirun -np 2 lmp -in in.defect -var name two -log two.log > two.txt
cd ..

step tfdeploy report .
printf '\nDone in %d s. Open %s/report.html\n' $((SECONDS - begin)) "$out"
