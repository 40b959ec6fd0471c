#!/usr/bin/env bash
# How long guests' writes wait in a cut, at full 4 KiB load, for 1 disk and for a group of 16: as the
# writes see it (each one is timed) and as the splitter reports it. Takes about three minutes;
# CUTS=20 makes it a rehearsal.
#
#   cut_pause.sh [--write]    prints the table; --write puts it into bench/README.md
set -euo pipefail
. "$(dirname "$0")/lib/start.sh"
start cut_pause "$@"
