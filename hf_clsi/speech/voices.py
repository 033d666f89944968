"""Speakers -> the table of those whose voice stays the same in every language, and who are therefore kept.

    table = compare_voices(EspeakEngine(), ESPEAK_SPEAKERS, ("en", "fr"), load_verifier())
    table.save("voices")  # voices.json, voices.md, voices.png
    table.kept            # ["f3", ...]: what to draw speakers from

The paper keeps the 44 voices of its synthesizer whose English and French speech verify as one speaker, by a
cosine of WavLM speaker embeddings above 0.90. How many sentences it used, and how it averaged, is unknown;
here a voice is the mean of the unit embeddings of a dozen sentences in each language. Whether a threshold
selects anything shows only beside what the paper does not report: the ceiling (two halves of one voice's
sentences in one language), the floor (two different speakers) and how many pairs of different speakers pass.

The cost is that of embedding the clips; the floor adds a matrix product, speakers by speakers.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from hf_clsi.speech.audio import AudioError, read_audio
from hf_clsi.speech.synthesis import SynthesisEngine, SynthesisRequest, synthesize_many
from hf_clsi.speech.verifiers import DEFAULT_VERIFIER, SpeechVerifier, embed_speech, load_verifier
from hf_clsi.text.drops import Drop, Drops
from hf_clsi.text.languages import LANGUAGES
from hf_clsi.text.stories import SENTENCES_PER_STORY, Holdout, draw_stories, tell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "DEFAULT_VERIFIER",
    "Voice",
    "VoiceTable",
    "compare_recordings",
    "compare_voices",
    "default_texts",
    "embed_speech",
    "load_verifier",
]

logger = logging.getLogger(__name__)

THRESHOLD = 0.90  # the paper's
NUM_SENTENCES = 12
NUM_BOOTSTRAP_SAMPLES = 2000
NUM_SPLITS = 100  # random halvings that a ceiling is the mean of
PORTION_CLIPS = 256  # waveforms in memory at a time
UNKNOWN_LICENCE = "unknown"


@dataclass(frozen=True)
class Voice:
    """One speaker of the table.

    voices, licences, n, halves: by language, the engine's voice (the speaker, for recordings), the licence of
    its speech, the number of clips, and the mean cosine of two halves of them (this voice's own ceiling).
    pairs: "en-fr" -> cosine of the two languages. cosine: the smallest of the pairs. ci95: its 95% interval
    over sentences (see `compare_voices`). kept: cosine > threshold. closest: the other speaker who, in
    another language, is most like this one, and the cosine; None where there is no other.
    """

    speaker: str
    voices: Mapping[str, str]
    licences: Mapping[str, str]
    cosine: float
    ci95: tuple[float, float]
    n: Mapping[str, int]
    kept: bool
    pairs: Mapping[str, float]
    halves: Mapping[str, float]
    closest: tuple[str, float] | None


@dataclass(frozen=True)
class VoiceTable:
    """Which speakers keep their voice from language to language.

    rows: by falling cosine. threshold: a voice is kept above it, not at it. settings: verifier, engine, seed,
    numbers of sentences, as JSON values. yardsticks: what the cosines are to be compared with,

        same_language     ceiling, `Voice.halves` of all speakers: {mean, min, max, n}
        other_speakers    floor, speaker A in one language and speaker B in the other: {mean, min, max, n}
        other_speakers_same_language    the same within a language
        passing           pairs of `other_speakers` above the threshold: {count, n}
        equal_error       threshold at which the share of voices lost equals that of other speakers let in:
                          {threshold, rate}

    n counts cosines; where there is none (a single speaker) the entry is None. dropped: recordings that could
    not be used.
    """

    rows: tuple[Voice, ...]
    languages: tuple[str, ...]
    threshold: float
    settings: Mapping[str, Any]
    yardsticks: Mapping[str, Any]
    dropped: Drops = field(default_factory=Drops)

    @property
    def kept(self) -> list[str]:
        """The speakers above the threshold, best first."""
        return [row.speaker for row in self.rows if row.kept]

    def summary(self) -> str:
        """One line: `3 of 14 voices kept: cosine of en and fr above 0.9 (spectral)`."""
        line = f"{len(self.kept)} of {len(self.rows)} voices kept: cosine of {' and '.join(self.languages)}"
        line += f" above {self.threshold:g} ({self.settings['verifier']})"
        if not self.kept:
            best = self.rows[0]
            line += f"; the highest is {best.cosine:.4f} ({_shown(best.speaker)})"
        return line

    def save(self, folder: str | os.PathLike) -> list[Path]:
        """Write voices.json, voices.md and voices.png, each whole or not at all; returns their paths.

        The folder is made if it does not exist. The same table gives the same bytes.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        contents = {
            "voices.json": json.dumps(self.to_dict(), indent=2, ensure_ascii=False).encode() + b"\n",
            "voices.md": self.to_markdown().encode(),
            "voices.png": _png(draw_table(self)),
        }
        for name, content in contents.items():
            temporary = folder / f".{name}.partial"
            temporary.write_bytes(content)
            os.replace(temporary, folder / name)
        return [folder / name for name in contents]

    @classmethod
    def load(cls, path: str | os.PathLike) -> VoiceTable:
        """Read a table back from its voices.json or the folder of it.

        Raises:
            FileNotFoundError: there is none.
            ValueError: the file holds something else.
        """
        path = Path(path)
        path = path / "voices.json" if path.is_dir() else path
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file; VoiceTable.save(folder) writes it")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            rows = tuple(
                Voice(
                    **{
                        **row,
                        "ci95": tuple(row["ci95"]),
                        "closest": None if row["closest"] is None else tuple(row["closest"]),
                    }
                )
                for row in values["voices"]
            )
            return cls(
                rows,
                tuple(values["languages"]),
                values["threshold"],
                values["settings"],
                values["yardsticks"],
                Drops(values["dropped"]),
            )
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is no voice table as VoiceTable.save writes it: {error!r}") from error

    def to_dict(self) -> dict[str, Any]:
        """The contents of voices.json."""
        return {
            "kept": self.kept,
            "threshold": self.threshold,
            "languages": list(self.languages),
            "settings": dict(self.settings),
            "yardsticks": dict(self.yardsticks),
            "voices": [asdict(row) for row in self.rows],
            "dropped": [drop.to_dict() for drop in self.dropped],
        }

    def to_markdown(self) -> str:
        """The contents of voices.md: verdict, yardsticks, table, how it was made."""
        lines = ["# Voices", "", f"{self.summary()}.", "", "![Cosine by voice](voices.png)", ""]
        lines += ["| cosine of | mean | from | to | n |", "|---|--:|--:|--:|--:|"]
        cosines = [row.cosine for row in self.rows]
        yardsticks = self.yardsticks
        names = {
            "same voice, other language (this is what the threshold is applied to)": _spread(cosines),
            "same voice, same language, other sentences (ceiling)": yardsticks["same_language"],
            "other voice, other language (floor)": yardsticks["other_speakers"],
            "other voice, same language": yardsticks["other_speakers_same_language"],
        }
        for name, values in names.items():
            if values is None:
                lines.append(f"| {name} | – | – | – | 0 |")
            else:
                low, mean, high = (f"{values[key]:.4f}" for key in ("min", "mean", "max"))
                lines.append(f"| {name} | {mean} | {low} | {high} | {values['n']} |")
        lines.append("")
        if yardsticks["passing"] is not None:
            passing, equal = yardsticks["passing"], yardsticks["equal_error"]
            lines += [
                f"Pairs of **different** voices above the threshold of {self.threshold:g}: "
                f"{passing['count']} of {passing['n']}. At a threshold of {equal['threshold']:.4f} as large "
                "a share of voices is lost as of other voices is let in: "
                f"{100 * equal['rate']:.1f}%. (The paper reports neither.)",
                "",
            ]
        lines += self._table_lines()
        lines += [
            "",
            "cosine: of the mean unit embeddings of two languages"
            + (", the smallest of all pairs of languages" if len(self.languages) > 2 else "")
            + "; 95%: bootstrap over the sentences; halves: of one language's sentences, embedded apart.",
            "",
        ]
        if self.dropped:
            counts = ", ".join(f"{reason} {count}" for reason, count in self.dropped.counts().items())
            lines += [f"Recordings left out: {len(self.dropped)} ({counts}); voices.json lists them.", ""]
        lines += [f"- {key}: {_text_of(value)}" for key, value in self.settings.items()]
        return "\n".join(lines) + "\n"

    def _table_lines(self) -> list[str]:
        pairs = [_pair_name(*pair) for pair in combinations(self.languages, 2)]
        shown_pairs = pairs if len(pairs) > 1 else []
        # Recordings have no voice but their speaker.
        named = self.languages if self.settings.get("engine") else ()
        heads = ["speaker", *(f"voice {language}" for language in named), "licence"]
        numbers = ["n", "cosine", "95%", *shown_pairs, *(f"halves {each}" for each in self.languages)]
        lines = [
            f"| {' | '.join([*heads, *numbers, 'closest other', 'kept'])} |",
            f"|{'---|' * len(heads)}{'--:|' * len(numbers)}---|---|",
        ]
        for row in self.rows:
            licences = dict.fromkeys(row.licences[language] for language in self.languages)
            cells = [
                _shown(row.speaker),
                *(row.voices[language] for language in named),
                ", ".join(licences),
                "+".join(str(row.n[language]) for language in self.languages),
                f"{row.cosine:.4f}",
                f"{row.ci95[0]:.4f}–{row.ci95[1]:.4f}",
                *(f"{row.pairs[pair]:.4f}" for pair in shown_pairs),
                *(f"{row.halves[language]:.4f}" for language in self.languages),
                "–" if row.closest is None else f"{_shown(row.closest[0])} {row.closest[1]:.4f}",
                "yes" if row.kept else "no",
            ]
            lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
        return lines


