#!/usr/bin/env bash
# What protecting costs a guest: protected (with and without cuts) beside our plain export, null
# servers, qemu-nbd, nbdkit and QEMU's three ways to write twice, under the same fio load, in turn.
# Three rounds of 4 s take about 40 minutes; ROUNDS=1 RUNTIME=1 makes it a rehearsal of a few.
# STANDIN_BINARY=PATH measures another build of standin, to compare two.
# CACHE=none measures everybody past the page cache (O_DIRECT).
# SERVERS='plain|protected' and CASES='depth 1' (regular expressions) choose columns and rows.
#
#   cost.sh [--write]    prints the tables; --write puts them into bench/README.md
set -euo pipefail
. "$(dirname "$0")/lib/start.sh"
start cost "$@"
