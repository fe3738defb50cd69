"""Fuzzes geventws: builds it with instrumentation, and gives each target its share of the time.

    python fuzzing/run.py --target all --seconds 60
    python fuzzing/run.py --target frames --seconds 3600 --keep
    python fuzzing/run.py --target frames --reproduce crash-...

Exits with 1 for a finding, and for a fuzzer that would find none.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "fuzzing"
BUILT = ROOT / "build" / "fuzzing"
TARGETS = ("frames", "deflate", "http", "buffers")
#: The longest input of a target.
MAX_LENGTH = {"frames": 2048, "deflate": 2048, "http": 1536, "buffers": 1024}
#: Shares of the time.
SHARES = {"frames": 3, "deflate": 3, "http": 2, "buffers": 2}

# Coverage for libFuzzer and the checks of ASan and UBSan. Cython adds 0 to NULL, which C++ allows and compilers of C
# do; the last flag takes that one check out. Python's own flags would let numbers of C wrap round, which is to be told.
FLAGS = (
    "-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g -O1"
    " -fno-wrapv -fno-delete-null-pointer-checks"
)
COMPILER = os.environ.get("CLANG", "clang")


def sources() -> list[Path]:
    """What the instrumented build is made from."""
    found = [path for suffix in ("py", "pyx", "pxd") for path in (ROOT / "geventws").rglob(f"*.{suffix}")]
    return sorted([*found, ROOT / "setup.py"])


def build() -> None:
    """Makes the instrumented build, unless the one there is of the same sources."""
    digest = hashlib.sha256(f"{FLAGS} {COMPILER} {sys.version} {_BUILD}".encode())
    for path in sources():
        digest.update(path.read_bytes())
    stamp = BUILT / "stamp"
    if stamp.exists() and stamp.read_text() == digest.hexdigest():
        return
    print(f"building with {COMPILER} {FLAGS}", flush=True)
    shutil.rmtree(BUILT, ignore_errors=True)
    for path in sources():
        copy = BUILT / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    # setup.py describes the package by it.
    shutil.copy(ROOT / "README.md", BUILT)
    (BUILT / "pure").mkdir()
    (BUILT / "pure" / "__init__.py").touch()
    for name in ("buffer", "codec"):
        shutil.copy(ROOT / "geventws" / "protocol" / f"{name}.py", BUILT / "pure")
    environment = {**os.environ, "CC": COMPILER, "LDSHARED": f"{COMPILER} -shared", "FUZZING_FLAGS": FLAGS}
    environment.pop("GEVENTWS_PURE", None)
    command = [sys.executable, "-c", _BUILD]
    made = subprocess.run(command, cwd=BUILT, env=environment, capture_output=True, text=True)
    if made.returncode:
        sys.exit(f"the build failed:\n{made.stdout[-4000:]}{made.stderr[-4000:]}")
    stamp.write_text(digest.hexdigest())


#: Builds of setup.py's modules those of the protocol. The flags are for compiling alone: CFLAGS, which setuptools links
#: with too, would have clang ask for sanitizers of its own, and Atheris brings them.
_BUILD = """
from setuptools import Distribution
import os, setuptools, runpy
def build(ext_modules, **others):
    wanted = [module for module in ext_modules if module.name.startswith("geventws.protocol.")]
    for module in wanted:
        module.optional = False
        module.extra_compile_args = os.environ["FUZZING_FLAGS"].split()
    distribution = Distribution({"name": "geventws", "packages": [], "ext_modules": wanted})
    command = distribution.get_command_obj("build_ext")
    command.inplace = True
    distribution.run_command("build_ext")
setuptools.setup = build
runpy.run_path("setup.py", run_name="__main__")
"""


def environment() -> dict[str, str]:
    """What a fuzzer runs with: ASan and libFuzzer in one library, as Atheris brings it, ahead of everything else."""
    spec = find_spec("atheris")
    if spec is None or spec.origin is None:
        sys.exit("Atheris is missing: pip install -e '.[fuzz]'")
    runtime = Path(spec.origin).parent.parent / "asan_with_fuzzer.so"
    return {
        **os.environ,
        "LD_PRELOAD": str(runtime),
        # CPython keeps what it never frees. An allocation that fails is MemoryError to Python, and no finding.
        "ASAN_OPTIONS": (
            "detect_leaks=0:allocator_may_return_null=1:handle_abort=1:quarantine_size_mb=32:malloc_context_size=4"
        ),
        "UBSAN_OPTIONS": "print_stacktrace=1",
        # Each object a block of its own, with red zones around it.
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": str(ROOT),
        "PYTHONHASHSEED": "0",
    }


def command(target: str, *arguments: object) -> list[str]:
    """A fuzzer's command line."""
    options = [f"-max_len={MAX_LENGTH[target]}", "-timeout=30", "-rss_limit_mb=2048"]
    dictionary = HERE / f"{target}.dict"
    if dictionary.exists():
        options.append(f"-dict={dictionary}")
    return [sys.executable, str(HERE / f"fuzz_{target}.py"), *options, *map(str, arguments)]


def fuzz(target: str, seconds: int, corpus: Path, fresh: Path, findings: Path, log: Path) -> dict[str, int]:
    """Runs one target; gives its figures. What it finds new goes into ``fresh``."""
    with log.open("w") as output:
        ended = subprocess.run(
            command(
                target,
                f"-max_total_time={seconds}",
                "-print_final_stats=1",
                f"-artifact_prefix={findings}/{target}-",
                fresh,
                corpus,
            ),
            env=environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=findings,
        )
    return {"status": ended.returncode, **figures(log.read_text(errors="replace"))}