def default_texts(
    languages: Sequence[str], num_sentences: int = NUM_SENTENCES, seed: int = 0
) -> dict[str, list[str]]:
    """Sentences of the built-in grammar, the same ones in every language: each of another story.

    Raises:
        ValueError: the grammar does not know a language.
    """
    for language in languages:
        if language not in LANGUAGES:
            raise ValueError(
                f"the built-in grammar does not tell stories in {language!r}, only in "
                f"{', '.join(sorted(LANGUAGES))}; give the sentences to speak: texts={{{language!r}: [...]}}"
            )
    plans = list(draw_stories(num_sentences, "train", Holdout(seed=0), seed))
    return {
        language: [
            tell(plan, language)[position % SENTENCES_PER_STORY] for position, plan in enumerate(plans)
        ]
        for language in languages
    }


def compare_voices(
    engine: SynthesisEngine,
    speakers: Sequence[str],
    languages: Sequence[str],
    verifier: SpeechVerifier,
    texts: Mapping[str, Sequence[str]] | None = None,
    threshold: float = THRESHOLD,
    seed: int = 0,
    num_processes: int = 2,
    progress: bool = True,
    batch_seconds: float = 60.0,
) -> VoiceTable:
    """Let every speaker say the same in every language, and compare the voices.

    The interval of a voice is a bootstrap over its sentences, in every language apart, on Fisher's scale:
    what as many other sentences would give. Resampled means carry the noise of the sentences twice, so that
    in many dimensions their cosines, and with them plain percentiles, lie below the cosine itself
    (docs/voices.md has the figures). The percentiles are therefore moved to be centered on it, and the
    deviations of a language stretched by sqrt(n / (n - 1)).

    Args:
        speakers: as the engine calls them; one voice in each language.
        languages: at least two.
        texts: language -> the sentences to speak, at least two each. None: a dozen of the built-in grammar,
            drawn by `seed`.
        threshold: keep voices whose cosine is above it (for more than two languages: that of every pair).
        seed: of the sentences, the engine, the halves and the bootstrap.
        num_processes: workers of the engine.
        progress: show a bar, in clips.
        batch_seconds: as in `embed_speech`.

    Returns:
        The table; where no voice is kept, it says so and a warning is logged.

    Raises:
        ValueError: fewer than two languages, languages or speakers that repeat, fewer than two sentences in a
            language, or speakers without a voice in one; all before anything is spoken.
    """
    languages, speakers = _distinct(languages, "languages", 2), _distinct(speakers, "speakers", 1)
    _check_threshold(threshold)
    texts = default_texts(languages, seed=seed) if texts is None else texts
    for language in languages:
        sentences = texts.get(language, ())
        if isinstance(sentences, str) or len(sentences) < 2:
            raise ValueError(
                f"texts has {len(sentences) if not isinstance(sentences, str) else 'one string, no list of'} "
                f"sentences in {language!r}; at least two are needed, a dozen is better"
            )
    voices = _voices_of(engine, speakers, languages)
    requests = [
        SynthesisRequest(text, voices[speaker][language], language, speaker, seed)
        for speaker in speakers
        for language in languages
        for text in texts[language]
    ]
    spoken = synthesize_many(requests, engine, num_processes, progress=False)
    clips = (
        (request.speaker, request.language, clip) for request, clip in zip(requests, spoken, strict=True)
    )
    embeddings = _embed(
        clips, len(requests), engine.sampling_rate_hz, verifier, speakers, languages, batch_seconds, progress
    )
    licences = {
        speaker: {language: engine.voice_licence(voice) for language, voice in voices[speaker].items()}
        for speaker in speakers
    }
    settings = {
        **verifier.settings(),
        "source": "synthesis",
        "engine": engine.name,
        "engine_version": engine.version,
        "engine_settings": engine.settings(),
        "sentences": {language: len(texts[language]) for language in languages},
        "seed": seed,
        "bootstrap_samples": NUM_BOOTSTRAP_SAMPLES,
    }
    return _compare(embeddings, languages, threshold, seed, settings, voices, licences)


