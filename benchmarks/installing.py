"""Builds wsload and installs the peers into .peers/, once for each change of what is asked for."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from contenders import ACROSS, CERTIFICATE, HERE, NODE, PEER_PYTHON, PEERS, Contender
from processes import telling_line

__all__ = ["available", "build_roomload", "build_wsload", "install_across", "make_certificate", "missing"]

_VENV = PEERS / "venv"
_NODE = PEERS / "node"


def build_wsload() -> tuple[Path, bool]:
    """Compiles wsload where its source changed; gives its path, and whether it speaks TLS.

    Raises ``CalledProcessError``.
    """
    source, binary = HERE / "wsload.c", PEERS / "wsload"
    with_tls, without = (f"{_digest(source)} {word}" for word in ("with TLS", "without TLS"))
    if _stamped(binary, with_tls):
        return binary, True
    PEERS.mkdir(exist_ok=True)
    _say("compiling wsload")
    command = [os.environ.get("CC", "cc"), "-O2", "-o", str(binary), str(source), "-lz"]
    # Without OpenSSL's headers this is tried each time, so that they can be installed later.
    tried = subprocess.run([*command, "-DWSLOAD_TLS", "-lssl", "-lcrypto"], capture_output=True)
    if tried.returncode:
        _run(command)
    _stamp(binary, without if tried.returncode else with_tls)
    return binary, not tried.returncode


def build_roomload() -> Path:
    """Compiles roomload where its source changed; gives its path. Raises ``CalledProcessError``."""
    source, binary = HERE / "roomload.c", PEERS / "roomload"
    if not _stamped(binary, _digest(source)):
        PEERS.mkdir(exist_ok=True)
        _say("compiling roomload")
        _run([os.environ.get("CC", "cc"), "-O2", "-o", str(binary), str(source)])
        _stamp(binary, _digest(source))
    return binary


def install_across() -> None:
    """Installs Valkey and the peers of across.py, as far as they can be had."""
    _install_python(HERE / "peers" / "requirements-across.txt", ACROSS)


def make_certificate() -> None:
    """Makes the certificate of the TLS servers, once; raises ``OSError`` or ``CalledProcessError``."""
    certificate, key = CERTIFICATE / "cert.pem", CERTIFICATE / "key.pem"
    if certificate.exists() and key.exists():
        return
    CERTIFICATE.mkdir(parents=True, exist_ok=True)
    # The kind of key that most sites have; wsload checks neither name nor issuer.
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-subj", "/CN=localhost", "-days", "3650"]
    _run(["openssl", "req", "-x509", *kind, *names, "-keyout", str(key), "-out", str(certificate)])


def available(contenders: Sequence[Contender]) -> list[Contender]:
    """Installs what these contenders need, and gives those that can run; who is left out is told."""
    runtimes = {contender.runtime for contender in contenders}
    if PEER_PYTHON in runtimes:
        _install_python(HERE / "peers" / "requirements.txt", _VENV)
    if NODE in runtimes:
        _install_node(HERE / "peers" / "package.json")
    found = []
    for contender in contenders:
        if reason := missing(contender.runtime, contender.check, contender.environment_for(deflate=False)):
            _say(f"left out: {contender.name}: {reason}")
        else:
            found.append(contender)
    return found


def missing(runtime: str, check: str, environment: Mapping[str, str]) -> str | None:
    """Why a contender can't run, in a line; None where it can."""
    if not shutil.which(runtime):
        return f"there is no {runtime}"
    command = [runtime, "-e" if runtime == NODE else "-c", check]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, cwd=PEERS)
    return telling_line(done.stderr) if done.returncode else None


def _install_python(requirements: Path, venv: Path) -> None:
    stamp = _digest(requirements) + sys.version
    if _stamped(venv, stamp):
        return
    _say("installing the PyPI peers")
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        _run([sys.executable, "-m", "venv", "--clear", str(venv)])
        try:
            _run([*pip, "-r", str(requirements)])
        except subprocess.CalledProcessError:
            # One of them can't be had: the others still can.
            complete = True
            for line in requirements.read_text().splitlines():
                if line and not line.startswith("#"):
                    complete &= _try([*pip, line])
            if not complete:
                return
        _stamp(venv, stamp)
    except (OSError, subprocess.CalledProcessError) as error:
        _say(f"the PyPI peers can't be installed: {error}")


def _install_node(manifest: Path) -> None:
    stamp = _digest(manifest)
    if _stamped(_NODE, stamp):
        return
    _say("installing the Node peers")
    try:
        _NODE.mkdir(parents=True, exist_ok=True)
        shutil.copy(manifest, _NODE)
        # The addons bring their binaries with them, so that no package's script needs to run.
        _run(["npm", "install", "--ignore-scripts", "--no-package-lock", "--no-audit", "--no-fund"], cwd=_NODE)
        _stamp(_NODE, stamp)
    except (OSError, subprocess.CalledProcessError) as error:
        _say(f"the Node peers can't be installed: {error}")


def _run(command: list[str], cwd: Path | None = None) -> None:
    try:
        subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        _say((error.stderr or error.stdout).strip())
        raise


def _try(command: list[str]) -> bool:
    try:
        _run(command)
    except subprocess.CalledProcessError:
        _say(f"can't be installed: {command[-1]}")
        return False
    return True


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _stamped(target: Path, stamp: str) -> bool:
    file = target.parent / f"{target.name}.stamp"
    return target.exists() and file.exists() and file.read_text() == stamp


def _stamp(target: Path, stamp: str) -> None:
    (target.parent / f"{target.name}.stamp").write_text(stamp)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
