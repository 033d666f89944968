"""A preset and a seed become the experiment's data: stories and cloze items, spoken, as units, in Parquet.

    DIR/data/stories/                 train and validation stories (story rows)
    DIR/data/spoken-topiccloze/       configs en, fr, en-fr, fr-en; split test (or dev, for tuning)
    DIR/data/spoken-storycloze/       the same
    DIR/data/build.json               written last: settings, summary, seconds
    DIR/audio_tokenizer/              the embedded tokenizer, with the merges beside it

Tokenizer, normalization and merges see training speech only. Every distinct sentence is spoken and encoded
once. Nothing here is random but by the seed, and nothing depends on the number of processes.

Memory: the texts and units of everything, and the waveforms of the sentences that the tokenizer is fitted on,
of one block of sentences, and of the utterances that later blocks share with it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..configuration_clsi_units import ClsiUnitsConfig
from ..modeling_clsi_units import ClsiUnitsModel
from ..rows.cards import PAPER_CITATION, DatasetCard, Licence, Step, write_card
from ..rows.schema import METADATA, cloze_columns, story_columns
from ..rows.shards import write_shards
from ..speech.audio import resample
from ..speech.synthesis import EspeakEngine, SynthesisRequest, synthesize_many
from ..text.cloze import TASKS, ClozeItem, direction_name, directions, draw_items
from ..text.stories import Holdout, StoryPlan, draw_stories, tell, tell_phrases
from ..units.encode import encode_waveforms
from ..units.kmeans import fit_units
from ..units.merges import UnitMerges
from ..units.tokenizers import tokenizer_label
from .presets import PRESETS, Preset

logger = logging.getLogger(__name__)

HOLDOUTS = ("strict", "tuple")
_PORTION = 1000  # sentences that a thread encodes at a time; the same for any number of threads


@dataclass(frozen=True)
class Told:
    """A story and who tells it."""

    speaker: str
    plan: StoryPlan


#: A sentence to be spoken: language, speaker, and the parts that are one utterance each.
Sentence = tuple[str, str, tuple[str, ...]]


@dataclass(frozen=True)
class Texts:
    """Everything that will be spoken, before it is. Both stories of a cloze pair have one speaker."""

    train: list[Told]
    validation: list[Told]
    items: list[tuple[str, ClozeItem]]

    def stories(self) -> Iterable[Told]:
        """All stories, those of the items included."""
        yield from self.train
        yield from self.validation
        for speaker, item in self.items:
            yield Told(speaker, item.prompt)
            yield Told(speaker, item.negative)


def write_texts(preset: Preset, seed: int, split: str) -> Texts:
    """Stories and cloze items of a seed; `split` ("test" or "dev") says which held-out content items use."""
    holdout = Holdout(seed)
    rng = np.random.default_rng([seed, 5])

    def speaker() -> str:
        return preset.speech.speakers[rng.integers(len(preset.speech.speakers))]

    def told(num_stories: int, name: str) -> list[Told]:
        return [Told(speaker(), plan) for plan in draw_stories(num_stories, name, holdout, seed)]

    train, validation = told(preset.train_stories, "train"), told(preset.dev_stories, "dev")
    items, of_pair = [], {}
    for task in TASKS:
        for rule in HOLDOUTS:
            for item in draw_items(task, preset.items, split, rule, holdout, seed, preset.same_character):
                if item.pair_id not in of_pair:
                    of_pair[item.pair_id] = speaker()
                items.append((of_pair[item.pair_id], item))
    return Texts(train, validation, items)


class Reader:
    """Speaks sentences at the tokenizer's rate, each distinct utterance synthesized once.

    Reading by phrases: every phrase is an utterance of its own, followed by a pause of at least `pause_s`
    that ends on a whole frame of `hop_length` samples. Between two phrases the voice has stopped, so a phrase
    sounds alike wherever it stands; continuous speech at this budget was not learned (docs/miniature.md).
    Reading by sentences: a sentence is one utterance, followed by the same pause.
    """

    def __init__(self, preset: Preset, seed: int, sampling_rate_hz: int, hop_length: int, num_processes: int):
        self.settings, self.seed = preset.speech, seed
        self.sampling_rate_hz, self.hop_length = sampling_rate_hz, hop_length
        self.engine = EspeakEngine(rate_wpm=preset.speech.rate_wpm)
        self.num_processes = num_processes
        self._clips: dict[tuple[str, str, str], np.ndarray] = {}

    def sentences(self, language: str, story: Told) -> list[Sentence]:
        """A story's sentences, each as what is spoken as one utterance; punctuation inside is kept."""
        if self.settings.reading == "phrases":
            told = [tuple(p.rstrip(".,") for p in phrases) for phrases in tell_phrases(story.plan, language)]
        else:
            told = [(sentence,) for sentence in tell(story.plan, language)]
        return [(language, story.speaker, parts) for parts in told]

    def request(self, language: str, speaker: str, text: str) -> SynthesisRequest:
        return self.engine.request(text, language, speaker=speaker, seed=self.seed)

    def record(self) -> dict[str, Any]:
        """How everything was spoken, as columns of a row."""
        return {
            "engine": self.engine.name,
            "licence": self.engine.licence,
            "rate_wpm": self.settings.rate_wpm,
            "reading": self.settings.reading,
            "pause_s": self.settings.pause_s,
            "seed": self.seed,
        }

    def prepare(self, sentences: Iterable[Sentence], progress: bool = False) -> None:
        """Synthesize the utterances of some sentences that are not there yet."""
        wanted = dict.fromkeys(utterance for sentence in sentences for utterance in _utterances(sentence))
        missing = [key for key in wanted if key not in self._clips]
        clips = synthesize_many(
            [self.request(*key) for key in missing], self.engine, self.num_processes, progress
        )
        pause = round(self.settings.pause_s * self.sampling_rate_hz)
        for key, clip in zip(missing, clips, strict=True):
            clip = resample(clip, self.engine.sampling_rate_hz, self.sampling_rate_hz)
            length = -(-(len(clip) + pause) // self.hop_length) * self.hop_length
            self._clips[key] = np.pad(clip, (0, length - len(clip)))

    def speak(self, sentence: Sentence) -> np.ndarray:
        """One prepared sentence, float32 [n] at `sampling_rate_hz`."""
        return np.concatenate([self._clips[utterance] for utterance in _utterances(sentence)])

    def forget(self, utterance: tuple[str, str, str]) -> None:
        """Drop the waveform of a (language, speaker, text)."""
        self._clips.pop(utterance, None)


def _utterances(sentence: Sentence) -> list[tuple[str, str, str]]:
    """(language, speaker, text) of everything in a sentence that is spoken by itself."""
    language, speaker, parts = sentence
    return [(language, speaker, part) for part in parts]


class SpokenText:
    """Units of every distinct sentence."""

    def __init__(self, reader: Reader, tokenizer: ClsiUnitsModel):
        self.reader, self.tokenizer = reader, tokenizer
        self.units: dict[Sentence, np.ndarray] = {}

    def encode(self, sentences: Iterable[Sentence], num_threads: int, progress: bool) -> None:
        """Speak and encode the sentences that are not there yet, a block for all threads at a time.

        An utterance's waveform is dropped after the last of these sentences that has it.
        """
        missing = [key for key in dict.fromkeys(sentences) if key not in self.units]
        uses = Counter(utterance for sentence in missing for utterance in _utterances(sentence))
        portions = [missing[start : start + _PORTION] for start in range(0, len(missing), _PORTION)]

        def encode(portion: list[Sentence]) -> list[np.ndarray]:
            waveforms = [self.reader.speak(sentence) for sentence in portion]
            return encode_waveforms(waveforms, self.tokenizer, progress=False)

        bar = tqdm(total=len(missing), desc="speak and encode", unit=" sentences", disable=not progress)
        with bar, ThreadPoolExecutor(num_threads) as pool:
            for start in range(0, len(portions), num_threads):
                block = portions[start : start + num_threads]
                self.reader.prepare(sentence for portion in block for sentence in portion)
                for portion, units in zip(block, pool.map(encode, block), strict=True):
                    self.units.update(zip(portion, units, strict=True))
                    bar.update(len(portion))
                used = Counter(
                    utterance
                    for portion in block
                    for sentence in portion
                    for utterance in _utterances(sentence)
                )
                uses -= used  # keeps what is left above zero
                for utterance in used.keys() - uses.keys():
                    self.reader.forget(utterance)

    def story(self, language: str, story: Told) -> list[np.ndarray]:
        """Units of the story's sentences."""
        return [self.units[sentence] for sentence in self.reader.sentences(language, story)]


def build_data(
    preset: Preset, folder: Path, seed: int, split: str, num_processes: int, progress: bool
) -> dict[str, Any]:
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

    started = time.monotonic()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # many small operations: threads would only wait for each other
    try:
        summary = _build(preset, folder, seed, split, num_processes, progress)
    finally:
        torch.set_num_threads(threads)
    seconds = round(time.monotonic() - started, 1)
    write_json(marker, {"stamp": stamp, "summary": summary, "seconds": seconds})
    return summary


def write_json(path: Path, content: Any) -> None:
    """Write beside and rename, so that nobody ever finds half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)


def _build(
    preset: Preset, folder: Path, seed: int, split: str, num_processes: int, progress: bool
) -> dict[str, Any]:
    texts = write_texts(preset, seed, split)
    config = ClsiUnitsConfig(**preset.units.config)
    reader = Reader(preset, seed, config.sampling_rate, config.hop_length, num_processes)
    languages = preset.languages

    train_sentences = _sentences(reader, texts.train, languages)
    everything = list(dict.fromkeys([*train_sentences, *_sentences(reader, texts.stories(), languages)]))

    rng = np.random.default_rng([seed, 4])
    chosen = _sample(rng, train_sentences, preset.units.fit_sentences)
    reader.prepare(chosen, progress)
    tokenizer = fit_units(lambda: _waveforms(reader, chosen), config, seed=seed, progress=progress)
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

    record = reader.record() | {"audio_tokenizer": tokenizer_label(tokenizer, None)}
    made = _Making(preset, seed, split, spoken, record)
    _write_stories(made, folder / "data" / "stories", texts)
    for task in TASKS:
        items = [(speaker, item) for speaker, item in texts.items if item.task == task]
        _write_items(made, folder / "data" / f"spoken-{task}", items)
    lengths = {
        code: [len(spoken.units[key]) for key in train_sentences if key[0] == code] for code in languages
    }
    tokens = merges.encode([spoken.units[key] for key in train_sentences[:2000]])
    return {
        "train_stories": len(texts.train),
        "validation_stories": len(texts.validation),
        "distinct_sentences": len(everything),
        "distinct_utterances": len({part for sentence in everything for part in _utterances(sentence)}),
        "units_per_sentence": {code: round(float(np.mean(values)), 2) for code, values in lengths.items()},
        "tokens_per_sentence": round(float(np.mean([len(t) for t in tokens])), 2),
        "num_units": merges.num_units,
        "num_merges": merges.num_merges,
        "frame_rate_hz": config.frame_rate,
        "codebook_digest": tokenizer.config.codebook_digest,
        "engine": f"{reader.engine.name} {reader.engine.version}",
        "voices": {code: _voices(reader, code) for code in languages},
        "licence": f"{reader.engine.licence}. {reader.engine.licence_note}",
    }


def _sentences(reader: Reader, stories: Iterable[Told], languages: Sequence[str]) -> list[Sentence]:
    """Distinct sentences of some stories, in the order in which they come."""
    return list(
        dict.fromkeys(
            sentence for story in stories for code in languages for sentence in reader.sentences(code, story)
        )
    )


def _sample(rng: np.random.Generator, keys: list, size: int) -> list:
    return [keys[i] for i in sorted(rng.permutation(len(keys))[:size])]


def _waveforms(reader: Reader, sentences: Sequence[Sentence]) -> Iterator[np.ndarray]:
    for sentence in sentences:
        yield reader.speak(sentence)


def _voices(reader: Reader, language: str) -> list[str]:
    return [reader.engine.voice_for(language, speaker) for speaker in reader.settings.speakers]


@dataclass(frozen=True)
class _Making:
    """What the datasets of a run share. record: how everything was spoken and encoded, as columns of rows."""

    preset: Preset
    seed: int
    split: str
    spoken: SpokenText
    record: dict[str, Any]


def _write_stories(made: _Making, folder: Path, texts: Texts) -> None:
    preset, spoken = made.preset, made.spoken
    names = ("topic", *(f"voice_{code}" for code in preset.languages))
    metadata = {**dict.fromkeys(names, "string"), **_record_columns(made.record)}
    columns = story_columns(preset.languages, text=True, audio=False, extra=metadata)

    def rows(name: str, stories: list[Told]):
        for number, story in enumerate(stories):
            row = {"story_id": f"{name}-{number:06d}", "speaker": story.speaker, "topic": story.plan.topic}
            for code in preset.languages:
                row[f"units_{code}"] = spoken.story(code, story)
                row[f"text_{code}"] = tell(story.plan, code)
                row[f"voice_{code}"] = spoken.reader.engine.voice_for(code, story.speaker)
            yield row | made.record

    sizes = {}
    for name, stories in (("train", texts.train), ("validation", texts.validation)):
        shards = write_shards(rows(name, stories), folder, name, kind="story", columns=columns)
        units = Counter()
        for story in stories:
            units.update({code: sum(map(len, spoken.story(code, story))) for code in preset.languages})
        sizes[name] = _size(made, len(stories), len(shards), units)
    summary = "Short stories of a bilingual grammar, aligned sentence by sentence, as discrete speech units."
    _write_card(made, folder, "story", summary, {None: columns}, {None: sizes})


def _write_items(made: _Making, folder: Path, items: list[tuple[str, ClozeItem]]) -> None:
    preset, spoken = made.preset, made.spoken
    names = ("pair_id", "task", "holdout", "topic", "negative_topic", "prompt_voice", "ending_voice")
    metadata = {**dict.fromkeys(names, "string"), **_record_columns(made.record)}
    columns = cloze_columns(text=True, audio=False, extra=metadata)
    voice_for = spoken.reader.engine.voice_for
    sizes = {}
    for prompt_language, ending_language in directions(preset.languages):
        units: Counter[str] = Counter()

        def rows(prompt_language=prompt_language, ending_language=ending_language, units=units):
            for speaker, item in items:
                prompt, negative = Told(speaker, item.prompt), Told(speaker, item.negative)
                texts = item.texts(prompt_language, ending_language)
                row = {
                    "id": item.id,
                    "speaker": speaker,
                    "prompt_language": prompt_language,
                    "ending_language": ending_language,
                    **texts,
                    "prompt_text": " ".join(texts["prompt_text"]),
                    "prompt_units": spoken.story(prompt_language, prompt)[:-1],
                    "correct_units": spoken.story(ending_language, prompt)[-1],
                    "negative_units": spoken.story(ending_language, negative)[-1],
                    "pair_id": item.pair_id,
                    "task": item.task,
                    "holdout": item.holdout,
                    "topic": item.prompt.topic,
                    "negative_topic": item.negative.topic,
                    "prompt_voice": voice_for(prompt_language, speaker),
                    "ending_voice": voice_for(ending_language, speaker),
                    **made.record,
                }
                units[prompt_language] += sum(map(len, row["prompt_units"]))
                units[ending_language] += len(row["correct_units"]) + len(row["negative_units"])
                yield row

        config = direction_name(prompt_language, ending_language)
        shards = write_shards(rows(), folder, made.split, kind="cloze", config=config, columns=columns)
        sizes[config] = {made.split: _size(made, len(items), len(shards), units)}
    summary = (
        "Cloze items: four sentences of a story and two endings, one of them wrong. A config is a direction; "
        "one `id` is the same item in all."
    )
    _write_card(made, folder, "cloze", summary, dict.fromkeys(sizes, columns), sizes)


def _size(made: _Making, rows: int, shards: int, units: Mapping[str, int]) -> dict[str, Any]:
    """A split as cards have it. Everything that was spoken is a whole number of frames long."""
    rate = made.spoken.tokenizer.config.frame_rate
    seconds = {code: number / rate for code, number in units.items()}
    return {"rows": rows, "shards": shards, "seconds": seconds, "units": dict(units)}


def _record_columns(record: dict[str, Any]) -> dict[str, str]:
    """Types of the columns that say how a row was made."""
    return {name: METADATA[name] for name in record}


def _write_card(
    made: _Making,
    folder: Path,
    kind: str,
    summary: str,
    columns: Mapping[str | None, Mapping[str, str]],
    splits: Mapping[str | None, Mapping[str, Mapping[str, Any]]],
) -> None:
    """The dataset's README.md."""
    settings, reader, config = made.preset.speech, made.spoken.reader, made.spoken.tokenizer.config
    engine, languages, most = reader.engine, made.preset.languages, made.preset.units.fit_sentences
    read = {
        "phrases": "every phrase an utterance of its own, as a slow reader does",
        "sentences": "every sentence an utterance of its own",
    }[settings.reading]
    command = f"hf-clsi reproduce --preset {made.preset.name} --seed {made.seed} --split {made.split}"
    as_named = made.preset.name in PRESETS and made.preset == PRESETS[made.preset.name]()
    card = DatasetCard(
        name=folder.name,
        kind=kind,
        summary=summary,
        languages=languages,
        columns=columns,
        splits=splits,
        num_units=config.num_units,
        frame_rate_hz=config.frame_rate,
        audio_tokenizer=made.record["audio_tokenizer"],
        tokenizer_origin=f"fitted on at most {most:,} sentences of the training stories",
        steps=[
            Step("Stories were drawn from a bilingual grammar.", settings={"seed": made.seed}),
            Step(
                f"They were spoken, {read}, followed by a pause of at least {settings.pause_s:g} s that ends "
                "on a whole frame.",
                engine=f"{engine.name} {engine.version}",
                settings={"rate_wpm": settings.rate_wpm, "seed": made.seed},
            ),
        ],
        command=f"{command} --output-dir out" if as_named else None,
        voices=[
            {
                "speaker": speaker,
                "voices": {code: engine.voice_for(code, speaker) for code in languages},
                "licences": dict.fromkeys(languages, engine.licence),
            }
            for speaker in settings.speakers
        ],
        licence="apache-2.0",
        licences=[
            Licence("text", "Apache-2.0", "the story grammar of hf_clsi"),
            Licence("speech", f"{engine.licence}. {engine.licence_note}", f"{engine.name} {engine.version}"),
        ],
        limits=[
            "Texts and speech are synthetic: a grammar of few topics and fixed frames, and a synthesizer.",
            "This is a miniature: no number measured on it can be put beside a number of the paper.",
            *(["Two items with the same `pair_id` swap what is right."] if kind == "cloze" else []),
        ],
        citation=PAPER_CITATION,
    )
    write_card(folder, card)
