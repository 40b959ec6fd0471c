#!/usr/bin/env python3
"""NBD server probe with libnbd (>=1.20 wanted for extended headers). usage: nbd-probe.py URI
Each check prints  name  value|PASS|FAIL(reason)|n/a.  Writes to the export: use a scratch disk >= 64 MiB."""
import nbd, sys, errno, os, random
uri=sys.argv[1]; R=[]
def rec(n,v): R.append((n,v)); print(f"{n:34s} {v}",flush=True)
def H(**k):
    h=nbd.NBD(); h.set_request_structured_replies(k.get('sr',True))
    if hasattr(h,'set_request_extended_headers'): h.set_request_extended_headers(k.get('eh',True))
    for m in k.get('meta',[]): h.add_meta_context(m)
    if k.get('lax'): h.set_strict_mode(0)
    if k.get('opt'): h.set_opt_mode(True)
    if k.get('full'): h.set_full_info(True)
    h.connect_uri(uri); return h
def chk(n,f,want=None):
    """want=None: must succeed; want=errno set: must fail with one of them and leave the connection usable"""
    try: r=f()
    except nbd.Error as e:
        if want is None: rec(n,f"FAIL({e.errno or e.string[:60]})"); return
        got=e.errnum if hasattr(e,'errnum') else None
        rec(n,'PASS' if e.errno in want else f"other({e.errno or e.string[:70]})"); return
    except Exception as e: rec(n,f"FAIL({type(e).__name__} {str(e)[:80]})"); return
    if want is None: rec(n,'PASS' if r is not False else 'FAIL(data)')
    else: rec(n,f"FAIL(accepted, wanted {'/'.join(sorted(want))})")
h=H(meta=['base:allocation'],opt=True,full=True)
rec('handshake', h.get_protocol()); 
L=[]
try:
    h.opt_list(lambda n,d: L.append(n) or 0); rec('NBD_OPT_LIST',L)
except nbd.Error as e: rec('NBD_OPT_LIST',f'FAIL({e.string[:60]})')
try:
    M=[]; q=getattr(h,'opt_list_meta_context_queries',None)
    q([], lambda n: M.append(n) or 0) if q else h.opt_list_meta_context(lambda n: M.append(n) or 0); rec('LIST_META_CONTEXT',M)
except nbd.Error as e: rec('LIST_META_CONTEXT',f'FAIL({e.string[:60]})')
try: h.opt_info(); rec('NBD_OPT_INFO','PASS')
except nbd.Error as e: rec('NBD_OPT_INFO',f'FAIL({e.string[:60]})')
try: h.opt_go(); rec('NBD_OPT_GO','PASS')
except nbd.Error as e: rec('NBD_OPT_GO',f'FAIL({e.string[:60]})'); sys.exit(1)
rec('structured replies',h.get_structured_replies_negotiated())
rec('extended headers',h.get_extended_headers_negotiated() if hasattr(h,'get_extended_headers_negotiated') else 'libnbd too old')
for a in 'flush fua trim zero fast_zero cache df multi_conn block_status_payload'.split():
    try: rec('can_'+a,getattr(h,'can_'+a)())
    except (nbd.Error,AttributeError) as e: rec('can_'+a,'n/a')
rec('base:allocation',h.can_meta_context('base:allocation'))
bs=[h.get_block_size(i) for i in (nbd.SIZE_MINIMUM,nbd.SIZE_PREFERRED,nbd.SIZE_MAXIMUM)]; rec('block size min/pref/max',bs)
for a in ('get_export_description','get_canonical_export_name'):
    try: rec(a,getattr(h,a)())
    except nbd.Error as e: rec(a,'n/a')
S=h.get_size(); rec('size',S)
rnd=random.Random(1); B=bytes(rnd.getrandbits(8) for _ in range(65536))
chk('write 64k / read back',lambda:(h.pwrite(B,4<<20),h.pread(65536,4<<20)==B)[1])
if h.can_fua(): chk('write FUA',lambda:(h.pwrite(B,8<<20,nbd.CMD_FLAG_FUA),h.pread(65536,8<<20)==B)[1])
if h.can_flush(): chk('flush',lambda:h.flush())
big=B*128
chk('write+read 8 MiB one request',lambda:(h.pwrite(big,16<<20),bytes(h.pread(8<<20,16<<20))==big)[1])
if h.can_zero():
    chk('write_zeroes reads 0',lambda:(h.zero(65536,4<<20),h.pread(65536,4<<20)==bytes(65536))[1])
    chk('write_zeroes NO_HOLE+FUA',lambda:(h.zero(65536,16<<20,nbd.CMD_FLAG_NO_HOLE|(nbd.CMD_FLAG_FUA if h.can_fua() else 0)),h.pread(65536,16<<20)==bytes(65536))[1])
    try:
        if h.can_fast_zero():
            try: h.zero(65536,17<<20,nbd.CMD_FLAG_FAST_ZERO); rec('fast zero','PASS done')
            except nbd.Error as e: rec('fast zero','PASS refused' if e.errno in('ENOTSUP','EOPNOTSUPP') else f'FAIL({e.errno})')
    except nbd.Error: pass
