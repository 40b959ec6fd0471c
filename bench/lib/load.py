"""fio against a server, and what is kept of a run."""

import json, statistics, subprocess
from collections import namedtuple

from lib.servers import uri

# What one run gave: requests or bytes a second, the 99th percentile of all requests' times in
# microseconds, how many requests.
Run = namedtuple("Run", "iops mbs p99_us count")


def run(socket, arguments, seconds, export="disk", size="1g", rate=None):
    out = subprocess.run(command(socket, arguments, seconds, export, size, rate),
                         check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout
    return parse(out)


def parse(out):
    """What fio printed as JSON, after whatever it said before."""
    job = json.loads(out[out.index("{"):])["jobs"][0]
    sides = [job[side] for side in ("read", "write") if job[side]["total_ios"]]
    # Of a mix the slower side's percentile.
    p99 = max(side["clat_ns"]["percentile"]["99.000000"] for side in sides) / 1000
    total = lambda field: sum(side[field] for side in sides)
    return Run(total("iops"), total("bw_bytes") / 1e6, p99, total("total_ios"))


def command(socket, arguments, seconds, export="disk", size="1g", rate=None):
    limit = [f"--rate_iops={rate}"] if rate else []
    return ["fio", "--name=x", "--ioengine=nbd", f"--uri={uri(socket, export)}", f"--size={size}", "--time_based",
            f"--runtime={seconds}", "--randrepeat=0", "--output-format=json", *limit, *arguments.split()]


def median(values):
    return statistics.median(values)


def percentile(values, percent):
    """The smallest value that `percent` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, -(-len(ordered) * percent // 100) - 1)]