def compare_recordings(
    recordings: Mapping[str, Mapping[str, Sequence[str | os.PathLike]]],
    verifier: SpeechVerifier,
    threshold: float = THRESHOLD,
    seed: int = 0,
    licences: Mapping[str, str] | None = None,
    min_seconds: float = 1.0,
    progress: bool = True,
    batch_seconds: float = 60.0,
) -> VoiceTable:
    """The same table of recordings: {speaker: {language: [files]}}, the same languages for every speaker.

    A "speaker" is whoever is claimed to speak all of these; a "language" may be any condition (a session, a
    microphone, one half of the files).

    Args:
        licences: speaker -> licence of the recordings, for the table.
        min_seconds: shorter files are left out: short clips say little of a speaker.
        threshold, seed, progress, batch_seconds: as in `compare_voices`.

    Returns:
        The table. Files that cannot be used are in `dropped`, by the reasons of `AudioError`.

    Raises:
        ValueError: no speaker, speakers of different languages, fewer than two languages, or fewer than two
            usable files of a speaker in a language.
    """
    speakers = _distinct(recordings, "speakers", 1)
    languages = _distinct(recordings[speakers[0]], f"languages of {_shown(speakers[0])}", 2)
    _check_threshold(threshold)
    for speaker in speakers:
        if set(recordings[speaker]) != set(languages):
            raise ValueError(
                f"{_shown(speaker)} has recordings in {', '.join(recordings[speaker])}, "
                f"{_shown(speakers[0])} in {', '.join(languages)}; all speakers need the same languages"
            )
        for language, paths in recordings[speaker].items():
            if isinstance(paths, str | os.PathLike):
                raise ValueError(
                    f"the recordings of {_shown(speaker)} in {language!r} are one path; give a list"
                )
    rate = verifier.sampling_rate_hz
    # Resampling may round a clip one sample short of what the verifier needs.
    min_seconds = max(min_seconds, (verifier.min_samples + 1) / rate)
    dropped = Drops()

    def read() -> Iterable[tuple[str, str, np.ndarray | None]]:
        for speaker in speakers:
            for language in languages:
                for path in recordings[speaker][language]:
                    clip = None
                    try:
                        clip, _ = read_audio(path, rate, min_seconds)
                        if not clip.any():
                            dropped.add(os.fspath(path), "silent", "every sample is zero")
                            clip = None
                    except AudioError as error:
                        dropped.add(os.fspath(path), error.reason, error.message)
                    yield speaker, language, clip

    total = sum(len(paths) for each in recordings.values() for paths in each.values())
    embeddings = _embed(read(), total, rate, verifier, speakers, languages, batch_seconds, progress)
    settings = {
        **verifier.settings(),
        "source": "recordings",
        "min_seconds": min_seconds,
        "seed": seed,
        "bootstrap_samples": NUM_BOOTSTRAP_SAMPLES,
    }
    voices = {speaker: dict.fromkeys(languages, speaker) for speaker in speakers}
    known = licences or {}
    licences_of = {
        speaker: dict.fromkeys(languages, known.get(speaker, UNKNOWN_LICENCE)) for speaker in speakers
    }
    return _compare(embeddings, languages, threshold, seed, settings, voices, licences_of, dropped)


