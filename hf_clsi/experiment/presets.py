"""Presets of the experiment: every choice that `hf-clsi reproduce` makes, in one place.

The choices of `tiny` were made on the dev split (docs/miniature.md says what was tried); test items play no
part in them. `gpu` keeps the same stations at a larger size; it has not been run on the machine that it is
for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..training.recipes import TrainingPreset
from ..training.settings import with_changes
from ..training.sizes import size


@dataclass(frozen=True)
class SpeechSettings:
    """How text becomes speech.

    Attributes:
        speakers: voice variants of espeak-ng; a story has one speaker, the same in both languages.
        rate_wpm: words per minute.
        reading: "phrases" speaks every phrase as its own utterance, as a slow reader does, with a pause that
            ends on a whole frame; "sentences" speaks whole sentences.
        pause_s: least pause between two phrases.
    """

    speakers: tuple[str, ...] = ("m3",)
    rate_wpm: int = 200
    reading: str = "phrases"
    pause_s: float = 0.08

    def __post_init__(self):
        if self.reading not in ("phrases", "sentences"):
            raise ValueError(f"reading must be 'phrases' or 'sentences', got '{self.reading}'.")
        if not self.speakers:
            raise ValueError("speakers is empty; name at least one voice variant of espeak-ng.")
        if self.pause_s < 0:
            raise ValueError(f"pause_s must not be negative, got {self.pause_s}.")


@dataclass(frozen=True)
class UnitSettings:
    """How speech becomes units.

    Attributes:
        config: arguments of ClsiUnitsConfig.
        num_merges: byte-pair merges on top; 0: the model sees plain units.
        deduplicate: the model sees runs of equal units as one.
        fit_sentences, merge_sentences: distinct training sentences that the codebook and the merges are
            learned from, at most.
    """

    config: dict[str, Any] = field(
        default_factory=lambda: {"num_units": 64, "hop_length": 1280, "normalization": "global"}
    )
    num_merges: int = 1900
    deduplicate: bool = True
    fit_sentences: int = 3000
    merge_sentences: int = 8000


@dataclass(frozen=True)
class Preset:
    """All settings of one experiment.

    Attributes:
        train_stories, dev_stories: how many stories are written for each split.
        items: cloze items per cell (task, hold-out rule and direction); even.
        alignment_pairs: aligned held-out sentences for the hidden-state alignment.
        same_character: see text/cloze.py.
        headline: the reading that the report leads with, chosen on dev.
    """

    name: str
    train_stories: int
    dev_stories: int
    items: int
    alignment_pairs: int
    training: TrainingPreset
    speech: SpeechSettings = SpeechSettings()
    units: UnitSettings = UnitSettings()
    languages: tuple[str, str] = ("en", "fr")
    same_character: bool = True
    headline: dict[str, str] = field(
        default_factory=lambda: {"holdout": "strict", "span": "whole", "normalization": "sum"}
    )

    def __post_init__(self):
        least = {"train_stories": 2, "dev_stories": 1, "items": 2, "alignment_pairs": 2}
        for name, number in least.items():
            if getattr(self, name) < number:
                raise ValueError(f"{name} must be at least {number}, got {getattr(self, name)}.")
        if self.items % 2:
            raise ValueError(f"items must be even, since they come in symmetric pairs; got {self.items}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain types, as saved with the results."""
        return asdict(self)


def tiny() -> Preset:
    """Minutes on two cores: 24 topics, 2 layers of 96."""
    return Preset(
        name="tiny",
        train_stories=5000,
        dev_stories=240,
        items=864,
        alignment_pairs=400,
        training=size("tiny"),
    )


def small() -> Preset:
    """More stories, a wider model, 2.7 times the budget: an estimated half hour on two cores; not tuned."""
    return Preset(
        name="small",
        train_stories=10_000,
        dev_stories=480,
        items=1200,
        alignment_pairs=600,
        training=size("small"),
    )


def gpu() -> Preset:
    """For one accelerator: whole sentences at natural prosody, plain units, a 12-layer model in bfloat16."""
    return Preset(
        name="gpu",
        train_stories=60_000,
        dev_stories=960,
        items=1920,
        alignment_pairs=1000,
        training=size("gpu"),
        speech=SpeechSettings(rate_wpm=175, reading="sentences"),
        units=UnitSettings(
            config={"num_units": 256, "hop_length": 640, "normalization": "global"},
            num_merges=0,
            fit_sentences=20_000,
        ),
    )


PRESETS = {"tiny": tiny, "small": small, "gpu": gpu}


def preset(name: str, changes: Mapping[str, Any] | None = None) -> Preset:
    """A preset by name, with some settings changed.

    Args:
        changes: dotted names of fields and their new values, for example
            `{"training.budget_tokens": 40_000, "training.model.text_config.hidden_size": 64}`.

    Raises:
        ValueError: no such preset or setting (the message lists those that there are), or a value of another
            type than the setting's.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset '{name}'; choose from {', '.join(PRESETS)}.")
    return with_changes(PRESETS[name](), changes or {})
