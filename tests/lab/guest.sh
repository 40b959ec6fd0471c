#!/usr/bin/env bash
# A real Linux guest on a machine without KVM, in seconds: a stock Debian kernel under QEMU's
# emulation. The guest has what the host's kernel may lack: nbd, xfs, dm-flakey, virtio-blk.
#
#   guest.sh setup                      once: emulator, kernel, initramfs, into $LAB
#                                       (default ~/.cache/standin-lab); says nothing is to do fast
#   guest.sh run SCRIPT [QEMU-ARG...]   the host's root (9p, read-only, under a tmpfs overlay) is
#                                       the guest's root, so every tool of the host runs inside;
#                                       runs SCRIPT (a host path) as root and powers off
#   guest.sh boot [QEMU-ARG...]         the first virtio disk is the guest's root: mounts /dev/vda
#                                       (ROOT_FS, ext4) and runs its /job with $JOB in the
#                                       environment
#
# Exits with the script's (the job's) status, its output on stdout as it comes.
# The host's loopback is 10.0.2.2 in the guest. GUEST_TIMEOUT (s, 600), GUEST_MEM (MiB, 1024),
# GUEST_RW=DIR (run: a host folder, writable at /rw). SIGTERM to this script ends the guest.
set -euo pipefail
LAB=${LAB:-${XDG_CACHE_HOME:-$HOME/.cache}/standin-lab}

apt_install() {
  DEBIAN_FRONTEND=noninteractive apt-get -q -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 \
    install -y --no-install-recommends "$@" </dev/null
}

# The emulator must come from where qemu-utils came from: they share files.
emulator() {
  command -v qemu-system-x86_64 >/dev/null && return
  apt-get update -q
  if ! dpkg-query -W -f '${Version}' qemu-utils 2>/dev/null | grep -q bpo; then
    apt_install qemu-system-x86 qemu-block-extra qemu-utils
    return
  fi
  local code uri opts
  code=$(. /etc/os-release; echo "$VERSION_CODENAME")
  uri=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources} 2>/dev/null |
    sed -n 's/^URIs: //p; s/^deb \(\[[^]]*\] \)\?\([^ ]*\) .*/\2/p' |
    grep -v security | head -n 1 || true)
  mkdir -p "$LAB/apt/lists/partial"
  for suite in "$code" "$code-backports"; do
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri $suite main"
  done >"$LAB/apt/src.list"
  opts=(-oDir::Etc::sourcelist="$LAB/apt/src.list" -oDir::Etc::sourceparts=-
    -oDir::State::lists="$LAB/apt/lists")
  apt-get "${opts[@]}" update -q
  apt_install "${opts[@]}" -t "$code-backports" qemu-system-x86 qemu-block-extra
}

