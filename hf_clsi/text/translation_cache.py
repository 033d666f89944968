"""Translations that were paid for -> one SQLite file, where they are found before anything is asked again.

Many threads and processes may use the file at once. Each entry is its own transaction, so a killed process
loses only what it had not received. The folder must be on a file system with working locks.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

_LOCK_TIMEOUT_S = 60.0
_KEYS_PER_QUERY = 500  # SQLite takes 999 at least


def default_cache_folder() -> Path:
    """`HF_HOME/hf_clsi/translations`."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "hf_clsi" / "translations"


class TranslationCache:
    """`translations.sqlite` in a folder, which is made if need be.

    Raises RuntimeError, here and below, if the file cannot be read or written, with its path.
    """

    def __init__(self, folder: str | Path):
        self.path = Path(folder) / "translations.sqlite"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._fault(error) from error
        with self._open() as database:
            database.execute(
                "CREATE TABLE IF NOT EXISTS translations (key TEXT PRIMARY KEY, sentences TEXT NOT NULL, "
                "model TEXT, prompt_tokens INTEGER, completion_tokens INTEGER, created_s REAL) WITHOUT ROWID"
            )

    def get(self, keys: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Key -> sentences, for those keys that are there."""
        found = {}
        with self._open() as database:
            for start in range(0, len(keys), _KEYS_PER_QUERY):
                some = list(keys[start : start + _KEYS_PER_QUERY])
                marks = ",".join("?" * len(some))
                query = f"SELECT key, sentences FROM translations WHERE key IN ({marks})"
                found.update((key, tuple(json.loads(text))) for key, text in database.execute(query, some))
        return found

    def put(
        self,
        key: str,
        sentences: Sequence[str],
        model: str = "",
        prompt_tokens: int = 0,
        completion_tokens: int = 0,
    ) -> tuple[str, ...]:
        """Store one translation and return what stands there now.

        If another process was first, its translation stays and is returned, so that all use the same one.
        model, prompt_tokens, completion_tokens: who answered and what it cost, for the record.
        """
        row = (key, json.dumps(list(sentences)), model, prompt_tokens, completion_tokens, time.time())
        with self._open() as database:
            database.execute("INSERT OR IGNORE INTO translations VALUES (?, ?, ?, ?, ?, ?)", row)
            query = "SELECT sentences FROM translations WHERE key = ?"
            return tuple(json.loads(database.execute(query, (key,)).fetchone()[0]))

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """One transaction on a connection of its own, which no thread and no fork can share."""
        try:
            with closing(sqlite3.connect(self.path, timeout=_LOCK_TIMEOUT_S)) as database, database:
                yield database
        except sqlite3.Error as error:
            raise self._fault(error) from error

    def _fault(self, error: Exception) -> RuntimeError:
        return RuntimeError(
            f"the cache of translations {self.path} cannot be used: {error}. Free or mend that place, or "
            "give another folder as cache; what is stored there already stays valid."
        )
