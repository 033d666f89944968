"""What tests of dataset builds share: an engine that beeps, and a fingerprint of the rows of a folder."""

import hashlib
import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture
def tones(monkeypatch):
    """Settings of the beeping engine (tone_engine.py), which child processes can import as well."""
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))
    return {"engine": "tone_engine:ToneEngine"}


@pytest.fixture
def fingerprint():
    """Function: folder -> config -> hash of its sorted rows, whatever the shards and the compression."""

    def of(folder):
        import pyarrow.parquet as pq

        digests = {}
        for config in sorted(path for path in Path(folder).iterdir() if list(path.glob("*.parquet"))):
            rows = []
            for shard in config.glob("*.parquet"):
                split = shard.name.split("-")[0]
                rows += [hashlib.sha256(repr((split, sorted(row.items()))).encode()).hexdigest()
                         for row in pq.read_table(shard).to_pylist()]  # fmt: skip
            digests[config.name] = hashlib.sha256("".join(sorted(rows)).encode()).hexdigest()
        return digests

    return of