def _embed(
    clips: Iterable[tuple[str, str, np.ndarray | None]],
    total: int,
    rate: int,
    verifier: SpeechVerifier,
    speakers: Sequence[str],
    languages: Sequence[str],
    batch_seconds: float,
    progress: bool,
) -> dict[str, dict[str, np.ndarray]]:
    """(speaker, language, waveform or None) -> speaker -> language -> float64 [n, D], a portion at a time."""
    found: dict[str, dict[str, list[np.ndarray]]] = {
        speaker: {language: [] for language in languages} for speaker in speakers
    }
    portion: list[tuple[str, str, np.ndarray]] = []

    def flush() -> None:
        if portion:
            embedded = embed_speech([clip for *_, clip in portion], rate, verifier, batch_seconds)
            for (speaker, language, _), embedding in zip(portion, embedded, strict=True):
                found[speaker][language].append(embedding)
            portion.clear()

    for speaker, language, clip in tqdm(
        clips, total=total, desc="compare voices", unit=" clips", disable=not progress
    ):
        if clip is not None:
            portion.append((speaker, language, clip))
        if len(portion) == PORTION_CLIPS:
            flush()
    flush()
    return {
        speaker: {language: np.array(rows, dtype=np.float64) for language, rows in each.items()}
        for speaker, each in found.items()
    }


