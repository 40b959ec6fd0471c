"""The servers that are measured: each serves an export `disk` on a Unix socket until its block ends."""

import json, os, signal, socket as sockets, subprocess, sys, time

MIB = 1 << 20


def uri(socket, export="disk"):
    return f"nbd+unix:///{export}?socket={socket}"


def standin(binary, *argv):
    """Runs `standin ARGV --json`; the document."""
    out = subprocess.run([binary, *argv, "--json"], capture_output=True, text=True)
    if out.returncode != 0:
        sys.exit(f"standin {' '.join(argv)} failed: {out.stderr}{out.stdout}")
    return json.loads(out.stdout)


class Server:
    """A process that serves on `socket`; stopped when the block ends."""

    def __init__(self, argv, socket, log, export="disk", prepare=None, serving=60):
        self.argv, self.socket, self.log = argv, socket, log
        self.export, self.prepare, self.serving = export, prepare, serving

    def __enter__(self):
        if os.path.exists(self.socket):
            os.unlink(self.socket)
        self.start()
        return self

    def start(self):
        self.process = subprocess.Popen(self.argv, stdin=subprocess.PIPE, stdout=self.log, stderr=self.log)
        if self.prepare:
            self.prepare()
        deadline = time.monotonic() + self.serving
        while subprocess.run(["nbdinfo", "--size", uri(self.socket, self.export)], capture_output=True).returncode != 0:
            if self.process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"{self.argv} does not serve; {self.log.name} ends with:\n{tail(self.log.name)}")
            time.sleep(0.02)

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(300)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self):
        self.process.kill()
        self.process.wait()

    def cpu_seconds(self):
        fields = open(f"/proc/{self.process.pid}/stat").read().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mib(self):
        """What /proc says of its memory: VmHWM, RssAnon, RssFile, RssShmem."""
        lines = (line.split() for line in open(f"/proc/{self.process.pid}/status"))
        wanted = ("VmHWM:", "VmRSS:", "RssAnon:", "RssFile:", "RssShmem:")
        return {fields[0][:-1]: int(fields[1]) / 1024 for fields in lines if fields and fields[0] in wanted}


def tail(path):
    return "".join(open(path, errors="replace").readlines()[-15:])


