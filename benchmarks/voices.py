"""Turns speakers of espeak-ng and the recordings of two people into the figures of docs/voices.md.

Which voices a verifier keeps, how many wrong pairs it lets in with them, what two different people get, and
whether the intervals cover what they claim to; only the last figure is one of speed.

    python benchmarks/voices.py --recordings shared/data/parallel_prompts_en_fr
    python benchmarks/voices.py --recordings shared/data/parallel_prompts_en_fr --verifier \
microsoft/wavlm-base-plus-sv    # where its weights can be downloaded
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMForXVector

from hf_clsi.speech import voices
from hf_clsi.speech.audio import read_audio, resample, write_audio
from hf_clsi.speech.synthesis import ESPEAK_SPEAKERS, EspeakEngine
from hf_clsi.speech.verifiers import SpeechVerifier, XVectorVerifier, embed_speech, load_verifier
from hf_clsi.speech.voices import VoiceTable, compare_recordings, compare_voices, default_texts

LANGUAGES = ("en", "fr")
TINY = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "conv_dim": (8,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2,
    "tdnn_dim": (16, 16, 16, 16, 24), "xvector_output_dim": 12,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recordings", type=Path, help="folder of parallel_prompts_en_fr")
    parser.add_argument("--verifier", default="spectral")
    parser.add_argument("--device")
    parser.add_argument("--output-dir", default="voices", help="for the table of espeak-ng's voices")
    arguments = parser.parse_args()
    verifier = load_verifier(arguments.verifier, arguments.device)

    for seed in range(3):
        table = espeak_table(verifier, seed)
        report(f"espeak-ng, sentences of seed {seed}", table)
        if seed == 0:
            table.save(arguments.output_dir)
            report_resampled_speakers(verifier, table)
    if arguments.recordings:
        report_people(verifier, arguments.recordings)
    tiny = random_verifier(**TINY)
    report("espeak-ng, tiny random model", espeak_table(tiny, 0))
    if arguments.recordings:
        across = {"Smith and Wallack": clips_of(arguments.recordings)}
        report("two people, tiny random model", compare_recordings(across, tiny, progress=False))
    report_coverage()
    report_speed()


def espeak_table(verifier: SpeechVerifier, seed: int) -> VoiceTable:
    return compare_voices(EspeakEngine(), ESPEAK_SPEAKERS, LANGUAGES, verifier, seed=seed, progress=False)


def report(title: str, table: VoiceTable) -> None:
    print(f"\n## {title}\n{table.summary()}")
    for key, values in table.yardsticks.items():
        print(f"{key}: {shown(values)}")
    if len(table.rows) <= 2:
        for row in table.rows:
            low, high = row.ci95
            print(f"{row.speaker}: {row.cosine:.4f} [{low:.4f}, {high:.4f}], n {dict(row.n)}")
    mistaken = [
        f"{row.speaker or 'plain'} for {row.closest[0] or 'plain'}"
        for row in table.rows
        if row.closest and row.closest[1] >= row.cosine
    ]
    print(f"closer to another than to themselves: {', '.join(mistaken) or 'none'}")


def shown(values: dict | None) -> str:
    if values is None:
        return "none"
    return ", ".join(
        f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}"
        for key, value in values.items()
    )


def report_resampled_speakers(verifier: SpeechVerifier, table: VoiceTable) -> None:
    """Intervals over speakers, which the table has not: pairs share speakers and are no independent draws."""
    texts = default_texts(LANGUAGES)
    engine = EspeakEngine()
    means = {}
    for language in LANGUAGES:
        requests = [
            engine.request(text, language, speaker) for speaker in ESPEAK_SPEAKERS for text in texts[language]
        ]
        spoken = list(voices.synthesize_many(requests, engine, progress=False))
        embedded = embed_speech(spoken, engine.sampling_rate_hz, verifier).astype(np.float64)
        mean = embedded.reshape(len(ESPEAK_SPEAKERS), len(texts[language]), -1).mean(axis=1)
        means[language] = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    cosines = means["en"] @ means["fr"].T
    rng = np.random.default_rng(0)
    same, passing, errors = [], [], []
    for _ in range(2000):
        drawn = rng.integers(len(cosines), size=len(cosines))
        part = cosines[np.ix_(drawn, drawn)]
        others = part[drawn[:, None] != drawn[None]]
        same.append(np.diag(part).mean())
        passing.append((others > table.threshold).mean())
        errors.append(voices._equal_error(np.diag(part), others)["rate"])
    for name, values in (("same voice", same), ("passing", passing), ("equal error", errors)):
        low, high = np.quantile(values, [0.025, 0.975])
        print(f"{name}, 95% over speakers: [{low:.4f}, {high:.4f}]")


def clips_of(folder: Path, num_clips: int = 40, min_seconds: float = 1.5) -> dict[str, list[Path]]:
    """The first prompts that are long enough in both languages."""
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    rows = [row for row in rows if min(row["duration_en"], row["duration_fr"]) >= min_seconds][:num_clips]
    return {language: [folder / row[f"audio_{language}"] for row in rows] for language in LANGUAGES}


def report_people(verifier: SpeechVerifier, folder: Path) -> None:
    clips = clips_of(folder)
    report(
        "two people as one speaker",
        compare_recordings({"Smith and Wallack": clips}, verifier, progress=False),
    )
    halves = {
        name: {"half 1": clips[language][0::2], "half 2": clips[language][1::2]}
        for name, language in (("Smith", "en"), ("Wallack", "fr"))
    }
    report("each of them in two halves", compare_recordings(halves, verifier, progress=False))
    report_single_clips(verifier, clips)
    with tempfile.TemporaryDirectory() as scratch:
        narrow = []
        for path in halves["Smith"]["half 2"]:
            wave, rate = read_audio(path)
            wave = resample(resample(wave, rate, 8_000), 8_000, rate)
            narrow.append(Path(scratch) / path.name)
            write_audio(narrow[-1], wave, rate, clip=True)
        channels = {"Smith": {"whole band": halves["Smith"]["half 1"], "below 4 kHz": narrow}}
        report("one of them through two channels", compare_recordings(channels, verifier, progress=False))


def report_single_clips(verifier: SpeechVerifier, clips: dict[str, list[Path]]) -> None:
    """How often a pair of clips of one person is closer than a pair of two; bootstrap over clips."""
    rate = verifier.sampling_rate_hz
    embedded = {
        language: embed_speech([read_audio(path, rate)[0] for path in paths], rate, verifier)
        for language, paths in clips.items()
    }

    def area(first: np.ndarray, second: np.ndarray) -> float:
        same = np.concatenate([(each @ each.T)[np.triu_indices(len(each), 1)] for each in (first, second)])
        other = np.sort((first @ second.T).ravel())
        return float(np.searchsorted(other, same).mean() / len(other))

    rng = np.random.default_rng(0)
    # A clip drawn twice counts once, or it would be paired with itself.
    draws = [
        area(*(each[np.unique(rng.integers(len(each), size=len(each)))] for each in embedded.values()))
        for _ in range(500)
    ]
    low, high = np.quantile(draws, [0.025, 0.975])
    print(f"\nclip against clip: {area(*embedded.values()):.4f} [{low:.4f}, {high:.4f}]")


def report_coverage(num_speakers: int = 300) -> None:
    """How often intervals hold the expected cosine, of the interval used and of plain percentiles."""
    print("\n## coverage of 95% intervals")
    rng = np.random.default_rng(0)
    for dimensions, noise, n in ((38, 0.3, 12), (512, 0.3, 12), (512, 1.0, 12), (512, 1.0, 40), (38, 0.3, 3)):
        shared, own = rng.normal(size=dimensions), 0.35 * rng.normal(size=(2, dimensions))
        truth = voices._unit(shared + own)
        scale = voices._unit(1 / np.sqrt(1 + np.arange(dimensions) / 3))  # some directions are noisier

        def draw(truth=truth, scale=scale, noise=noise, n=n) -> np.ndarray:
            return voices._unit(truth[:, None] + noise * scale * rng.normal(size=(2, n, truth.shape[1])))

        def cosine_of(clips: np.ndarray) -> float:
            first, second = voices._unit(clips.mean(axis=1))
            return float(first @ second)

        expected = np.mean([cosine_of(draw()) for _ in range(2000)])
        used, plain = [], []
        for _ in range(num_speakers):
            clips = draw()
            low, high = voices._interval(cosine_of(clips), list(clips), rng)
            used.append(low <= expected <= high)
            weights = rng.multinomial(n, np.full(n, 1 / n), size=(2, 1000)) / n
            first, second = (voices._unit(each @ rows) for each, rows in zip(weights, clips, strict=True))
            low, high = np.quantile((first * second).sum(axis=1), [0.025, 0.975])
            plain.append(low <= expected <= high)
        print(
            f"{dimensions} dimensions, noise {noise}, n {n}: {np.mean(used):.3f}, plain {np.mean(plain):.3f}"
        )


def random_verifier(**changes) -> XVectorVerifier:
    torch.manual_seed(0)
    model = WavLMForXVector(WavLMConfig(**changes)).eval()
    if changes:  # transformers' initial weights are so small that a tiny model hardly hears its input
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return XVectorVerifier(model, Wav2Vec2FeatureExtractor(sampling_rate=16_000, do_normalize=True), "random")


def report_speed() -> None:
    """A model of base size, one thread."""
    torch.set_num_threads(1)
    verifier = random_verifier()
    engine = EspeakEngine()
    clips = [engine.synthesize(text, "en-us") for text in default_texts(("en",))["en"]]
    seconds = sum(map(len, clips)) / engine.sampling_rate_hz
    start = time.perf_counter()
    embed_speech(clips, engine.sampling_rate_hz, verifier)
    taken = time.perf_counter() - start
    size = sum(parameter.numel() for parameter in verifier.model.parameters()) / 1e6
    print(
        f"\n## speed\n{size:.1f} M parameters: {taken:.1f} s for {len(clips)} clips of {seconds:.1f} s in all"
    )


if __name__ == "__main__":
    main()
