#!/bin/sh
# What a guest does with its disk. $JOB is one of
#   work      for ever: files that are fsynced, each then announced as `marker N`, beside a load that
#             copies and deletes trees
#   check:N   markers 1..N are there and whole; says `holds N` and how many more there are
# $DATA (default /data) is the directory; $FILES (default /files) a tree to copy. Runs in busybox's
# shell on the root disk, and in bash on a mounted one.
DATA=${DATA:-/data} FILES=${FILES:-/files} LOAD=${LOAD:-/load}

work() {
  (
    n=0
    while :; do
      n=$((n + 1))
      cp -r "$FILES" "$LOAD/$n" 2>/dev/null
      rm -rf "$LOAD/$((n - 1))"
    done
  ) &
  i=0
  while :; do
    i=$((i + 1))
    dd if=/dev/urandom of="$DATA/new" bs=4096 count=$((i % 13 + 1)) 2>/dev/null
    sum=$(md5sum <"$DATA/new" | cut -c1-32)
    mv "$DATA/new" "$DATA/m.$i.$sum"
    # The file, then its name.
    sync "$DATA/m.$i.$sum" && sync "$DATA" && echo "marker $i"
  done
}

check() {
  i=0
  while [ "$i" -lt "$1" ]; do
    i=$((i + 1))
    set -- "$1" "$DATA"/m."$i".*
    [ -e "$2" ] || { echo "marker $i is lost"; exit 1; }
    sum=$(md5sum <"$2" | cut -c1-32)
    [ "$2" = "$DATA/m.$i.$sum" ] || { echo "marker $i is damaged: $2 has $sum"; exit 1; }
  done
  echo "holds $1, of $(ls "$DATA" | grep -c '^m\.')"
}

case $JOB in
  work) work ;;
  check:*) check "${JOB#check:}" && echo "after the crash" >"$DATA/again" && sync "$DATA/again" ;;
  *) echo "job.sh: no job '$JOB'"; exit 2 ;;
esac
