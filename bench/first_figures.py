"""The measurements behind bench/first-figures.sh. Everything runs in a temporary directory of $TMPDIR;
each server is started, measured and stopped before the next one, round after round, so that a noisy
minute of the machine hits all of them alike. Shown is the median of the rounds."""

import argparse, os, statistics, subprocess, sys, tempfile, time

from lib import load, report
from lib.servers import MIB, Server, standin

CASES = [  # name, fio arguments, what to show
    ("4 KiB random write, depth 1", "--rw=randwrite --bs=4k --iodepth=1", "iops"),
    ("4 KiB random write, depth 32", "--rw=randwrite --bs=4k --iodepth=32", "iops"),
    ("4 KiB random write, depth 1, flush every 16", "--rw=randwrite --bs=4k --iodepth=1 --fsync=16", "iops"),
    ("4 KiB random read, depth 1", "--rw=randread --bs=4k --iodepth=1", "iops"),
    ("4 KiB random read, depth 32", "--rw=randread --bs=4k --iodepth=32", "iops"),
    ("1 MiB sequential write, depth 8", "--rw=write --bs=1m --iodepth=8", "mbs"),
    ("1 MiB sequential read, depth 8", "--rw=read --bs=1m --iodepth=8", "mbs"),
]


def fio(socket, case, seconds):
    """One fio run; (IOPS or MB/s, 99th percentile in microseconds, operations)."""
    _, arguments, kind = case
    run = load.run(socket, arguments, seconds)
    return run.iops if kind == "iops" else run.mbs, run.p99_us, run.count


def front(args, work):
    """Block front ends: all servers over the same file."""
    disk, socket, log = f"{work}/disk.raw", f"{work}/s.sock", open(f"{work}/log", "ab")
    protect = [args.standin, "protect", disk, "--listen", f"unix:{socket}", "--state", f"{work}/state",
               "--diff-dir", f"{work}/diffs", "--target", f"dir:{work}/target", "--group", "bench"]
    os.makedirs(f"{work}/state"), os.makedirs(f"{work}/diffs")
    servers = {
        "**protected, cut every 5 s**": [*protect, "--every", "5s"],
        "protected, no cuts": [*protect, "--every", "manual"],
        "our plain export": [args.plain, disk, f"unix:{socket}"],
        "qemu-nbd": ["qemu-nbd", "-f", "raw", "-t", "-e", "8", "-x", "disk", "--cache=writeback", "-k", socket, disk],
        "nbdkit file": ["nbdkit", "-f", "-U", socket, "file", disk],
    }
    found = {(server, case[0]): [] for server in servers for case in CASES}
    for round_ in range(args.rounds):
        # A disk with data, in the page cache, the same for everyone; no server's leftovers.
        subprocess.run(f"rm -rf {work}/target {work}/state/* {work}/diffs/*; "
                       f"head -c 1G /dev/urandom >{disk}; sync", shell=True, check=True)
        for server, argv in servers.items():
            with Server(argv, socket, log) as running:
                if "protect" in server:
                    subprocess.run([args.standin, "cut", "bench", "--state", f"{work}/state", "--wait"],
                                   check=True, capture_output=True)
                for case in CASES:
                    before = running.cpu_seconds()
                    value, p99, count = fio(socket, case, args.runtime)
                    cpu = (running.cpu_seconds() - before) / max(count, 1) * 1e6
                    found[server, case[0]].append((value, p99, cpu))
            subprocess.run("sync", check=True)
        print(f"front: round {round_ + 1} of {args.rounds}", file=sys.stderr)
    lines = [f"| | {' | '.join(servers)} |", "|---|" + "---|" * len(servers)]
    for name, _, kind in CASES:
        cells = []
        for server in servers:
            value, p99, cpu = (statistics.median(x) for x in zip(*found[server, name]))
            cells.append(f"{value:,.0f} / {p99:,.0f} / {cpu:,.0f}" if kind == "iops" else f"{value:,.0f} MB/s")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return ["IOPS / 99th percentile in us / server CPU in us per request; MB/s where it says so.", "", *lines]