def _compare(
    embeddings: Mapping[str, Mapping[str, np.ndarray]],
    languages: tuple[str, ...],
    threshold: float,
    seed: int,
    settings: Mapping[str, Any],
    voices: Mapping[str, Mapping[str, str]],
    licences: Mapping[str, Mapping[str, str]],
    dropped: Iterable[Drop] = (),
) -> VoiceTable:
    """Unit embeddings, speaker -> language -> float64 [n, D], n >= 2 -> the table."""
    dropped = Drops(dropped)
    for speaker, each in embeddings.items():
        for language, rows in each.items():
            if len(rows) < 2:
                why = ", ".join(f"{reason} {count}" for reason, count in dropped.counts().items())
                raise ValueError(
                    f"{_shown(speaker)} has {len(rows)} usable clip(s) in {language!r}, at least two are "
                    f"needed{f' (left out of all files: {why})' if why else ''}"
                )
    pairs = list(combinations(languages, 2))
    means = {
        language: np.stack([_unit(each[language].mean(axis=0)) for each in embeddings.values()])
        for language in languages
    }  # [S, D]
    cross = {pair: means[pair[0]] @ means[pair[1]].T for pair in pairs}  # [S, S], speakers on the diagonal
    names = list(embeddings)
    likeness = np.max([np.maximum(cosines, cosines.T) for cosines in cross.values()], axis=0)  # [S, S]
    np.fill_diagonal(likeness, -np.inf)
    rows = []
    for index, (speaker, each) in enumerate(embeddings.items()):
        # Of a speaker alone, so that a row does not depend on who else is compared.
        rng = np.random.default_rng([seed, zlib.crc32(speaker.encode())])
        cosines = {_pair_name(*pair): float(cross[pair][index, index]) for pair in pairs}
        cosine = min(cosines.values())
        other = int(likeness[index].argmax())
        rows.append(
            Voice(
                speaker,
                dict(voices[speaker]),
                dict(licences[speaker]),
                cosine,
                _interval(cosine, [each[language] for language in languages], rng),
                {language: len(each[language]) for language in languages},
                cosine > threshold,
                cosines,
                {language: _cosine_of_halves(each[language], rng) for language in languages},
                (names[other], float(likeness[index, other])) if len(names) > 1 else None,
            )
        )
    rows.sort(key=lambda row: (-row.cosine, row.speaker))
    yardsticks = _yardsticks(rows, means, cross, threshold)
    table = VoiceTable(tuple(rows), languages, threshold, settings, yardsticks, dropped)
    if not table.kept:
        logger.warning("no voice is kept: %s", table.summary())
    return table


