#!/usr/bin/env python3
"""powercut.py write URI LEDGER SEED | check DISK LEDGER

write  Random writes of stamped 4 KiB blocks over NBD, some with FUA, a flush now and then, until it is
       killed. What a flush has acknowledged goes to LEDGER, which is on no disk that loses power:
       lines `BLOCK NUMBER.`, meaning that the block holds write NUMBER or a later one.
check  Every block of DISK that LEDGER names holds at least what it says.
"""
import random
import struct
import sys

BLOCK = 4096
MAGIC = b"POWERCUT"


def stamp(block, number):
    return (MAGIC + struct.pack("<QQ", block, number)) * 170 + bytes(16)


def write(uri, ledger, seed):
    import nbd

    rng = random.Random(seed)
    h = nbd.NBD()
    h.connect_uri(uri)
    blocks = h.get_size() // BLOCK
    print("connected", flush=True)
    # Numbers grow from one run to the next.
    number = seed << 32
    acked = {}
    with open(ledger, "a", encoding="ascii") as out:
        # Half of the writes go to a quarter MiB, half to an eighth of the disk: the rest stays cold.
        hot = rng.randrange(blocks)
        while True:
            block = (hot + rng.randrange(64 if rng.random() < 0.5 else blocks // 8)) % blocks
            number += 1
            count = min(rng.choice((1, 1, 1, 2, 8)), blocks - block)
            data = b"".join(stamp(b, number) for b in range(block, block + count))
            fua = rng.random() < 0.02
            h.pwrite(data, block * BLOCK, nbd.CMD_FLAG_FUA if fua else 0)
            acked.update((b, number) for b in range(block, block + count))
            if rng.random() < 0.03:
                h.flush()
                out.writelines(f"{b} {n}.\n" for b, n in acked.items())
                acked.clear()
            elif fua:
                out.writelines(f"{b} {number}.\n" for b in range(block, block + count))
            out.flush()


def check(disk, ledger):
    promised = {}
    with open(ledger, encoding="ascii") as lines:
        for line in lines:
            # The writer was killed in the middle of a line.
            if not line.endswith(".\n"):
                continue
            block, number = map(int, line[:-2].split())
            promised[block] = max(number, promised.get(block, 0))
    with open(disk, "rb") as file:
        for block, number in promised.items():
            file.seek(block * BLOCK)
            data = file.read(BLOCK)
            found = struct.unpack("<Q", data[16:24])[0] if data[:8] == MAGIC else -1
            # A later write of it may have come to the disk, or half of it.
            halves = {data[i * 512:(i + 1) * 512] for i in range(8)}
            if found < number and not any(MAGIC in half for half in halves):
                sys.exit(f"block {block} holds {found}, flushed was {number}")
            if found < number and data == stamp(block, found):
                sys.exit(f"block {block} holds write {found}, flushed was {number}")
    print(f"flushed blocks {len(promised)}")


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        check(sys.argv[2], sys.argv[3])
