#!/usr/bin/env bash
# Installs what `make test` needs and is not there: Debian packages (build tools and the foreign
# peers), cargo tools, the guest lab. Needs root on Debian. Running it again costs a second.
#
#   setup.sh [build|all]    build: only what compiles the project; all (default): peers too
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-all}

build=(build-essential pkg-config libssl-dev clang e2fsprogs)
peers=(
  nbdkit libnbd-bin python3-libnbd nbd-client   # NBD servers and clients that we did not write
  qemu-utils fio
  libfaketime                                   # real time that jumps
  gnutls-bin                                    # certtool, psktool: keys for the TLS tests
  e2fsprogs xfsprogs busybox-static             # guests' disks
  kmod cpio python3 util-linux
  valgrind                                      # counts instructions: bench/instructions.sh
  python3-venv curl jq                          # the API's fuzzing: tests/schemathesis.sh
)
packages=("${build[@]}")
[ "$what" = all ] && packages+=("${peers[@]}")

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok' || missing+=("$package")
done
if [ "${#missing[@]}" -gt 0 ]; then
  echo "setup: apt-get install ${missing[*]}"
  apt-get update -q
  DEBIAN_FRONTEND=noninteractive apt-get -q -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 \
    install -y --no-install-recommends "${missing[@]}" </dev/null
fi
[ "$what" = all ] || exit 0

# cargo_tool BINARY CRATE VERSION. The versions are those the scripts were tried with.
cargo_tool() {
  command -v "$1" >/dev/null && return
  echo "setup: cargo install $2 $3"
  env -u CARGO_TARGET_DIR cargo install --locked --quiet "$2" --version "$3" </dev/null
}
cargo_tool cargo-nextest cargo-nextest 0.9.143
cargo_tool cargo-fuzz cargo-fuzz 0.13.2
cargo_tool fsx fsx 0.3.2

# Loop mounts (images for tests and benches) need the nodes; a fresh container may lack them.
for n in 0 1 2 3 4 5 6 7; do
  [ -b "/dev/loop$n" ] || mknod "/dev/loop$n" b 7 "$n" 2>/dev/null || true
done

bash tests/lab/guest.sh setup

# A missing peer is a failure, never a skipped test.
lost=()
for tool in nbdkit nbdinfo nbdcopy nbdfuse losetup nbd-client qemu-nbd qemu-img qemu-io qemu-system-x86_64 fio \
  certtool psktool mkfs.ext4 e2fsck debugfs mkfs.xfs xfs_repair busybox fsx valgrind \
  qemu-storage-daemon; do
  command -v "$tool" >/dev/null || lost+=("$tool")
done
/usr/bin/python3 -c 'import nbd' 2>/dev/null || lost+=("python3-libnbd")
if [ "${#lost[@]}" -gt 0 ]; then
  echo "setup: still missing: ${lost[*]}" >&2
  exit 1
fi
