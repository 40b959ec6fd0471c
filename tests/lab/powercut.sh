#!/bin/bash
# Inside a guest: cuts the power of a protected disk, again and again. /dev/vda is production, /dev/vdb
# holds state and diffs (ext4); both lie behind dm-flakey. A cut of power: both devices are
# frozen at one instant and drop every write from then on, the process is killed, and what the caches hold is
# thrown away. The target is another machine: it keeps its power.
#
# After each: what a flush acknowledged is on production, tracking goes on from the intent log, and the next
# point is production, byte for byte. Environment: STANDIN (binary), CUTS, SEED.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
prod=/dev/mapper/prod state=/mnt/state target=dir:/mnt/target socket=/mnt/nbd.sock ledger=/mnt/ledger
RANDOM=$((SEED % 32768))
say() { echo "powercut: $*"; }
fail() { say "FAILED: $*"; tail -n 30 /mnt/log; exit 1; }

modprobe dm-flakey; modprobe ext4; modprobe xfs
table() { # NAME DEVICE up|down
  local feature=""
  # Up for ever, or down for ever: drop_writes, with reads served.
  if [ "$3" = up ]; then feature="4294967 0"; else feature="0 4294967 1 drop_writes"; fi
  echo "0 $(blockdev --getsz "$2") flakey $2 0 $feature"
}
freeze() { # both at one instant
  dmsetup suspend --noflush --nolockfs prod
  dmsetup suspend --noflush --nolockfs state
}
thaw() { # up|down
  table prod /dev/vda "$1" | dmsetup reload prod
  table state /dev/vdb "$1" | dmsetup reload state
  dmsetup resume prod
  dmsetup resume state
}

# A machine that starts anew has another name for this run, and a clock of its own since it started.
boot=0
new_boot() {
  boot=$((boot + 1))
  umount /proc/sys/kernel/random/boot_id 2>/dev/null || true
  echo "boot-$boot" >/mnt/boot_id
  mount --bind /mnt/boot_id /proc/sys/kernel/random/boot_id
}

protect() {
  local since=-$(cut -d. -f1 /proc/uptime)
  unshare --time --boottime "$since" --fork --kill-child "$STANDIN" protect $prod --target $target \
    --listen unix:$socket --every 500ms --state $state/s >/mnt/log 2>&1 &
  starter=$!
  for _ in $(seq 600); do [ -S $socket ] && "$STANDIN" status --state $state/s >/dev/null 2>&1 && break; sleep 0.1; done
  server=$(pgrep -P $starter || true)
  [ -n "$server" ] || fail "standin does not run"
}

# The killed process is nobody's child that could be waited for, and its threads die one by one: the last
# one lets go of the file system.
unmount_state() {
  for _ in $(seq 100); do umount $state 2>/mnt/said && return; sleep 0.1; done
  fail "$(cat /mnt/said)"
}

table prod /dev/vda up | dmsetup create prod
table state /dev/vdb up | dmsetup create state
dmsetup mknodes # nobody else here makes them
mkdir -p $state /mnt/target
mkfs.ext4 -q -F /dev/mapper/state
mount /dev/mapper/state $state
new_boot
: >$ledger
recovered=0
say "ready"
for cut in $(seq "$CUTS"); do
  rm -f $socket
  protect
  grep -q "tracking begins anew" /mnt/log && fail "cut $cut: the disks were copied anew"
  if grep -q "from the intent log" /mnt/log; then recovered=$((recovered + 1)); fi
  "$STANDIN" cut prod --state $state/s --wait >/mnt/point || fail "cut $cut: no point"
  export URI="nbd+unix:///prod?socket=$socket"
  /usr/bin/python3 "$here/powercut.py" write "$URI" $ledger "$cut" >/mnt/wrote 2>&1 &
  writer=$!
  for _ in $(seq 600); do [ -s /mnt/wrote ] && break; sleep 0.1; done
  sleep "$((RANDOM % 3)).$((RANDOM % 10))"
  freeze
  # First the guest: what is acknowledged later is acknowledged to nobody.
  kill -9 "$writer" || fail "cut $cut: the writer ended: $(cat /mnt/wrote)"
  wait "$writer" 2>/dev/null || true
  thaw down
  kill -9 "$server" "$starter" 2>/dev/null || true
  wait "$starter" 2>/dev/null || true
  unmount_state
  blockdev --flushbufs $prod
  blockdev --flushbufs /dev/mapper/state
  freeze
  thaw up
  mount /dev/mapper/state $state
  new_boot
  /usr/bin/python3 "$here/powercut.py" check $prod $ledger >/mnt/checked || fail "cut $cut: $(cat /mnt/checked)"

  # The next point is production: nobody writes meanwhile.
  rm -f $socket
  protect
  grep -q "tracking begins anew" /mnt/log && fail "cut $cut: the disks were copied anew"
  grep -q "from the intent log" /mnt/log || fail "cut $cut: the intent log was not used"
  recovered=$((recovered + 1))
  stale=$(sed -n 's/.*stale_bytes=\([0-9]*\).*/\1/p' /mnt/log | head -n 1)
  point=$("$STANDIN" cut prod --state $state/s --wait | tail -n 1 | sed 's/.* //')
  rm -f /mnt/restored
  "$STANDIN" restore "$point" --target $target --output /mnt/restored --sparse >/mnt/said 2>&1 || fail "cut $cut: restore: $(cat /mnt/said)"
  cmp $prod /mnt/restored || fail "cut $cut: $point is not production"
  rm -f /mnt/restored
  say "cut $cut: $(cat /mnt/checked), re-read ${stale:-0}, $point exact"
  # Now and then an orderly end in between.
  if [ $((RANDOM % 4)) = 0 ]; then kill -TERM "$server"; else kill -9 "$server" "$starter" 2>/dev/null || true; fi
  wait "$starter" 2>/dev/null || true
done
# All points would take long under emulation: some from all over the history.
newest=${point#prod@} verified=0
for number in $(seq 1 $((newest / 15 + 1)) "$newest"); do
  "$STANDIN" point verify "prod@$number" --target $target >/mnt/said 2>&1 || fail "verify: $(tail -n 5 /mnt/said)"
  verified=$((verified + 1))
done
say "done: $CUTS cuts of power, $recovered recoveries, $verified of $newest points verified"
