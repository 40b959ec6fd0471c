"""The application on the disks of images.sh: a database and logs, and a day of their life."""
import sys, random, sqlite3, os, time
VERSIONS=os.path.expanduser("~/.pyenv/versions")   # another Python version is "installed" on day 2
W="id name order customer address street city invoice payment status pending shipped error warning info user session request response timeout database connection http https GET POST index cache memory disk".split()
def row(r):
    return (" ".join(r.choice(W) for _ in range(12)), "%s-%s@example.net"%(r.choice(W),r.randrange(10**7)), r.random()*1e6, r.randbytes(r.randrange(20,160)))
def make(db, log, seed):
    r=random.Random(seed)
    c=sqlite3.connect(db); c.execute("pragma page_size=8192"); c.execute("pragma journal_mode=off")
    c.execute("create table t(id integer primary key,a text,b text,c real,d blob)")
    for _ in range(12): c.executemany("insert into t(a,b,c,d) values(?,?,?,?)",(row(r) for _ in range(100000)))
    c.commit(); c.execute("create index ib on t(b)"); c.commit(); c.close()
    with open(log,"w") as f: addlog(f,r,600000)
def addlog(f,r,n):
    t=1.7e9
    for i in range(n):
        t+=r.random(); f.write("%s host app[%d]: %s id=%x %s took %dus\n"%(time.strftime("%Y-%m-%dT%H:%M:%S",time.gmtime(t)),r.randrange(900,999),r.choice(W).upper(),r.getrandbits(64)," ".join(r.choice(W) for _ in range(6)),r.randrange(10**5)))
def day2(m):
    r=random.Random(7)
    # 1 database: 30k updates, most in a hot 5% of the rows + 60k inserts (random index pages touched)
    c=sqlite3.connect(m+"/var/lib/db/app.sqlite"); c.execute("pragma journal_mode=delete")
    for i in range(12000):
        k=r.randrange(1140000,1200000) if r.random()<.8 else r.randrange(1,1200001)
        c.execute("update t set c=?,d=? where id=?",(r.random(),r.randbytes(80),k))
    c.executemany("insert into t(a,b,c,d) values(?,?,?,?)",(row(r) for _ in range(6000))); c.commit(); c.close()
    # 2 logs: append ~10 MB
    with open(m+"/var/log/app.log","a") as f: addlog(f,r,80000)
    # 3 package upgrade: ~0.6% of the files of /usr rewritten as a new file with bytes inserted/changed
    files=[]
    for d,_,fs in os.walk(m+"/usr"):
        for f in fs:
            p=os.path.join(d,f)
            if os.path.isfile(p) and not os.path.islink(p): files.append(p)
    files.sort(); r.shuffle(files); tot=0
    for p in files:
        if tot>70<<20: break
        b=open(p,"rb").read()
        if len(b)<200 or len(b)>20<<20: continue
        k=r.randrange(len(b)); ins=r.randbytes(r.randrange(1,200)); n=b[:k]+ins+b[k:]
        n=bytearray(n)
        for _ in range(1+len(n)//40000): n[r.randrange(len(n))]^=0x55
        open(p+".new","wb").write(n); os.rename(p+".new",p); tot+=len(n)
    # 4 new files: 60 MB from another python, deleted files: 40 MB
    vs=sorted(x for x in os.listdir(VERSIONS) if not x.startswith("3.11")) if os.path.isdir(VERSIONS) else []
    tot=0
    for d,_,fs in os.walk(VERSIONS+"/"+vs[-1] if vs else "/usr/lib/python3"):
        for f in sorted(fs):
            p=os.path.join(d,f)
            if tot>60<<20 or not os.path.isfile(p) or os.path.islink(p): continue
            q=m+"/home/u/new"+p; os.makedirs(os.path.dirname(q),exist_ok=True)
            b=open(p,"rb").read(); open(q,"wb").write(b); tot+=len(b)
    tot=0
    for p in reversed(files):
        if tot>40<<20: break
        tot+=os.path.getsize(p); os.unlink(p)
    # 5 in-place edits of small config files
    for p in files[3000:3400]:
        try:
            with open(p,"ab") as f: f.write(b"# edited\n")
        except OSError: pass
if sys.argv[1]=="make": make(sys.argv[2],sys.argv[3],int(sys.argv[4]))
else: day2(sys.argv[2])