def _yardsticks(
    rows: Sequence[Voice],
    means: Mapping[str, np.ndarray],
    cross: Mapping[tuple[str, str], np.ndarray],
    threshold: float,
) -> dict[str, Any]:
    others = ~np.eye(len(rows), dtype=bool)
    impostors = np.concatenate([cosines[others] for cosines in cross.values()])
    same = np.concatenate([(each @ each.T)[np.triu(others)] for each in means.values()])
    targets = np.concatenate([np.diag(cosines) for cosines in cross.values()])
    return {
        "same_language": _spread([cosine for row in rows for cosine in row.halves.values()]),
        "other_speakers": _spread(impostors),
        "other_speakers_same_language": _spread(same),
        "passing": {"count": int((impostors > threshold).sum()), "n": len(impostors)}
        if len(rows) > 1
        else None,
        "equal_error": _equal_error(targets, impostors) if len(rows) > 1 else None,
    }


def _equal_error(targets: np.ndarray, impostors: np.ndarray) -> dict[str, float]:
    """Where the share of targets at or below a threshold comes closest to that of impostors above it."""
    thresholds = np.unique(np.concatenate([targets, impostors]))
    # Sorted, so that n cosines cost n log n and not n^2.
    lost = np.searchsorted(np.sort(targets), thresholds, side="right") / len(targets)
    let_in = 1 - np.searchsorted(np.sort(impostors), thresholds, side="right") / len(impostors)
    best = int(np.argmin(np.abs(lost - let_in)))
    return {"threshold": float(thresholds[best]), "rate": float(lost[best] + let_in[best]) / 2}


def _interval(
    cosine: float, embeddings: Sequence[np.ndarray], rng: np.random.Generator
) -> tuple[float, float]:
    """Bootstrap over the clips of each language, [n, D] each -> 95% interval; see `compare_voices`."""
    resampled = []
    for clips in embeddings:
        n = len(clips)
        weights = rng.multinomial(n, np.full(n, 1 / n), size=NUM_BOOTSTRAP_SAMPLES) / n
        mean = clips.mean(axis=0)
        resampled.append(_unit(mean + np.sqrt(n / (n - 1)) * (weights @ clips - mean)))  # [samples, D]
    cosines = np.min([(a * b).sum(axis=-1) for a, b in combinations(resampled, 2)], axis=0)
    limit = 1 - 1e-12  # the scale ends at infinity
    scaled = np.arctanh(np.clip(cosines, -limit, limit))
    center = np.arctanh(np.clip(cosine, -limit, limit))
    low, high = np.tanh(center + np.quantile(scaled, [0.025, 0.975]) - scaled.mean())
    # A skewed bootstrap may lie to one side of its mean.
    return float(min(low, cosine)), float(max(high, cosine))


def _cosine_of_halves(clips: np.ndarray, rng: np.random.Generator) -> float:
    """Clips [n, D] -> mean cosine of the mean embeddings of two random halves."""
    cosines = []
    for _ in range(NUM_SPLITS):
        order = rng.permutation(len(clips))
        half = len(clips) // 2
        cosines.append(_unit(clips[order[:half]].mean(axis=0)) @ _unit(clips[order[half:]].mean(axis=0)))
    return float(np.mean(cosines))