# The newest kernel of the distribution, unpacked, never installed.
kernel() {
  local pkg
  newest() {
    apt-cache depends linux-image-amd64 2>/dev/null |
      sed -n 's/.*Depends: \(linux-image-[0-9].*-amd64\)$/\1/p' | head -n 1
  }
  if [ -e "$LAB/kernel/done" ]; then return; fi
  pkg=$(newest)
  [ -n "$pkg" ] || { apt-get update -q; pkg=$(newest); }
  [ -n "$pkg" ] || { echo "guest.sh: apt knows no linux-image-amd64" >&2; exit 1; }
  rm -rf "$LAB/kernel"; mkdir -p "$LAB/kernel"
  # The package of yesterday's list may be gone from the mirror today.
  (cd "$LAB/kernel" && { apt-get download -q "$pkg" || { apt-get update -q && apt-get download -q "$pkg"; }; })
  (cd "$LAB/kernel" && dpkg -x ./*.deb . && rm ./*.deb)
  depmod -b "$LAB/kernel" "$(ls "$LAB/kernel/lib/modules")"
  echo "$pkg" >"$LAB/kernel/done"
}

# Modules are numbered in the order of insertion.
initramfs() {
  local k i=100 m verb path
  k=$(ls "$LAB/kernel/lib/modules")
  rm -rf "$LAB/ird"
  mkdir -p "$LAB"/ird/{bin,lib/modules,host,ov,newroot,proc,sys,dev}
  cp "$(command -v busybox)" "$LAB/ird/bin/busybox"
  for m in virtio_pci virtio_blk 9pnet_virtio 9p overlay virtio_net ext4 xfs; do
    while read -r verb path _; do
      [ "$verb" = insmod ] || continue
      compgen -G "$LAB/ird/lib/modules/*-$(basename "$path")" >/dev/null && continue
      cp "$path" "$LAB/ird/lib/modules/$i-$(basename "$path")"
      i=$((i + 1))
    done < <(modprobe -S "$k" -d "$LAB/kernel" -D "$m" 2>/dev/null || true)
  done
  cat >"$LAB/ird/init" <<'INIT'
#!/bin/busybox sh
B=/bin/busybox
arg() { $B sed -n "s/.* $1=\([^ ]*\).*/\1/p" /proc/cmdline; }
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
$B mount -t proc proc /proc; $B mount -t sysfs sysfs /sys; $B mount -t devtmpfs dev /dev
for m in /lib/modules/*; do $B insmod $m 2>/dev/null; done
$B ifconfig lo 127.0.0.1 up
$B ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up 2>/dev/null && $B route add default gw 10.0.2.2
fs=$(arg rootfs)
if [ -n "$fs" ]; then
  # The lazy way to see that the disk has come up: it is there at once, or within a second.
  for i in 1 2 3 4 5 6 7 8 9 10; do [ -b /dev/vda ] && break; $B usleep 100000; done
  $B mount -t $fs /dev/vda /newroot || echo "guest: cannot mount the root disk"
  for d in proc sys dev; do $B mount --bind /$d /newroot/$d; done
  echo "guest: up, $($B uname -r), root on $fs, after $($B cut -d' ' -f1 /proc/uptime) s"
  JOB=$(arg job) PATH=$PATH $B chroot /newroot /bin/sh /job
  echo "guest: status $?"
  $B sync; $B mount -o remount,ro /newroot 2>/dev/null
else
  $B mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,ro,cache=loose hostroot /host || echo "guest: no 9p root"
  $B mount -t tmpfs tmpfs /ov; $B mkdir -p /ov/u /ov/w
  $B mount -t overlay -o lowerdir=/host,upperdir=/ov/u,workdir=/ov/w overlay /newroot || echo "guest: no overlay"
  for d in proc sys dev; do $B mount --bind /$d /newroot/$d; done
  $B mount -t tmpfs tmpfs /newroot/run; $B mount -t tmpfs tmpfs /newroot/mnt; $B mkdir -p /newroot/rw /newroot/dev/shm
  $B mkdir -p /newroot/lib/modules; $B mount --bind /newroot$(arg lab)/kernel/lib/modules /newroot/lib/modules
  $B mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 rw /newroot/rw 2>/dev/null
  echo "guest: up, $($B uname -r), after $($B cut -d' ' -f1 /proc/uptime) s"
  PATH=$PATH $B chroot /newroot /bin/bash $(arg guestscript)
  echo "guest: status $?"
fi
$B poweroff -f
INIT
  chmod +x "$LAB/ird/init"
  (cd "$LAB/ird" && find . | cpio -o -H newc --quiet | gzip -1) >"$LAB/ird.gz.new"
  # Named after this script's content: a changed script makes its initramfs anew.
  mv "$LAB/ird.gz.new" "$LAB/ird-$(stamp).gz"
}

stamp() { cksum <"${BASH_SOURCE[0]}" | cut -d' ' -f1; }

setup() {
  mkdir -p "$LAB"
  if [ -e "$LAB/ird-$(stamp).gz" ] && [ -e "$LAB/kernel/done" ] && command -v qemu-system-x86_64 >/dev/null; then
    echo "guest lab: ready, $(cat "$LAB/kernel/done")"
    return
  fi
  if ! { command -v busybox && command -v depmod && command -v cpio; } >/dev/null; then
    apt-get update -q
    apt_install busybox-static kmod cpio
  fi
  emulator
  kernel
  initramfs
  echo "guest lab: made in $LAB, $(cat "$LAB/kernel/done")"
}

qemu() { # KERNEL-ARGS QEMU-ARG...
  local append=$1 k log status pid
  shift
  k=$(ls "$LAB/kernel/lib/modules")
  log=$(mktemp)
  timeout --foreground "${GUEST_TIMEOUT:-600}" qemu-system-x86_64 -accel tcg,thread=multi -M q35 -cpu max -smp 1 \
    -m "${GUEST_MEM:-1024}" -display none -nodefaults -no-reboot -serial stdio \
    -kernel "$LAB/kernel/boot/vmlinuz-$k" -initrd "$LAB/ird-$(stamp).gz" \
    -netdev user,id=n0 -device virtio-net-pci,netdev=n0 "$@" \
    -append "console=ttyS0 quiet panic=-1 mitigations=off $append" </dev/null \
    > >(stdbuf -o0 tr -d '\r' | tee "$log") &
  pid=$!
  # Expanded now: the locals are gone when the trap runs.
  trap "kill $pid 2>/dev/null || true; rm -f '$log'" EXIT
  trap 'exit 143' TERM INT HUP
  wait "$pid" || true
  wait # for tee's last line
  status=$(sed -n 's/^guest: status \([0-9]*\)$/\1/p' "$log" | tail -n 1)
  exit "${status:-124}"
}

run() {
  local script rw=()
  script=$(readlink -f "$1")
  shift
  [ -e "$LAB/ird-$(stamp).gz" ] || setup >&2
  [ -n "${GUEST_RW:-}" ] && rw=(-virtfs "local,path=$GUEST_RW,mount_tag=rw,security_model=none")
  qemu "lab=$LAB guestscript=$script" \
    -virtfs local,path=/,mount_tag=hostroot,security_model=none,readonly=on,multidevs=remap \
    "${rw[@]}" "$@"
}

boot() {
  [ -e "$LAB/ird-$(stamp).gz" ] || setup >&2
  qemu "rootfs=${ROOT_FS:-ext4} job=${JOB:-}" "$@"
}

case "${1:-}" in
  setup) setup ;;
  run) shift; run "$@" ;;
  boot) shift; boot "$@" ;;
  *) sed -n '2,21p' "$0" | sed 's/^# \?//'; exit 2 ;;
esac
