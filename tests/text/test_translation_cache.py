"""TranslationCache: what is stored stays, for every thread and process."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hf_clsi.text.translation_cache import TranslationCache, default_cache_folder


def test_what_is_put_is_found_again(tmp_path):
    TranslationCache(tmp_path / "new" / "folder").put("k", ["Le chat dort.", "Il rêve. 🐈"])
    cache = TranslationCache(tmp_path / "new" / "folder")
    assert cache.get(["other", "k"]) == {"k": ("Le chat dort.", "Il rêve. 🐈")}


def test_more_keys_than_one_query_takes(tmp_path):
    cache = TranslationCache(tmp_path)
    for number in (0, 499, 500, 1200):
        cache.put(f"k{number}", [str(number)])
    found = cache.get([f"k{number}" for number in range(1201)])
    assert found == {"k0": ("0",), "k499": ("499",), "k500": ("500",), "k1200": ("1200",)}
    assert cache.get([]) == {}


def test_the_first_translation_stays(tmp_path):
    cache = TranslationCache(tmp_path)
    assert cache.put("k", ["Bonjour."]) == ("Bonjour.",)
    assert cache.put("k", ["Salut."]) == ("Bonjour.",)
    assert cache.get(["k"]) == {"k": ("Bonjour.",)}


def test_cost_is_recorded(tmp_path):
    cache = TranslationCache(tmp_path)
    cache.put("k", ["Bonjour."], model="gpt-4o-2024-08-06", prompt_tokens=120, completion_tokens=9)
    with sqlite3.connect(cache.path) as database:
        query = "SELECT model, prompt_tokens, completion_tokens FROM translations"
        assert database.execute(query).fetchall() == [("gpt-4o-2024-08-06", 120, 9)]


def test_threads_share_it(tmp_path):
    cache = TranslationCache(tmp_path)
    threads = [
        threading.Thread(target=lambda t=t: [cache.put(f"{t}-{i}", [f"{t}.{i}"]) for i in range(10)])
        for t in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    keys = [f"{t}-{i}" for t in range(4) for i in range(10)]
    assert cache.get(keys) == {key: (key.replace("-", "."),) for key in keys}


# Loads the one file by its path: importing hf_clsi would take seconds in each process.
WRITER = """
import importlib.util, itertools, sys
spec = importlib.util.spec_from_file_location("cache", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
cache = module.TranslationCache(sys.argv[2])
for i in itertools.count() if sys.argv[4] == "forever" else range(int(sys.argv[4])):
    cache.put(f"{sys.argv[3]}-{i}", [str(i)])
    print(i, flush=True)
"""


def start_writer(folder, name, count):
    source = Path(sys.modules[TranslationCache.__module__].__file__)
    arguments = [sys.executable, "-c", WRITER, str(source), str(folder), name, count]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def test_processes_share_it(tmp_path):
    writers = [start_writer(tmp_path, name, "15") for name in ("a", "b", "c")]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0]
    for writer in writers:
        writer.stdout.close()
    assert len(TranslationCache(tmp_path).get([f"{name}-{i}" for name in "abc" for i in range(15)])) == 45


def test_killed_process_loses_nothing_that_it_had_stored(tmp_path):
    with start_writer(tmp_path, "a", "forever") as writer:
        lines = [writer.stdout.readline() for _ in range(10)]
        os.kill(writer.pid, signal.SIGKILL)
    assert lines[-1] == "9\n"
    cache = TranslationCache(tmp_path)
    assert len(cache.get([f"a-{i}" for i in range(10)])) == 10
    assert cache.put("b", ["next"]) == ("next",)  # no lock is left behind


def test_file_that_is_no_database(tmp_path):
    (tmp_path / "translations.sqlite").write_bytes(b"something else entirely" * 100)
    with pytest.raises(RuntimeError, match=r"translations\.sqlite cannot be used: file is not a database"):
        TranslationCache(tmp_path)


def test_place_that_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RuntimeError, match=r"file/translations\.sqlite cannot be used"):
        TranslationCache(tmp_path / "file")


def test_full_disk_is_an_error_and_keeps_what_was_there(tmp_path):
    cache = TranslationCache(tmp_path)
    cache.put("k", ["Bonjour."])
    # A limit on the size of files, in a process of its own, stands for the full disk.
    source = Path(sys.modules[TranslationCache.__module__].__file__)
    code = (
        "import resource, signal, runpy, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "cache = runpy.run_path(sys.argv[1])['TranslationCache'](sys.argv[2])\n"
        "cache.put('large', ['x' * 100000])\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(source), str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert "RuntimeError: the cache of translations" in run.stderr
    assert cache.get(["k", "large"]) == {"k": ("Bonjour.",)}


def test_default_folder():
    assert default_cache_folder() == Path(os.environ["HF_HOME"]) / "hf_clsi" / "translations"