def pauses(args, work):
    """How long guests wait in a cut, at full load; microseconds."""
    disk, socket, log = f"{work}/disk.raw", f"{work}/s.sock", open(f"{work}/log", "ab")
    protect = [args.standin, "protect", disk, "--listen", f"unix:{socket}", "--state", f"{work}/state",
               "--diff-dir", f"{work}/diffs", "--target", f"dir:{work}/target", "--group", "bench", "--every", "manual"]
    with Server(protect, socket, log):
        standin(args.standin, "cut", "bench", "--state", f"{work}/state", "--wait")
        load = subprocess.Popen(
            ["fio", "--name=x", "--ioengine=nbd", f"--uri=nbd+unix:///disk?socket={socket}", "--size=1g", "--time_based",
             "--runtime=40", "--rw=randwrite", "--bs=4k", "--iodepth=32"], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        time.sleep(2)
        found = []
        while len(found) < 60 and load.poll() is None:
            standin(args.standin, "cut", "bench", "--state", f"{work}/state")
            status = standin(args.standin, "status", "bench", "--state", f"{work}/state")
            found.append(status["groups"][0]["last_cut"]["pause_us"])
            time.sleep(0.2)
        load.kill()
        load.wait()
    found.sort()
    return found


def allocated(path):
    return os.stat(path).st_blocks * 512


def stored(work):
    out = subprocess.run(["du", "-sb", f"{work}/store"], check=True, capture_output=True, text=True)
    return int(out.stdout.split()[0])


def protect_once(args, work, disk, group, change=None):
    """Protects a copy of an image until its first point; then `change`, and a second point."""
    socket, log = f"{work}/{group}.sock", open(f"{work}/log", "ab")
    state, diffs = f"{work}/{group}-state", f"{work}/{group}-diffs"
    os.makedirs(state), os.makedirs(diffs)
    argv = [args.standin, "protect", disk, "--listen", f"unix:{socket}", "--state", state, "--diff-dir", diffs,
            "--target", f"dir:{work}/store", "--group", group, "--every", "manual"]
    figures = {}
    os.system(f"cat {disk} >/dev/null")  # from the page cache, as far as it fits
    began, before = time.monotonic(), stored(work)
    with Server(argv, socket, log) as running:
        standin(args.standin, "cut", group, "--state", state, "--wait")
        figures["seed_s"] = time.monotonic() - began
        figures["seed_cpu_s"] = running.cpu_seconds()
        figures["seed_stored"] = stored(work) - before
        if change:
            figures["changed"] = change(socket)
            before, cpu, began = stored(work), running.cpu_seconds(), time.monotonic()
            standin(args.standin, "cut", group, "--state", state, "--wait")
            figures["ship_s"] = time.monotonic() - began
            figures["ship_cpu_s"] = running.cpu_seconds() - cpu
            figures["ship_stored"] = stored(work) - before
        for line in open(f"/proc/{running.process.pid}/status"):
            if line.startswith("VmHWM"):
                figures["peak_mib"] = int(line.split()[1]) / 1024
    return figures


def write_difference(old, new, socket):
    """Writes to the disk behind `socket`, which holds `old`, what makes it `new`; the bytes written."""
    import nbd
    handle = nbd.NBD()
    handle.set_export_name("disk")
    handle.connect_unix(socket)
    written, a, b = 0, open(old, "rb"), open(new, "rb")
    for at in range(0, os.stat(new).st_size, MIB):
        x, y = a.read(MIB), b.read(MIB)
        if x == y:
            continue
        for i in range(0, len(y), 4096):
            if x[i:i + 4096] != y[i:i + 4096]:
                handle.pwrite(y[i:i + 4096], at + i)
                written += len(y[i:i + 4096])
    handle.flush()
    handle.shutdown()
    return written


def store(args, work):
    """Seed, ship, restore, verify and stored bytes of the three images."""
    os.makedirs(f"{work}/store")
    disk = f"{work}/disk.raw"
    day1, day2, clone = (f"{args.images}/{name}.raw" for name in ("day1", "day2", "clone"))
    subprocess.run(["cp", "--sparse=always", day1, disk], check=True)
    first = protect_once(args, work, disk, "vm", lambda socket: write_difference(day1, day2, socket))
    subprocess.run(["cp", "--sparse=always", clone, disk], check=True)
    other = protect_once(args, work, disk, "clone")
    os.unlink(disk)
    began = time.monotonic()
    subprocess.run([args.standin, "restore", "vm@latest", "--target", f"dir:{work}/store", "--output", disk, "--sparse"],
                   check=True, capture_output=True)
    restore_s = time.monotonic() - began
    exact = subprocess.run(["cmp", disk, day2]).returncode == 0
    began = time.monotonic()
    subprocess.run([args.standin, "point", "verify", "--all", "--target", f"dir:{work}/store"], check=True, capture_output=True)
    verify_s = time.monotonic() - began
    data = allocated(day1)
    rate = lambda size, seconds: f"{size / 1e6 / seconds:,.0f} MB/s"
    return [
        "| step | logical bytes | seconds | rate | CPU seconds | stored on the target |", "|---|---|---|---|---|---|",
        f"| seed of day 1 | {data / MIB:,.0f} MiB of data in 8 GiB | {first['seed_s']:.1f} | {rate(data, first['seed_s'])} "
        f"| {first['seed_cpu_s']:.1f} | {first['seed_stored'] / MIB:,.0f} MiB |",
        f"| ship of day 2 | {first['changed'] / MIB:,.0f} MiB changed | {first['ship_s']:.1f} | {rate(first['changed'], first['ship_s'])} "
        f"| {first['ship_cpu_s']:.1f} | {first['ship_stored'] / MIB:,.0f} MiB |",
        f"| seed of the clone | {allocated(clone) / MIB:,.0f} MiB of data | {other['seed_s']:.1f} | {rate(allocated(clone), other['seed_s'])} "
        f"| {other['seed_cpu_s']:.1f} | {other['seed_stored'] / MIB:,.0f} MiB |",
        f"| restore of day 2 ({'byte for byte' if exact else 'WRONG'}) | {allocated(day2) / MIB:,.0f} MiB of data | {restore_s:.1f} "
        f"| {rate(allocated(day2), restore_s)} | | |",
        f"| verify of all points | | {verify_s:.1f} | | | |", "",
        f"All three images: {stored(work) / MIB:,.0f} MiB stored. Peak memory of the protecting process: "
        f"{max(first['peak_mib'], other['peak_mib']):,.0f} MiB.",
    ]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", default=[])
    parser.add_argument("--target", required=True)
    parser.add_argument("--images", required=True)
    parser.add_argument("--write", action="store_true", help="put the table into bench/README.md")
    args = parser.parse_args()
    args.standin, args.plain = f"{args.target}/release/standin", f"{args.target}/release/examples/plain_export"
    args.rounds, args.runtime = int(os.environ.get("ROUNDS", 3)), int(os.environ.get("RUNTIME", 8))
    parts = args.parts or ["front", "store"]
    text = [f"{report.machine()}; median of {args.rounds} round(s) of {args.runtime} s each.", ""]
    with tempfile.TemporaryDirectory(prefix="standin-bench-") as work:
        if "front" in parts:
            text += ["### A guest's requests (fio, nbd engine, Unix socket, 1 GiB disk in the page cache)", "", *front(args, work), ""]
            found = pauses(args, work)
            text += [f"Pause of a cut under 4 KiB random writes at depth 32: median {statistics.median(found):,.0f} us, "
                     f"90 % under {found[len(found) * 9 // 10]:,.0f} us, longest {found[-1]:,.0f} us ({len(found)} cuts).", ""]
        if "store" in parts:
            text += ["### Stage two, on the images of tests/lab/images.sh", "", *store(args, work), ""]
    report.publish(args, "table", text)


main()
