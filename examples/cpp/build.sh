#!/usr/bin/env bash
# Compiles main.cpp with what the torch and vesin packages of Python bring along. Usage: build.sh PROGRAM
# PYTHON and CXX name another Python or compiler than python3 and g++.
set -euo pipefail
program=${1:?usage: build.sh PROGRAM}
here=$(dirname "$0")
folder_of() { "${PYTHON:-python3}" -c "import importlib.util as u; print(u.find_spec('$1').submodule_search_locations[0])"; }
torch=$(folder_of torch)
vesin=$(folder_of vesin)
# Libraries that torch's own need (CUDA's, where it is built for that) are found when the program starts, not here.
"${CXX:-g++}" -std=c++20 -O1 -Wall -DAT_PER_OPERATOR_HEADERS -isystem "$torch/include" -isystem "$vesin/include" \
  "$here/main.cpp" -o "$program" "$torch/lib/libtorch_cpu.so" "$torch/lib/libc10.so" "$vesin/lib/libvesin.so" \
  -Wl,-rpath,"$torch/lib:$vesin/lib" -Wl,--unresolved-symbols=ignore-in-shared-libs
