"""A preset and a seed become the experiment's data: stories and cloze items, spoken, as units, in Parquet.

    DIR/data/stories/                 train, validation and test stories (story rows)
    DIR/data/spoken-topiccloze/       configs en, fr, en-fr, fr-en; split test (or dev, for tuning)
    DIR/data/spoken-storycloze/       the same
    DIR/audio_tokenizer/              the embedded tokenizer, with the merges beside it

Tokenizer, normalization and merges see training speech only. Every distinct sentence is spoken and encoded
once. Nothing here is random but by the seed.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from ..configuration_clsi_units import ClsiUnitsConfig
from ..modeling_clsi_units import ClsiUnitsModel
from ..rows.schema import cloze_columns
from ..rows.shards import write_shards
from ..speech.audio import resample
from ..speech.synthesis import EspeakEngine, synthesize_many
from ..text.cloze import TASKS, ClozeItem, directions, draw_items
from ..text.stories import Holdout, StoryPlan, draw_stories, tell, tell_phrases
from ..units.encode import encode_waveforms
from ..units.kmeans import fit_units
from ..units.merges import UnitMerges
from .presets import Preset

logger = logging.getLogger(__name__)

HOLDOUTS = ("strict", "tuple")
_PORTION = 2000  # sentences encoded at a time: bounds memory to a few hundred MB of waveforms


@dataclass(frozen=True)
class Texts:
    """Everything that will be spoken, before it is."""

    train: list[StoryPlan]
    validation: list[StoryPlan]
    items: list[ClozeItem]

    def plans(self) -> Iterable[StoryPlan]:
        """All stories, those of the items included."""
        yield from self.train
        yield from self.validation
        for item in self.items:
            yield item.prompt
            yield item.negative


def write_texts(preset: Preset, seed: int, split: str) -> Texts:
    """Stories and cloze items of a seed; `split` ("test" or "dev") says which held-out content items use."""
    holdout = Holdout(seed)
    return Texts(
        train=list(draw_stories(preset.train_stories, "train", holdout, seed)),
        validation=list(draw_stories(preset.dev_stories, "dev", holdout, seed)),
        items=[
            item
            for task in TASKS
            for rule in HOLDOUTS
            for item in draw_items(task, preset.items, split, rule, holdout, seed, preset.same_character)
        ],
    )


class Reader:
    """Speaks sentences at the tokenizer's rate, each distinct phrase synthesized once.

    Reading by phrases: every phrase is an utterance of its own, followed by a pause of at least `pause_s` that
    ends on a whole frame of `hop_length` samples. Between two phrases the voice has stopped, so a phrase
    sounds alike wherever it stands; continuous speech at this budget was not learned (docs/miniature.md).
    """

    def __init__(self, preset: Preset, sampling_rate_hz: int, hop_length: int, num_processes: int, progress: bool):
        self.settings, self.sampling_rate_hz, self.hop_length = preset.speech, sampling_rate_hz, hop_length
        self.engine = EspeakEngine(rate_wpm=preset.speech.rate_wpm)
        self.num_processes, self.progress = num_processes, progress
        self._clips: dict[tuple[str, str], np.ndarray] = {}

    def parts(self, language: str, plan: StoryPlan) -> list[tuple[str, ...]]:
        """What is spoken as one utterance each, for every sentence of a story; punctuation inside is kept."""
        if self.settings.reading == "phrases":
            return [tuple(p.rstrip(".,") for p in phrases) for phrases in tell_phrases(plan, language)]
        return [(sentence,) for sentence in tell(plan, language)]

    def request(self, language: str, text: str):
        return self.engine.request(text, language, speaker=self.settings.speaker)

    def prepare(self, sentences: Sequence[tuple[str, tuple[str, ...]]]) -> None:
        """Synthesize all utterances of (language, parts) pairs that are not there yet."""
        wanted = dict.fromkeys((language, part) for language, parts in sentences for part in parts)
        missing = [key for key in wanted if key not in self._clips]
        clips = synthesize_many(
            [self.request(*key) for key in missing], self.engine, self.num_processes, self.progress
        )
        pause = round(self.settings.pause_s * self.sampling_rate_hz)
        for key, clip in zip(missing, clips, strict=True):
            clip = resample(clip, self.engine.sampling_rate_hz, self.sampling_rate_hz)
            length = -(-(len(clip) + pause) // self.hop_length) * self.hop_length
            self._clips[key] = np.pad(clip, (0, length - len(clip)))

    def speak(self, language: str, parts: tuple[str, ...]) -> np.ndarray:
        """One sentence, float32 [n] at `sampling_rate_hz`."""
        return np.concatenate([self._clips[language, part] for part in parts])


class SpokenText:
    """Units of every distinct sentence, by (language, parts)."""

    def __init__(self, reader: Reader, tokenizer: ClsiUnitsModel | None = None):
        self.reader, self.tokenizer = reader, tokenizer
        self.units: dict[tuple[str, tuple[str, ...]], np.ndarray] = {}

    def encode(self, sentences: Sequence[tuple[str, tuple[str, ...]]], num_threads: int, progress: bool) -> None:
        """Encode the sentences that are not there yet, in portions, on several threads."""
        missing = [key for key in dict.fromkeys(sentences) if key not in self.units]
        portions = [missing[start : start + _PORTION] for start in range(0, len(missing), _PORTION)]

        def encode(portion):
            waveforms = [self.reader.speak(*key) for key in portion]
            return encode_waveforms(waveforms, self.tokenizer, progress=False)

        bar = tqdm(total=len(missing), desc="encode", unit="sentence", disable=not progress)
        with bar, ThreadPoolExecutor(num_threads) as pool:
            for portion, units in zip(portions, pool.map(encode, portions), strict=True):
                self.units.update(zip(portion, units, strict=True))
                bar.update(len(portion))

    def story(self, language: str, plan: StoryPlan) -> list[np.ndarray]:
        """Units of the story's sentences."""
        return [self.units[language, parts] for parts in self.reader.parts(language, plan)]