class Place:
    """A directory of one measurement, and how each server is started in it."""

    def __init__(self, args, work):
        self.args, self.work = args, work
        self.disk, self.socket = f"{work}/disk.raw", f"{work}/s.sock"
        self.state, self.diffs, self.target = f"{work}/state", f"{work}/diffs", f"{work}/target"
        self.log = open(f"{work}/log", "ab")
        # CACHE=none: every server that can passes the page cache by (O_DIRECT), for production and second copies.
        self.direct = os.environ.get("CACHE") == "none"
        self.file = "driver=file,cache.direct=on" if self.direct else "driver=file"

    def fresh(self, size_mib=1024):
        """A disk with data, in the page cache, the same for everyone; no server's leftovers. Written in
        pieces of 4 KiB: where the kernel caches a file in large folios, each small write costs 20 us in
        the file system, and hides what we cost."""
        self.forget()
        with open(self.disk, "wb", buffering=0) as disk:
            for _ in range(size_mib // 64):
                data = memoryview(os.urandom(64 * MIB))
                for at in range(0, len(data), 4096):
                    disk.write(data[at:at + 4096])
        os.sync()
        if self.direct:
            with open(self.disk, "rb") as disk:
                os.posix_fadvise(disk.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def forget(self):
        subprocess.run(["rm", "-rf", self.target, self.state, f"{self.work}/second.raw", f"{self.work}/fleece.qcow2"], check=True)
        subprocess.run(f"rm -rf {self.diffs}/bench", shell=True, check=True)
        os.makedirs(self.diffs, exist_ok=True)
        os.makedirs(self.state)

    def protect(self, every, disks=None, **more):
        """`standin protect`; its seed is a matter of `cut(wait=True)`."""
        argv = [self.args.standin, "protect", *(disks or [self.disk]), "--listen", f"unix:{self.socket}", "--state", self.state,
                "--diff-dir", self.diffs, "--target", f"dir:{self.target}", "--group", "bench", "--every", every,
                *(["--direct"] if self.direct else [])]
        return Server(argv, self.socket, self.log, **more)

    def cut(self, wait=False):
        return standin(self.args.standin, "cut", "bench", "--state", self.state, *(["--wait"] if wait else []))

    def try_cut(self):
        """A cut, or `None` where it gave way to a guest's write that did not end (exit code 4)."""
        argv = [self.args.standin, "cut", "bench", "--state", self.state, "--json"]
        out = subprocess.run(argv, capture_output=True, text=True)
        if out.returncode not in (0, 4):
            sys.exit(f"cut failed: {out.stderr}{out.stdout}")
        return json.loads(out.stdout) if out.returncode == 0 else None

    def status(self):
        return standin(self.args.standin, "status", "bench", "--state", self.state)["groups"][0]

    def plain(self, disks=None, **more):
        direct = ["--direct"] if self.direct else []
        return Server([self.args.plain, *direct, *(disks or [self.disk]), f"unix:{self.socket}"], self.socket, self.log, **more)

    def memory(self):
        argv = [self.args.memory, "--listen", f"unix:{self.socket}", "--size", "1024", "--name", "disk"]
        return Server(argv, self.socket, self.log)

    def nbdkit(self, *plugin):
        return Server(["nbdkit", "-f", "-U", self.socket, *plugin], self.socket, self.log)

    def qemu_nbd(self):
        cache = "none" if self.direct else "writeback"
        argv = ["qemu-nbd", "-f", "raw", "-t", "-e", "8", "-x", "disk", f"--cache={cache}", "-k", self.socket, self.disk]
        return Server(argv, self.socket, self.log)

    def storage_daemon(self, node, *blockdevs, prepare=None):
        argv = ["qemu-storage-daemon"]
        for blockdev in blockdevs:
            argv += ["--blockdev", blockdev]
        argv += ["--nbd-server", f"addr.type=unix,addr.path={self.socket}", "--export", f"nbd,id=e,node-name={node},name=disk,writable=on",
                 "--chardev", f"socket,path={self.work}/qmp.sock,server=on,wait=off,id=m", "--monitor", "chardev=m"]
        return Server(argv, self.socket, self.log, prepare=prepare)

    def second(self):
        """A file of the disk's size for the second copy, allocated as the first is."""
        subprocess.run(["cp", "--sparse=never", self.disk, f"{self.work}/second.raw"], check=True)
        return f"{self.file},node-name=second,filename={self.work}/second.raw"

    def quorum(self):
        """Both children must take the write; reads come from the first."""
        quorum = "driver=quorum,node-name=top,vote-threshold=2,read-pattern=fifo,children.0=first,children.1=second"
        return self.storage_daemon("top", f"{self.file},node-name=first,filename={self.disk}", self.second(), quorum)

    def mirror(self):
        """blockdev-mirror in write-blocking mode, measured when the copy is complete."""
        first = f"{self.file},node-name=first,filename={self.disk}"
        job = {"job-id": "mirror", "device": "first", "target": "second", "sync": "full", "copy-mode": "write-blocking"}
        return self.storage_daemon("first", first, self.second(), prepare=lambda: self.qmp("blockdev-mirror", job, "BLOCK_JOB_READY"))

    def fleecing(self):
        """copy-before-write to a fleecing image that is empty at the start: as after a cut."""
        subprocess.run(["rm", "-f", f"{self.work}/fleece.qcow2"], check=True)
        size = os.stat(self.disk).st_size
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", f"{self.work}/fleece.qcow2", str(size)], check=True)
        return self.storage_daemon(
            "top", f"{self.file},node-name=first,filename={self.disk}",
            f"driver=qcow2,node-name=second,file.driver=file,file.filename={self.work}/fleece.qcow2",
            "driver=copy-before-write,node-name=top,file=first,target=second")

    def qmp(self, command, arguments, event):
        """One command to the storage daemon, and the wait for the event that says it is in force."""
        monitor = sockets.socket(sockets.AF_UNIX)
        deadline = time.monotonic() + 20
        while True:
            try:
                monitor.connect(f"{self.work}/qmp.sock")
                break
            except OSError:
                if time.monotonic() > deadline:
                    sys.exit(f"no monitor; {self.log.name} ends with:\n{tail(self.log.name)}")
                time.sleep(0.02)
        replies = monitor.makefile("rw")
        for execute in ({"execute": "qmp_capabilities"}, {"execute": command, "arguments": arguments}):
            replies.write(json.dumps(execute) + "\n")
            replies.flush()
        for line in replies:
            reply = json.loads(line)
            if "error" in reply:
                sys.exit(f"{command}: {reply['error']}")
            if reply.get("event") == event:
                return
        sys.exit(f"{command}: no {event}")