def _unit(vectors: np.ndarray) -> np.ndarray:
    """[..., D] -> the same directions, unit length."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _spread(cosines: Sequence[float] | np.ndarray) -> dict[str, float | int] | None:
    if len(cosines) == 0:
        return None
    values = {"mean": np.mean(cosines), "min": np.min(cosines), "max": np.max(cosines)}
    return {**{name: float(value) for name, value in values.items()}, "n": len(cosines)}


def _voices_of(
    engine: SynthesisEngine, speakers: Sequence[str], languages: Sequence[str]
) -> dict[str, dict[str, str]]:
    voices: dict[str, dict[str, str]] = {speaker: {} for speaker in speakers}
    problems = []
    for speaker in speakers:
        for language in languages:
            try:
                voices[speaker][language] = engine.voice_for(language, speaker)
            except ValueError as error:
                problems.append(f"{_shown(speaker)} in {language!r}: {error}")
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise ValueError(f"{engine.name} has no voice for {'; '.join(problems[:3])}{more}; leave them out")
    return voices


def _distinct(names: Iterable[str], what: str, at_least: int) -> tuple[str, ...]:
    if isinstance(names, str):
        raise ValueError(f"{what} is one string, {names!r}; give a list")
    names = tuple(names)
    if len(names) < at_least:
        raise ValueError(f"{what}: at least {at_least} needed, got {list(names)}")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{what} repeat: {', '.join(map(_shown, repeated))}; give each once")
    return names


def _check_threshold(threshold: float) -> None:
    if not -1 <= threshold <= 1:
        raise ValueError(f"threshold is a cosine, from -1 to 1; got {threshold!r}")


def _pair_name(first: str, second: str) -> str:
    return f"{first}-{second}"


def _shown(speaker: str) -> str:
    """A speaker's name for people: "" is an engine's plain voice."""
    return speaker or "(plain)"


def _text_of(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text_of(each)}" for key, each in value.items())
    return str(value)


# -- the picture ---------------------------------------------------------------------------------------------

# As the report's figures (hub/plots.py, which lies downstream): same font, sizes and colors.
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
}
_KEPT, _NOT_KEPT, _CEILING, _FLOOR, _RULE = "#0072B2", "#D55E00", "#009E73", "#999999", "#333333"
_MAX_NAMED_ROWS = 80


def draw_table(table: VoiceTable) -> Figure:
    """Draw a dot for every voice at its cosine, best on top, with its interval.

    Filled dots are kept, open ones are not; the dashed line is the threshold. The green band is the ceiling,
    from the least to the greatest cosine of halves, the grey one the floor, between different speakers; a
    line in each marks its mean. A tick is a voice's closest other voice. Beyond 80 voices the rows get
    thinner and lose their names (voices.md has them).
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    num_rows = len(table.rows)
    named = num_rows <= _MAX_NAMED_ROWS
    with matplotlib.rc_context(_STYLE):
        height_in = 1.3 + (0.16 * num_rows if named else 0.16 * _MAX_NAMED_ROWS)
        figure = Figure(figsize=(5.2, max(2.2, height_in)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        handles = []
        for key, color, name in (
            ("same_language", _CEILING, "same voice, same language (ceiling)"),
            ("other_speakers", _FLOOR, "other voice, other language (floor)"),
        ):
            if (spread := table.yardsticks[key]) is not None:
                axes.axvspan(spread["min"], spread["max"], color=color, alpha=0.18, linewidth=0, zorder=0)
                axes.axvline(spread["mean"], color=color, linewidth=0.9, zorder=1)
                handles.append(Patch(facecolor=color, edgecolor="none", alpha=0.35, label=name))
        style = {"color": _RULE, "linewidth": 0.8, "linestyle": (0, (4, 2))}
        axes.axvline(table.threshold, zorder=1.5, **style)
        handles.append(Line2D([], [], label=f"threshold {table.threshold:g}", **style))
        size = 3.6 if named else 2.0
        for place, row in enumerate(table.rows):
            color = _KEPT if row.kept else _NOT_KEPT
            axes.plot(row.ci95, [place] * 2, color=color, linewidth=1.1, solid_capstyle="butt", zorder=2)
            if row.closest is not None:
                axes.plot(row.closest[1], place, "|", color=_RULE, markersize=5, zorder=2)
            fill = color if row.kept else "white"
            axes.plot(row.cosine, place, "o", color=color, markerfacecolor=fill, markersize=size, zorder=3)
        for kept, color, name in ((True, _KEPT, "kept"), (False, _NOT_KEPT, "not kept")):
            count = sum(row.kept == kept for row in table.rows)
            if count:
                fill = color if kept else "white"
                dot = {"marker": "o", "color": color, "markerfacecolor": fill, "markersize": 3.6}
                handles.append(Line2D([], [], linewidth=1.1, label=f"{name} ({count}), 95%", **dot))
        if num_rows > 1:
            tick = {"linestyle": "none", "marker": "|", "color": _RULE, "markersize": 5}
            handles.append(Line2D([], [], label="closest other voice", **tick))
        axes.set_ylim(num_rows - 0.4, -0.6)
        if named:
            axes.set_yticks(range(num_rows), [_shown(row.speaker) for row in table.rows])
        else:
            axes.set_yticks([])
            axes.set_ylabel(f"{num_rows} voices")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(f"cosine of {' and '.join(table.languages)} ({table.settings['verifier']})")
        axes.xaxis.set_major_locator(MaxNLocator(7))
        axes.grid(axis="y", color="#dddddd", linewidth=0.5)
        axes.set_axisbelow(True)
        figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _png(figure: Figure) -> bytes:
    import io

    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
    return buffer.getvalue()
