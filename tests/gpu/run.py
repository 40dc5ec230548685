"""Runs the steps of steps.py, each for its seconds at most, and keeps what they found: see run.sh."""
import datetime
import json
import os
import pathlib
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time

import page
import steps

ROOT = steps.ROOT
GRACE = 3       # seconds that a killed process is waited for


class Stopped(BaseException):
    """This process was told to end."""


class Failed(Exception):
    pass


class Late(Failed):
    pass


class Call:
    """One command, run to its end or for so many seconds.  lines: (seconds after the start, line of output)."""

    def __init__(self, words, limit, env, until=None):
        self.words, self.limit, self.lines, self.err, self.rc, self.ended = words, limit, [], "", None, ""
        began = time.monotonic()
        self.done = threading.Event()
        self.until = until
        try:
            p = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, env=env,
                                 cwd=ROOT, text=True, errors="replace", start_new_session=True)
        except OSError as e:
            self.rc, self.err, self.seconds = 127, str(e), 0.
            return
        readers = [threading.Thread(target=f, args=(p, began), daemon=True) for f in (self.read_out, self.read_err)]
        for t in readers:
            t.start()
        try:
            self.wait(p, began)
        finally:
            self.kill(p)
            self.seconds = time.monotonic() - began
            for t in readers:
                t.join(GRACE)
            self.rc = p.poll()

    def read_out(self, p, began):
        for line in p.stdout:
            self.lines.append((time.monotonic() - began, line))
            if self.until and self.until(line):
                self.ended = "enough"
                self.done.set()

    def read_err(self, p, began):
        for line in p.stderr:
            self.err += line

    def wait(self, p, began):
        while p.poll() is None and not self.done.is_set():
            if time.monotonic() - began > self.limit:
                self.ended = "time"
                return
            self.done.wait(.02)

    def kill(self, p):
        """The process and what it started; one that hangs in the driver is left behind."""
        if p.poll() is None:
            os.killpg(p.pid, signal.SIGKILL)
            try:
                p.wait(GRACE)
            except subprocess.TimeoutExpired:
                pass

    @property
    def out(self):
        return "".join(line for _, line in list(self.lines))


class Step:
    def __init__(self, run, name, title, limit):
        self.run, self.name = run, name
        self.ends = time.monotonic() + min(limit * run.scale, run.left())
        self.record = {"name": name, "title": title, "limit_s": limit, "outcome": "not run", "why": "", "seconds": 0.,
                       "commands": [], "numbers": [], "tables": [], "notes": []}
        self.last = None

    # -- what a step does

    def left(self):
        return self.ends - time.monotonic()

    def call(self, words, env={}, ok=(0,), until=None, limit=1e9, late=False):
        """ok: the exit codes that are good, or None for all.  limit: seconds, where fewer than the step's are enough.
        late: what it printed before its time was over is of use."""
        left = min(self.left(), limit)
        if left <= 0:
            raise Failed("no time left")
        words = [str(w) for w in words]
        c = self.last = Call(words, left, {**self.run.env, **env}, until)
        self.record["commands"].append({"command": self.run.tidy(" ".join(words)), "rc": c.rc, "seconds": round(c.seconds, 3),
                                        "limit_s": round(left, 1), "ended": c.ended})
        self.log(c)
        if c.ended == "time":
            why = f"not done after {c.seconds:.0f} s: {self.run.tidy(' '.join(words[:3]))} …"
            if not late:
                raise Late(why)
            self.fail(why)
        if ok is not None and c.rc not in ok:
            raise Failed(f"exit {c.rc}: {self.last_words()}")
        return c

    def hcgen(self, *words, **how):
        """Where a kernel failed among many queued, once more to see which."""
        self.last = None
        try:
            return self.call([self.run.exe, *words], **how)
        finally:
            if self.last and "HCGEN_CUDA_SYNC" in self.last.err:
                c = Call(self.last.words, self.left(), {**self.run.env, "HCGEN_CUDA_SYNC": "1"})
                self.log(c)
                if c.ended != "time":
                    said = c.err.strip().splitlines() or ["it went well"]
                    self.note(f"with HCGEN_CUDA_SYNC=1: `{said[-1][:300]}`")

    def log(self, c):
        with open(self.run.dir / f"log/{self.name}.txt", "a") as f:
            f.write(f"$ {' '.join(c.words)}\n{c.out}{c.err}exit {c.rc} after {c.seconds:.2f} s {c.ended}\n\n")

    def number(self, what, value, unit, hide=False):
        self.record["numbers"].append({"what": what, "value": value, "unit": unit, "hide": hide})

    def table(self, title, columns, rows):
        self.record["tables"].append({"title": title, "columns": columns, "rows": rows})

    def note(self, text):
        self.record["notes"].append(self.run.tidy(text))

    def fail(self, why):
        self.record["outcome"] = "failed"
        self.record["why"] += ("; " if self.record["why"] else "") + self.run.tidy(why)

    def skip(self, why):
        self.record.update(outcome="not run", why=why)

    def last_words(self):
        lines = (self.last.err.strip() or self.last.out.strip()).splitlines()
        return f"exit {self.last.rc}: {lines[-1][:300] if lines else 'it said nothing'}"

    # -- around it

    def execute(self, f):
        began = time.monotonic()
        self.record["outcome"] = "ok"
        try:
            f(self)
        except Failed as e:
            self.fail(str(e))
            if isinstance(e, Late):
                self.record["outcome"] = "out of time"
        except Stopped:
            self.record.update(outcome="stopped", why="the run was told to end")
            raise
        except Exception as e:      # a text that does not read as expected, a full disk: the next step still runs
            self.fail(f"{type(e).__name__}: {e}")
        finally:
            self.record["seconds"] = round(time.monotonic() - began, 2)


