# Sourced by the measurements: builds what they run and hands over to NAME.py beside the script.
# start NAME [ARGUMENT...]
start() {
  local name=$1 target
  shift
  cd "$(dirname "${BASH_SOURCE[0]}")/../.."
  cargo build --release --locked -p cli
  cargo build --release --locked -p tests --example plain_export --example time_writes
  cargo build --release --locked -p export --example serve_memory
  target=$(realpath "${CARGO_TARGET_DIR:-target}")
  exec /usr/bin/python3 "bench/$name.py" --target "$target" "$@"
}
