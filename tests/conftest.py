"""What the whole suite shares: one thread, no network, an empty Hugging Face home, a small random Mimi."""

import copy
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


@pytest.fixture(scope="session")
def tiny_mimi():
    """Function that builds a small random Mimi: 24 kHz, 12.5 Hz, 4 codebooks of 32 units, always the same.

    Mimi's codebooks start at zero, where every unit is 0. The first one is put here around the latents of
    noise whose color and level move, so that sound with some variety uses most of its units.
    """
    from transformers import MimiConfig, MimiModel  # here, since collecting the tests must stay light

    config = MimiConfig(
        hidden_size=16,
        num_filters=2,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=16,
        codebook_size=32,
        codebook_dim=8,
        vector_quantization_hidden_dimension=8,
        num_quantizers=4,
        upsample_groups=16,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = MimiModel(config).eval()
        white = torch.randn(1, 1, 4 * 24_000)
        brown = torch.nn.functional.avg_pool1d(white, 65, stride=1, padding=32) * 8
        blend = torch.sin(torch.arange(4 * 24_000) / 2000) ** 2
        encoded = model.encoder(0.1 * (blend * brown + (1 - blend) * white))
        latents = getattr(encoded, "latents", encoded)  # [1, 16, 50]; transformers 5.17 gives them bare
        first = model.quantizer.semantic_residual_vector_quantizer
        points = first.input_proj(latents)[0].T  # [50, 8]
        first.layers[0].codebook.embed_sum.copy_(points.mean(0) + points.std(0) * torch.randn(32, 8))
        for layer in model.quantizer.acoustic_residual_vector_quantizer.layers:
            layer.codebook.embed_sum.normal_(std=points.std())
    return lambda: copy.deepcopy(model)


@pytest.fixture(scope="session")
def tiny_slm():
    """Function that builds a small speech language model and its processor, random but always the same.

    30 units of 20 ms at 16 kHz, embedded tokenizer; a Llama of width 32 and context 128 unless `decoder` says
    otherwise. Its weights spread widely, so that greedy continuations have some variety.
    """
    from hf_clsi import (
        ClsiConfig,
        ClsiFeatureExtractor,
        ClsiForCausalLM,
        ClsiProcessor,
        ClsiUnitsConfig,
        ClsiUnitsModel,
    )
    from hf_clsi.processing_clsi import build_unit_tokenizer

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}

    def build(merges=(), deduplicate=False, **decoder):
        rates = {"sampling_rate": 16_000, "frame_rate": 50.0}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            units = ClsiUnitsModel(ClsiUnitsConfig(num_units=30, hop_length=320)).eval()
            units.centroid_mels.normal_(mean=-3.0)
            units.mean_run_length.uniform_(1.0, 3.0)
            config = ClsiConfig(
                num_units=30,
                num_merges=len(merges),
                deduplicate=deduplicate,
                text_config={**sizes, "max_position_embeddings": 128, "initializer_range": 0.3, **decoder},
                **rates,
            )
            model = ClsiForCausalLM(config).eval()
        tokenizer = build_unit_tokenizer(30, merges)
        return model, ClsiProcessor(ClsiFeatureExtractor(**rates), tokenizer, units, deduplicate=deduplicate)

    return build


def pytest_unconfigure():
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture
def misbehaving_server():
    """Function that starts a local HTTP server whose n-th POST gets the n-th of the given behaviours.

    A behaviour is a dict, all keys optional, or a function from the request to such a dict. The last one
    answers all further requests.

        status: 200. body: bytes, str, or a value to send as JSON. headers: {"Retry-After": "1"}.
        sleep_s: wait before answering. cut_after: close the connection after so many bytes of the body; -1:
        before any answer. declare_length: False leaves Content-Length out, so that a cut goes unnoticed.

    The server has `url` ("http://127.0.0.1:PORT/v1") and `requests`, each with `number` (from 0), `path`,
    `headers` (names in lower case), `body` (bytes), `json`, `at_s` (monotonic clock) and `in_flight` (how
    many were being answered when it came, itself included).
    """
    import http.server
    import json
    import threading
    import time
    from types import SimpleNamespace

    started = []

    def start(behaviours):
        lock, stopped = threading.Lock(), threading.Event()
        state = SimpleNamespace(requests=[], active=0)

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 10

            def log_message(self, *arguments):
                pass

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                is_json = "json" in self.headers.get("Content-Type", "")
                with lock:
                    state.active += 1
                    request = SimpleNamespace(
                        number=len(state.requests),
                        path=self.path,
                        headers={name.lower(): value for name, value in self.headers.items()},
                        body=body,
                        json=json.loads(body) if is_json else None,
                        at_s=time.monotonic(),
                        in_flight=state.active,
                    )
                    state.requests.append(request)
                try:
                    self.answer(request)
                except OSError:  # the client has gone
                    self.close_connection = True

            def answer(self, request):
                try:
                    behaviour = behaviours[min(request.number, len(behaviours) - 1)]
                    behaviour = behaviour(request) if callable(behaviour) else behaviour
                    stopped.wait(behaviour.get("sleep_s", 0))
                finally:
                    with lock:  # before the answer is sent: the client may ask again at once
                        state.active -= 1
                content = behaviour.get("body", b"")
                headers = dict(behaviour.get("headers", {}))
                if not isinstance(content, bytes | str):
                    content = json.dumps(content)
                    headers.setdefault("Content-Type", "application/json")
                content = content.encode() if isinstance(content, str) else content
                cut = behaviour.get("cut_after")
                if cut is None or cut >= 0:
                    self.send_response(behaviour.get("status", 200))
                    if behaviour.get("declare_length", True):
                        headers["Content-Length"] = str(len(content))
                    else:
                        headers["Connection"] = "close"
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(content[:cut])
                if cut is not None or not behaviour.get("declare_length", True):
                    self.close_connection = True

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False  # a handler may still wait for a client that keeps its connection open

        server = Server(("127.0.0.1", 0), Handler)
        # The short poll only makes the end of the test quick.
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        started.append((server, stopped))
        return SimpleNamespace(url=f"http://127.0.0.1:{server.server_address[1]}/v1", requests=state.requests)

    yield start
    for server, stopped in started:
        stopped.set()
        server.shutdown()
        server.server_close()
