"""Shared by every peer's script: where things are, sampling of memory and CPU, one result line per run."""
import json, os, subprocess, sys, tempfile, threading, time

HERE = os.path.dirname(os.path.abspath(__file__))
HOME = os.environ.get("PEERS_HOME") or os.path.join(HERE, "../../target/peers")
DATA = os.environ.get("PEERS_DATA") or os.path.join(HOME, "data", "bids-5000000")
PAR = int(os.environ.get("PEERS_PAR", "2"))
CKPT_S = os.environ.get("PEERS_CKPT_S", "5")
RUN = os.path.join(HOME, "run")
TICK, PAGE = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")


def expected(data=DATA):
    with open(os.path.join(data, "expected.json")) as f:
        return json.load(f)


def events(query, e):
    return e["persons"] + e["auctions"] if query == "q8" else e["bids"]


def children(pid):
    out, todo = [], [pid]
    while todo:
        p = todo.pop()
        out.append(p)
        try:
            for t in os.listdir(f"/proc/{p}/task"):
                with open(f"/proc/{p}/task/{t}/children") as f:
                    todo += [int(x) for x in f.read().split()]
        except OSError:
            pass
    return out


def cpu_rss(pids):
    """CPU seconds (own and reaped children's) and resident bytes of these processes."""
    cpu = rss = 0
    for p in pids:
        try:
            with open(f"/proc/{p}/stat") as f:
                s = f.read().rsplit(")", 1)[1].split()
            cpu += sum(int(x) for x in s[11:15])
            rss += int(s[21]) * PAGE
        except (OSError, IndexError):
            pass
    return cpu / TICK, rss


class Sampler:
    """Peak of the summed resident memory, and CPU seconds, of process trees between start and stop."""

    def __init__(self, roots):
        self.roots, self.go, self.cpu1 = list(roots), True, 0

    def now(self):
        return cpu_rss([p for r in self.roots for p in children(r)])

    def __enter__(self):
        self.cpu0, self.peak = self.now()[0], 0
        self.t0 = time.time()
        self.th = threading.Thread(target=self.loop, daemon=True)
        self.th.start()
        return self

    def loop(self):
        last = set()
        while self.go:
            ps = {p for r in self.roots for p in children(r)}
            # a process must be there at two looks running: a JVM that forks a helper shows its whole heap twice for a moment
            r = cpu_rss(ps & last)[1]
            self.peak, self.cpu1, last = max(self.peak, r), cpu_rss(ps)[0], ps
            time.sleep(0.1)

    def __exit__(self, *a):
        self.go = False
        self.th.join()
        self.wall = time.time() - self.t0
        self.cpu = max(self.now()[0], self.cpu1) - self.cpu0
        self.peak_mb = round(self.peak / 1e6)


def record(**kw):
    kw["at"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    kw["load1"] = os.getloadavg()[0]
    line = json.dumps(kw)
    os.makedirs(HOME, exist_ok=True)
    with open(os.path.join(HOME, "results.jsonl"), "a") as f:
        f.write(line + "\n")
    print(line, flush=True)


def pct(xs, *ps):
    xs = sorted(xs)
    return [xs[min(len(xs) - 1, int(len(xs) * p / 100))] for p in ps] if xs else [None] * len(ps)