def build_data(preset: Preset, folder: Path, seed: int, split: str, num_processes: int, progress: bool) -> dict:
    """Build everything into `folder` (see the module's docstring) and return a summary for the report.

    A finished build of the same settings is kept; anything else in its place is made anew.
    """
    stamp = {"preset": preset.to_dict(), "seed": seed, "split": split}
    marker = folder / "data" / "build.json"
    if marker.is_file():
        found = json.loads(marker.read_text())
        if found["stamp"] == json.loads(json.dumps(stamp)):
            logger.info("data are there already: %s", marker.parent)
            return found["summary"]
    for stale in (folder / "data", folder / "audio_tokenizer"):
        shutil.rmtree(stale, ignore_errors=True)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # many small operations: threads would only wait for each other
    try:
        summary = _build(preset, folder, seed, split, num_processes, progress)
    finally:
        torch.set_num_threads(threads)
    marker.write_text(json.dumps({"stamp": stamp, "summary": summary}, indent=1) + "\n")
    return summary


def _build(preset: Preset, folder: Path, seed: int, split: str, num_processes: int, progress: bool) -> dict:
    texts = write_texts(preset, seed, split)
    config = ClsiUnitsConfig(**preset.units.config)
    reader = Reader(preset, config.sampling_rate, config.hop_length, num_processes, progress)
    languages = preset.languages

    train_sentences = _sentences(reader, texts.train, languages)
    everything = list(dict.fromkeys([*train_sentences, *_sentences(reader, texts.plans(), languages)]))
    reader.prepare(everything)

    rng = np.random.default_rng([seed, 4])
    chosen = _sample(rng, train_sentences, preset.units.fit_sentences)
    tokenizer = fit_units([reader.speak(*key) for key in chosen], config, seed=seed, progress=progress)
    spoken = SpokenText(reader, tokenizer.eval())
    spoken.encode(everything, num_processes, progress)
    chosen = _sample(rng, train_sentences, preset.units.merge_sentences)
    merges = UnitMerges.learn(
        [spoken.units[key] for key in chosen],
        config.num_units,
        preset.units.num_merges,
        deduplicate=preset.units.deduplicate,
        show_progress=False,
    )
    tokenizer.save_pretrained(folder / "audio_tokenizer")
    merges.save(folder / "audio_tokenizer")

    _write_stories(preset, folder / "data" / "stories", texts, spoken, seed)
    for task in TASKS:
        items = [item for item in texts.items if item.task == task]
        _write_items(preset, folder / "data" / f"spoken-{task}", items, spoken, split)
    lengths = {code: [len(spoken.units[key]) for key in train_sentences if key[0] == code] for code in languages}
    tokens = merges.encode([spoken.units[key] for key in train_sentences[:2000]])
    return {
        "train_stories": len(texts.train),
        "validation_stories": len(texts.validation),
        "distinct_sentences": len(everything),
        "distinct_utterances": len({(key[0], part) for key in everything for part in key[1]}),
        "units_per_sentence": {code: round(float(np.mean(values)), 2) for code, values in lengths.items()},
        "tokens_per_sentence": round(float(np.mean([len(t) for t in tokens])), 2),
        "num_units": merges.num_units,
        "num_merges": merges.num_merges,
        "frame_rate_hz": config.frame_rate,
        "codebook_digest": tokenizer.config.codebook_digest,
        "engine": reader.engine.record(reader.request(languages[0], "x"))["engine_version"],
        "voices": {code: reader.request(code, "x").voice for code in languages},
    }


