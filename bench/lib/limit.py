"""A memory cgroup around a server, of version 1 or 2, whichever the kernel offers: what it maps and what it
caches is charged there."""

import os, time

ROOT = "/sys/fs/cgroup"


class Limit:
    """At most `mib` MiB for everything that is started through `around`; gone when the block ends."""

    def __init__(self, mib):
        old = os.path.isdir(f"{ROOT}/memory")
        self.group = f"{ROOT}/memory/standin-bench-{os.getpid()}" if old else f"{ROOT}/standin-bench-{os.getpid()}"
        self.limit = "memory.limit_in_bytes" if old else "memory.max"
        self.peak = "memory.max_usage_in_bytes" if old else "memory.peak"
        self.mib = mib

    def __enter__(self):
        os.mkdir(self.group)
        with open(f"{self.group}/{self.limit}", "w") as limit:
            limit.write(str(self.mib << 20))
        return self

    def __exit__(self, *_):
        # A killed process leaves a moment later.
        for _ in range(100):
            try:
                return os.rmdir(self.group)
            except OSError:
                time.sleep(0.1)

    def around(self, argv):
        return ["sh", "-c", f'echo $$ > {self.group}/cgroup.procs && exec "$@"', "sh", *argv]

    def figures(self):
        """MiB: what cannot be given back (`anon`), what can (`file`, of which `dirty`), the peak of all."""
        found = {}
        for line in open(f"{self.group}/memory.stat"):
            name, value = line.split()
            found[name] = int(value) / (1 << 20)
        pick = lambda *names: next((found[name] for name in names if name in found), 0)
        peak = int(open(f"{self.group}/{self.peak}").read()) / (1 << 20)
        return {"anon": pick("anon", "rss"), "file": pick("file", "cache"), "dirty": pick("file_dirty", "dirty"), "peak": peak}
