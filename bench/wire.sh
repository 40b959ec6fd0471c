#!/usr/bin/env bash
# What a server between costs: import and restore of one image through `standin target serve` over TLS on the loopback,
# beside the same in one process, in turn. SIZE=256 (MiB) and ROUNDS=1 are a rehearsal; IMAGE=PATH takes an image of yours.
# STANDIN_BINARY=PATH measures another build of standin. CORES=apart gives server and client a core each, and one process one
# core: as two machines would have them; without it server and client share what one process has for itself.
#
#   wire.sh    prints seconds: round, what, through the server, in one process
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${STANDIN_BINARY:-}" ]; then
  cargo build --release --locked -p cli
  STANDIN_BINARY=${CARGO_TARGET_DIR:-target}/release/standin
fi
standin=$(realpath "$STANDIN_BINARY")
place=$(mktemp -d "${TMPDIR:-/var/tmp}/standin-wire.XXXXXX")
server=
finish() {
  [ -z "$server" ] || kill "$server" 2>/dev/null || true
  rm -rf "$place"
}
trap finish EXIT
cd "$place"

# A step, far and near: its name, then what it is.
row() {
  local far=(--target "$url/$vault") near=(--target "dir:near$round") through alone
  case $2 in
    import) far+=(--group g --token-file ship) near+=(--group g) ;;
    *) far+=(--token-file restore --output far.raw) near+=(--output near.raw) ;;
  esac
  # By themselves: in an argument of echo a failure would not be noticed.
  through=$(timed "$standin" "${@:2}" "${far[@]}")
  alone=$(timed "$standin" "${@:2}" "${near[@]}")
  echo "$round $1 $through $alone"
}

image=${IMAGE:-}
if [ -z "$image" ]; then
  # Half of it noise, a quarter text, a quarter holes.
  mib=${SIZE:-2048}
  head -c $((mib << 19)) /dev/urandom > disk.raw
  seq 1 100000000 | head -c $((mib << 18)) >> disk.raw || true
  truncate -s "${mib}M" disk.raw
  image=$place/disk.raw
fi

token() {
  (umask 077 && "$standin" token create --state state --name "$1" --role "$1" > "$1" 2> token.log)
}
pin_client=() pin_server=()
if [ "${CORES:-shared}" = apart ]; then
  pin_client=(taskset -c 0) pin_server=(taskset -c 1)
fi
timed() {
  local began=$EPOCHREALTIME
  "${pin_client[@]}" "$@" > command.log || return
  awk -v a="$began" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.2f", b - a }'
}

port=$((20000 + RANDOM % 20000))
url=https://127.0.0.1:$port
for role in admin ship restore; do token "$role"; done
"${pin_server[@]}" "$standin" target serve --store dir:place --listen "127.0.0.1:$port" --state state > server.log 2>&1 &
server=$!
export STANDIN_CA=$place/state/server.pem
until "$standin" vault list --server "$url" --token-file admin > command.log 2>&1; do
  kill -0 "$server" || { cat server.log >&2; exit 1; }
done

echo "round what through-the-server in-one-process"
for round in $(seq 1 "${ROUNDS:-3}"); do
  vault=v$round
  "$standin" vault create "$vault" --server "$url" --token-file admin > command.log
  row import import "$image"
  row import-again import "$image"
  row restore restore g@1
  cmp far.raw near.raw
  rm far.raw near.raw
done
