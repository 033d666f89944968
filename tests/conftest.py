"""What holds for the whole suite: one thread, no network, an empty Hugging Face home, GPU tests on a GPU."""

import os
import shutil
import socket
import sys
import tempfile

# All of this before torch, transformers or datasets are imported, since they read it once. Child processes
# inherit it.
_HOME = tempfile.mkdtemp(prefix="hf_clsi-tests-")
os.environ["HF_HOME"] = _HOME  # nothing in the user's cache can make a test pass, and nothing is left in it
os.environ["HF_HUB_OFFLINE"] = "1"
# Child processes are not under the guard below: HTTP leads them to a closed port of this machine.
for name in ("http_proxy", "https_proxy", "all_proxy"):
    os.environ[name] = os.environ[name.upper()] = "http://127.0.0.1:9"
os.environ["no_proxy"] = os.environ["NO_PROXY"] = "localhost,127.0.0.1,::1"
# The models of the tests are tiny: handing their work to a second thread costs more than it saves, several
# processes (pytest -n, synthesis) would fight for the cores, and sums come out alike on any number of cores.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)  # in case a plugin imported torch before


class NetworkUsedError(RuntimeError):
    """A test reached for the network."""


def _guard(event: str, arguments: tuple) -> None:
    """Refuse to leave this machine or to look up a name; local (AF_UNIX) sockets are how processes talk."""
    if event in ("socket.connect", "socket.sendto"):
        if arguments[0].family not in (socket.AF_INET, socket.AF_INET6):
            return
        host = arguments[1][0]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host and not host.startswith(("127.", "::1", "localhost")):
        raise NetworkUsedError(f"a test reached for {host!r} ({event}); the suite must pass offline.")


# The interpreter itself calls the hook, whichever way a library took to the socket.
sys.addaudithook(_guard)


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no GPU here"))


def pytest_unconfigure():
    shutil.rmtree(_HOME, ignore_errors=True)