if h.can_trim(): chk('trim',lambda:h.trim(1<<20,20<<20))
if h.can_cache(): chk('cache',lambda:h.cache(65536,0))
def bstat():
    ext=[]; 
    f=(lambda c,o,e,err: ext.append((c,o,[tuple(x) for x in e] if e and not isinstance(e[0],int) else list(zip(e[::2],e[1::2])))) or 0)
    (h.block_status_64 if hasattr(h,'block_status_64') else h.block_status)(min(S,64<<20),0,f)
    return ext
if h.can_meta_context('base:allocation'):
    try: e=bstat(); rec('block_status 64M extents',f"{sum(len(x[2]) for x in e)} first={e[0][2][:4]}")
    except nbd.Error as x: rec('block_status 64M extents',f'FAIL({x.errno or x.string[:60]})')
def sread(flags=0):
    c=[]; b=h.pread_structured(8<<20,12<<20,lambda s,o,st,e:c.append((o,len(s),st)) or 0,flags); return c
if h.get_structured_replies_negotiated():
    try: c=sread(); rec('structured read chunks',f"{len(c)} kinds={sorted(set(x[2] for x in c))} (1=data 2=hole)")
    except nbd.Error as e: rec('structured read chunks',f'FAIL({e.errno})')
    if h.can_df():
        try: c=sread(nbd.CMD_FLAG_DF); rec('DF read is one chunk',('PASS' if len(c)==1 else f'FAIL({len(c)})'))
        except nbd.Error as e: rec('DF read is one chunk','PASS(refused EOVERFLOW)' if e.errno=='EOVERFLOW' else f'FAIL({e.errno})')
h.shutdown()
# malformed requests: server must answer an error and keep the connection
def bad(n,f,want):
    global x
    try: x=H(lax=True)
    except nbd.Error as e: rec(n,'connect FAIL'); return
    chk(n,lambda:f(x),want)
    try: x.pread(512 if bs[0]<=512 else bs[0],0); rec('   conn usable after','PASS')
    except nbd.Error as e: rec('   conn usable after',f'FAIL({e.errno or e.string[:50]})')
    try: x.shutdown()
    except nbd.Error: pass
bad('read past EOF',lambda x:x.pread(4096,S),{'EINVAL'})
bad('read straddles EOF',lambda x:x.pread(8192,S-4096),{'EINVAL'})
bad('write past EOF',lambda x:x.pwrite(B[:4096],S),{'ENOSPC','EINVAL'})
bad('trim past EOF',lambda x:x.trim(4096,S),{'EINVAL','ENOSPC'})
bad('zero past EOF',lambda x:x.zero(4096,S),{'ENOSPC','EINVAL'})
bad('offset+len wraps 2^64',lambda x:x.pread(4096,(1<<63)-512-0 if True else 0),{'EINVAL'})
bad('read 64 MiB+ (over max)',lambda x:x.pread((64<<20)+4096 if S>(64<<20)+4096 else 40<<20,0),{'EINVAL','EOVERFLOW','ERANGE','ENOMEM'})
bad('unknown cmd flag 0x80 on read',lambda x:x.pread(4096,0,0x80),{'EINVAL'})
bad('block_status w/o meta ctx',lambda x:x.block_status(4096,0,lambda *a:0),{'EINVAL'})
for sr,eh,n in ((False,False,'simple replies only'),(True,False,'structured, no ext hdr')):
    try:
        y=H(sr=sr,eh=eh); ok=(y.pwrite(B,24<<20),bytes(y.pread(65536,24<<20))==B)[1]; y.shutdown(); rec(n,'PASS' if ok else 'FAIL(data)')
    except nbd.Error as e: rec(n,f'FAIL({e.string[:60]})')
# multi-conn: flush on A must cover a write done on B; 16 writes in flight out of order
try:
    a=H(); b=H(); b.pwrite(B,28<<20); a.flush() if a.can_flush() else 0; rec('2nd conn sees write',('PASS' if bytes(a.pread(65536,28<<20))==B else 'FAIL(stale)'))
    bufs=[(i,nbd.Buffer.from_bytearray(bytearray(os.urandom(4096)))) for i in range(64)]
    ck=[a.aio_pwrite(q,(32<<20)+i*4096) for i,q in bufs]
    while a.aio_in_flight()>0: a.poll(-1)
    ok=all(bytes(b.pread(4096,(32<<20)+i*4096))==bytes(q.to_bytearray()) for i,q in bufs)
    rec('64 writes in flight',('PASS' if ok else 'FAIL(data)')); a.shutdown(); b.shutdown()
except nbd.Error as e: rec('multi-conn/inflight',f'FAIL({e.string[:70]})')
# export name that does not exist must be refused, connection survives option phase
try:
    z=nbd.NBD(); z.set_opt_mode(True); z.connect_uri(uri); z.set_export_name('no-such-export-xyz')
    try: z.opt_go(); rec('unknown export refused','accepted')
    except nbd.Error as e:
        try: z.set_export_name(h.get_export_name()); z.opt_go(); rec('unknown export refused','PASS, then GO ok')
        except nbd.Error as e2: rec('unknown export refused',f'refused; retry FAIL({e2.string[:40]})')
except nbd.Error as e: rec('unknown export refused',f'FAIL({e.string[:60]})')