def _sentences(reader: Reader, plans: Iterable[StoryPlan], languages: Sequence[str]) -> list:
    """Distinct (language, parts) of some stories, in the order in which they come."""
    return list(
        dict.fromkeys((code, parts) for plan in plans for code in languages for parts in reader.parts(code, plan))
    )


def _sample(rng: np.random.Generator, keys: list, size: int) -> list:
    return [keys[i] for i in sorted(rng.permutation(len(keys))[:size])]


def _write_stories(preset: Preset, folder: Path, texts: Texts, spoken: SpokenText, seed: int) -> None:
    record = {"engine": "espeak-ng", "rate_wpm": preset.speech.rate_wpm, "seed": seed}

    def rows(name: str, plans: list[StoryPlan]):
        for number, plan in enumerate(plans):
            row = {"story_id": f"{name}-{number:06d}", "speaker": preset.speech.speaker, "topic": plan.topic}
            for code in preset.languages:
                row[f"units_{code}"] = spoken.story(code, plan)
                row[f"text_{code}"] = tell(plan, code)
                row[f"voice_{code}"] = spoken.reader.request(code, "x").voice
            yield row | record

    for name, plans in (("train", texts.train), ("validation", texts.validation)):
        write_shards(rows(name, plans), folder, name, kind="story", languages=list(preset.languages))


def _write_items(preset: Preset, folder: Path, items: list[ClozeItem], spoken: SpokenText, split: str) -> None:
    extra = ("pair_id", "task", "holdout", "topic", "negative_topic")
    for prompt_language, ending_language in directions(preset.languages):

        def rows(prompt_language=prompt_language, ending_language=ending_language):
            for item in items:
                texts = item.texts(prompt_language, ending_language)
                yield {
                    "id": item.id,
                    "speaker": preset.speech.speaker,
                    "prompt_language": prompt_language,
                    "ending_language": ending_language,
                    **texts,
                    "prompt_text": " ".join(texts["prompt_text"]),
                    "prompt_units": spoken.story(prompt_language, item.prompt)[:-1],
                    "correct_units": spoken.story(ending_language, item.prompt)[-1],
                    "negative_units": spoken.story(ending_language, item.negative)[-1],
                    "pair_id": item.pair_id,
                    "task": item.task,
                    "holdout": item.holdout,
                    "topic": item.prompt.topic,
                    "negative_topic": item.negative.topic,
                }

        config = (
            prompt_language if prompt_language == ending_language else f"{prompt_language}-{ending_language}"
        )
        columns = cloze_columns(text=True, audio=False, extra=extra)
        write_shards(rows(), folder, split, kind="cloze", config=config, columns=columns)
