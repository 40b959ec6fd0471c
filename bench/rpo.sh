#!/usr/bin/env bash
# How old the newest restorable point gets with `--every 1s` under 2,000 random 4 KiB writes a second,
# how large diffs grow, and how much of them the device ever sees. Diffs lie on a loop device of
# their own, so its counter counts nothing else: needs root. MINUTES=10; MINUTES=1 is a rehearsal.
#
#   rpo.sh [--write]    prints the table; --write puts it into bench/README.md
set -euo pipefail
. "$(dirname "$0")/lib/start.sh"
start rpo "$@"