class Run:
    def __init__(self, folder):
        self.dir = pathlib.Path(folder).resolve()
        self.tmp = self.dir / "tmp"
        self.quick = os.environ.get("HCGEN_GPU_QUICK", "0") not in ("", "0")
        self.scale = float(os.environ.get("HCGEN_GPU_SCALE") or 1)      # of the limits: to try how they act
        self.began = time.monotonic()
        self.deadline = self.began + steps.EVERY_SECOND
        self.env = dict(os.environ)
        self.exe = None
        shutil.rmtree(self.tmp, ignore_errors=True)
        for old in "log", "intrinsics":
            shutil.rmtree(self.dir / old, ignore_errors=True)
        for new in self.tmp, self.dir / "log":
            new.mkdir(parents=True)
        if not (self.quick and self.env.get("HCGEN_CACHE")):
            self.env["HCGEN_CACHE"] = str(self.cache_of("all"))
        self.report = {
            "command": "tests/gpu/run.sh DIR", "quick": self.quick, "date": datetime.date.today().isoformat(),
            "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), "commit": self.commit(),
            "python": platform.python_version(), "doctor": {}, "nvidia_smi": {}, "no_gpu": "hcgen doctor was not run",
            "stand_in": False, "cpu_trains": False, "finished": False, "seconds": 0., "steps": []}

    def left(self):
        return max(0., self.deadline - time.monotonic())

    def cache_of(self, name):
        path = self.tmp / f"cache-{name}"
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    def tidy(self, text):
        """without paths of this machine"""
        for path, name in ((str(self.dir), "DIR"), (str(self.exe), "hcgen"), (str(ROOT) + "/", ""), (sys.executable, "python3")):
            text = text.replace(path, name)
        return text

    def commit(self):
        if os.environ.get("HCGEN_COMMIT"):
            return os.environ["HCGEN_COMMIT"]
        try:
            words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
            return subprocess.run(words, capture_output=True, text=True, timeout=10).stdout.strip() or "unknown"
        except (OSError, subprocess.TimeoutExpired):
            return "unknown"

    def machine(self, found):
        """what `doctor --json` says, without paths"""
        libraries = found.get("libraries", {})
        for lib in libraries.values():
            lib["soname"] = lib["soname"] and os.path.basename(lib["soname"])
            lib["error"] = lib["error"] and self.tidy(lib["error"])
        found.pop("cache", None)
        gpu = found.get("gpu") or {}
        r = self.report
        r["doctor"] = found
        r["no_gpu"] = "" if found and not found.get("cuda") else self.tidy(found.get("cuda") or "hcgen doctor gave no answer")
        r["stand_in"] = gpu.get("name") == "stand-in"
        r["cpu_trains"] = bool(found.get("compiler") and libraries.get("onednn", {}).get("soname"))

    def find_binary(self, step):
        """One that starts here, else one that make builds here."""
        self.exe = pathlib.Path(os.environ.get("HCGEN") or ROOT / "build/hcgen").resolve()
        c = step.call([self.exe, "--help"], ok=None)
        if c.rc == 0:
            return
        why = step.last_words()
        self.exe = self.tmp / "build/hcgen"
        c = step.call(["make", f"-j{os.cpu_count()}", f"B={self.tmp}/build", self.exe], ok=None)
        if c.rc:
            self.exe = None
            self.report["no_gpu"] = f"hcgen neither runs nor builds here: {why}; make: {step.last_words()}"
            raise Failed(self.report["no_gpu"])

    def step(self, name, title, limit, f):
        s = Step(self, name, title + " (small, to try the script)" * self.quick, limit)
        self.report["steps"].append(s.record)
        only = os.environ.get("HCGEN_GPU_STEPS", "").split()
        if name == "doctor":
            s.execute(lambda step: (self.find_binary(step), f(step)))
        elif self.report["no_gpu"]:
            s.skip("no GPU")
        elif (only and name not in only) or (self.quick and name in steps.NOT_QUICK):
            s.skip("left out")
        elif self.left() <= 0:
            s.skip("no time was left")
        else:
            s.execute(f)
        self.write()
        print(f"{name:18} {s.record['outcome']:12} {s.record['seconds']:6.1f} s  {s.record['why'][:200]}", flush=True)

    def write(self):
        self.report["seconds"] = round(time.monotonic() - self.began, 1)
        for name, text in (("gpu.json", json.dumps(self.report, indent=1) + "\n"), ("gpu.md", page.text(self.report))):
            new = self.dir / (name + ".new")
            new.write_text(text)
            os.replace(new, self.dir / name)

    def pack(self):
        shutil.rmtree(self.tmp, ignore_errors=True)
        with tarfile.open(self.dir / "gpu.tar.gz", "w:gz") as t:
            for name in "gpu.md", "gpu.json", "log", "intrinsics":
                if (self.dir / name).exists():
                    t.add(self.dir / name, name)

    def exit_code(self):
        outcomes = {s["outcome"] for s in self.report["steps"]}
        return 2 if self.report["no_gpu"] else int(bool(outcomes & {"failed", "out of time"}))


def stop(number, frame):
    raise Stopped


def main(folder):
    run = Run(folder)
    for s in signal.SIGTERM, signal.SIGINT, signal.SIGHUP:
        signal.signal(s, stop)
    try:
        for s in [*steps.STEPS, steps.REST]:
            run.step(*s)
        run.report["finished"] = True
        rc = run.exit_code()
    except Stopped:
        rc = 143
    for s in signal.SIGTERM, signal.SIGINT, signal.SIGHUP:
        signal.signal(s, signal.SIG_IGN)
    run.write()
    run.pack()
    print(f"{run.dir}/gpu.md, {run.report['seconds']:.0f} s")
    return rc


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