def figures(log: str) -> dict[str, int]:
    """What libFuzzer says of a run: executions, edges (cov), features (ft), the corpus."""
    result = {"execs": 0, "cov": 0, "ft": 0, "corpus": 0}
    for line in re.findall(r"^#\d+\s.*$", log, re.MULTILINE):
        found = re.search(r"cov: (\d+) ft: (\d+) corp: (\d+)/", line)
        if found:
            result.update(zip(("cov", "ft", "corpus"), map(int, found.groups()), strict=True))
    executed = re.findall(r"^stat::number_of_executed_units:\s+(\d+)", log, re.MULTILINE)
    if executed:
        result["execs"] = int(executed[-1])
    return result


def prove(findings: Path) -> None:
    """Sees that a difference between the builds and what sanitizers tell of end a fuzzer; ends the run otherwise."""
    limits = bytes((0, 0, 2, 0, 0, 0, 0, 0, 0, 0))
    too_long = findings / "planted"
    too_long.write_bytes(limits + b"\x82\xfe\x01\x00" + bytes(4))
    planted = subprocess.run(
        command("frames", too_long),
        env={**environment(), "GEVENTWS_FUZZ_FAULT": "1"},
        capture_output=True,
        text=True,
        cwd=findings,
    )
    if planted.returncode == 0 or "AssertionError" not in planted.stdout + planted.stderr:
        sys.exit(f"a planted difference was not found:\n{planted.stdout[-2000:]}{planted.stderr[-2000:]}")
    # Instructions of the compiled build itself read behind the end of a block, or add beyond 64 bits.
    for fault, place in (("heap-buffer-overflow", "0, 200"), ("overflow", "-(2**63), 2**63 - 1")):
        code = f"from fuzzing.builds import load; load()[0].buffer.unmasked_bytes(bytearray(100), {place}, 1)"
        planted = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
        if planted.returncode == 0 or fault not in planted.stderr:
            sys.exit(f"the sanitizers did not tell of a planted {fault}:\n{planted.stderr[-2000:]}")
    for left in findings.iterdir():
        left.unlink()


def merge(target: str, corpus: Path, *others: Path) -> None:
    """Keeps of ``corpus`` and ``others`` the smallest inputs that cover all that they cover together."""
    with tempfile.TemporaryDirectory() as work:
        kept = Path(work) / "kept"
        kept.mkdir()
        program = Path(work) / "program"
        script = shlex.join([sys.executable, str(HERE / f"fuzz_{target}.py")])
        program.write_text(f'#!/bin/sh\nexec {script} "$@"\n')
        program.chmod(0o755)
        subprocess.run(
            command(target, "-merge=1", kept, *others, corpus),
            env={**environment(), "GEVENTWS_FUZZ_PROGRAM": str(program)},
            check=True,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            cwd=work,
        )
        if not any(kept.iterdir()):
            sys.exit(f"merging the corpus of {target} left nothing")
        shutil.rmtree(corpus)
        shutil.copytree(kept, corpus)


def main() -> int:
    """Command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=(*TARGETS, "all"), default="all")
    parser.add_argument("--seconds", type=int, default=60, help="of fuzzing, shared between the targets")
    parser.add_argument("--corpus", type=Path, default=HERE / "corpus", help="a directory with one for each target")
    parser.add_argument("--keep", action="store_true", help="merge what was found into the corpus")
    parser.add_argument(
        "--work", type=Path, help="where logs, findings and new inputs go; a temporary directory if none"
    )
    parser.add_argument("--reproduce", type=Path, metavar="INPUT", help="run one input of one target, and nothing else")
    arguments = parser.parse_args()
    targets = TARGETS if arguments.target == "all" else (arguments.target,)
    build()
    if arguments.reproduce:
        if len(targets) > 1:
            parser.error("--reproduce needs a --target")
        return subprocess.run(command(targets[0], arguments.reproduce.resolve()), env=environment()).returncode
    with tempfile.TemporaryDirectory() as temporary:
        return campaign(targets, arguments, (arguments.work or Path(temporary)).resolve())


def campaign(targets: tuple[str, ...], arguments: argparse.Namespace, work: Path) -> int:
    """Fuzzes all of ``targets``, one behind the other; the exit status."""
    findings = work / "findings"
    findings.mkdir(parents=True, exist_ok=True)
    if any(findings.iterdir()):
        sys.exit(f"{findings} has findings of another run")
    prove(findings)
    total = sum(SHARES[target] for target in targets)
    lines = []
    failed = False
    for target in targets:
        corpus = (arguments.corpus / target).resolve()
        corpus.mkdir(parents=True, exist_ok=True)
        fresh = work / "new" / target
        fresh.mkdir(parents=True, exist_ok=True)
        log = work / f"{target}.log"
        started = time.monotonic()
        seconds = max(1, arguments.seconds * SHARES[target] // total)
        print(f"{target}: fuzzing for {seconds} s", flush=True)
        result = fuzz(target, seconds, corpus, fresh, findings, log)
        spent = time.monotonic() - started
        found = result["status"] != 0 or result["execs"] == 0
        if found:
            failed = True
            print("\n".join(log.read_text(errors="replace").splitlines()[-60:]))
        elif arguments.keep:
            merge(target, corpus, fresh)
        lines.append(
            f"{target}: {'FOUND' if found else 'clean'}, {result['execs']} execs in {spent:.0f} s, "
            f"{result['cov']} edges, {result['ft']} features, {result['corpus']} inputs in use, "
            f"{len(list(corpus.iterdir()))} in the corpus"
        )
        print(lines[-1], flush=True)
    print("\n" + "\n".join(lines))
    for path in sorted(findings.iterdir()):
        print(f"finding {path.name}: {path.read_bytes()[:3000].hex()}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
