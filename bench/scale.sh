#!/usr/bin/env bash
# 64 disks of 1 TiB in one process, a tenth of each dirty: its memory, the time from kill -9 to
# serving again; and what a 4 KiB write costs by disk size and dirty count. DISKS=4 TIB=0.05 ROUNDS=1
# RUNTIME=1 is a rehearsal.
#
#   scale.sh [--write]    prints the tables; --write puts them into bench/README.md
set -euo pipefail
. "$(dirname "$0")/lib/start.sh"
start scale "$@"
