"""Units become runs of equal units, and frames become seconds."""

from __future__ import annotations

import numpy as np


def _starts(units: np.ndarray) -> np.ndarray:
    """Bool [n]: true where a run of equal units starts."""
    units = np.asarray(units)
    if units.ndim != 1:
        raise ValueError(f"Units must be one-dimensional, got shape {units.shape}.")
    starts = np.ones(len(units), dtype=bool)
    np.not_equal(units[1:], units[:-1], out=starts[1:])
    return starts


def collapse(units: np.ndarray) -> np.ndarray:
    """Runs of equal units [n] become one unit each [m <= n]; the dtype stays.

    >>> collapse(np.array([7, 7, 3, 3, 3, 7], dtype=np.uint16))
    array([7, 3, 7], dtype=uint16)
    """
    return np.asarray(units)[_starts(units)]


def collapse_ragged(flat: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`collapse` on many sentences at once; a run never reaches over a sentence border.

    Args:
        flat: units of all sentences one after the other, [n].
        offsets: sentence i is flat[offsets[i]:offsets[i + 1]], [m + 1] from 0 to n, never decreasing.

    Returns:
        flat [n' <= n] and offsets [m + 1] (int64) of the collapsed sentences.

    >>> collapse_ragged(np.array([5, 5, 5, 2]), np.array([0, 2, 4]))
    (array([5, 5, 2]), array([0, 1, 3]))
    """
    flat, offsets = np.asarray(flat), np.asarray(offsets, dtype=np.int64)
    if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(flat) or (np.diff(offsets) < 0).any():
        raise ValueError(f"offsets must rise from 0 to {len(flat)}, the number of units; got {offsets}.")
    starts = _starts(flat)
    starts[offsets[:-1][offsets[:-1] < len(flat)]] = True
    before = np.concatenate([[0], np.cumsum(starts)])
    return flat[starts], before[offsets]


def run_lengths(units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Units [n] -> the unit of each run [m] and its length in frames [m] (int64).

    >>> run_lengths(np.array([7, 7, 3, 7]))
    (array([7, 3, 7]), array([2, 1, 1]))
    """
    units = np.asarray(units)
    first = np.flatnonzero(_starts(units))
    return units[first], np.diff(first, append=len(units))


def frames_to_seconds(frames, frame_rate_hz: float):
    """Frames (a number or an array) -> seconds."""
    return frames / frame_rate_hz


def seconds_to_frames(seconds, frame_rate_hz: float):
    """Seconds (a number or an array) -> whole frames, rounded up: what holds that much audio."""
    # The small step down keeps 0.07 s * 100 Hz = 7.000000000000001 from becoming 8 frames.
    return np.ceil(np.asarray(seconds) * frame_rate_hz - 1e-9).astype(np.int64)[()]
