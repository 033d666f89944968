"""Kyutai TTS in another environment: the script that runs there, and the engine that drives it.

The weights (1.6B) are not to be had in a test. Most tests run the script on a stand-in for the package moshi
with the same signatures, and on a little of torch made of numpy, since torch itself takes seconds to start in
each of the processes. The test at the end runs it on moshi and torch themselves, with a tiny random model,
where $HF_CLSI_MOSHI_PYTHON names an interpreter that has them (pytest -m slow).
"""

import ast
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
import wave
from pathlib import Path

import numpy as np
import pytest

from hf_clsi.speech.kyutai import (
    DEFAULT_VOICES,
    PYTHON_VARIABLE,
    SCRIPT,
    KyutaiEngine,
    moshi_version,
    voice_licence,
)
from hf_clsi.speech.synthesis import SynthesisRequest, load_engine, synthesize_many

VOICE = "vctk/p228_023.wav"

LOADERS = """
class CheckpointInfo:
    def __init__(self, hf_repo, revision):
        self.hf_repo, self.revision = hf_repo, revision

    @staticmethod
    def from_hf_repo(hf_repo, moshi_weights=None, mimi_weights=None, tokenizer=None, config_path=None,
                     mimi_config_path=None, lora_weights=None, revision=None):
        return CheckpointInfo(hf_repo, revision)
"""

TORCH = """
from contextlib import nullcontext
from types import SimpleNamespace
import numpy as np

class Tensor(np.ndarray):
    def float(self): return self.astype(np.float32)
    def cpu(self): return self
    def clamp(self, low, high): return self.clip(low, high)
    def numpy(self): return np.asarray(self)

_random = np.random.RandomState()
manual_seed = _random.seed
bfloat16, float16, float32 = "torch.bfloat16", "torch.float16", "torch.float32"
cuda = SimpleNamespace(is_available=lambda: False)
no_grad = nullcontext
def full(shape, value): return np.full(shape, value).view(Tensor)
def randint(low, high, shape): return _random.randint(low, high, shape).view(Tensor)
def cat(tensors, dim): return np.concatenate(tensors, axis=dim).view(Tensor)
def round(tensor): return np.rint(tensor)
"""

# A model that says each word in two frames of 80 ms, whose level depends on the voice and on chance, and
# which does as it is told by some texts. What it prints must not disturb anyone.
TTS = """
import os, signal, sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
import torch

class EntryNotFoundError(Exception): pass

class Mimi:
    sample_rate, frame_rate, active = 24000, 12.5, False

    @contextmanager
    def streaming(self, batch_size):
        assert batch_size == 1
        self.active = True
        yield
        self.active = False

    def decode(self, codes):
        assert self.active and codes.shape == (1, 2, 1) and (codes >= 0).all()
        return (codes[:, :1, :] / 1000).repeat(1920, axis=2)

class TTSModel:
    delay_steps, final_padding = 3, 4

    @staticmethod
    def from_checkpoint_info(checkpoint_info, initial_padding=2, max_padding=8,
                             voice_repo="kyutai/tts-voices", device="cpu", dtype=torch.bfloat16, **kwargs):
        with open(os.environ["STAND_IN_LOG"], "a") as log:
            log.write(f"{checkpoint_info.hf_repo} {checkpoint_info.revision} {device} {dtype}\\n")
        if checkpoint_info.hf_repo == "nobody/nothing":
            raise OSError("there is no such repository")
        model = TTSModel()
        model.__dict__.update(n_q=32, temp=0.6, cfg_coef=1.0, max_gen_length=30000)
        assert set(kwargs) <= set(model.__dict__), kwargs
        model.__dict__.update(kwargs, voice_repo=voice_repo, mimi=Mimi())
        model.multi_speaker = checkpoint_info.hf_repo != "kyutai/tts-0.75b-en-public"
        model.valid_cfg_conditionings = {1.0, 2.0, 3.0}
        return model

    def prepare_script(self, script, padding_between=0):
        print("preparing", script)
        return [SimpleNamespace(tokens=[len(word)], text=word) for word in script[0].split()]

    def get_voice_path(self, voice_name):
        if "nobody" in voice_name:
            raise EntryNotFoundError("404")
        return Path(voice_name + ".1e68beda@240.safetensors")

    def make_condition_attributes(self, voices, cfg_coef=None):
        if cfg_coef not in self.valid_cfg_conditionings:
            raise ValueError("Unsupported value for cfg_coef")
        return SimpleNamespace(voice=str(voices[0]))

    def generate(self, all_entries, attributes, prefixes=None, cfg_is_no_prefix=True, cfg_is_no_text=True,
                 on_frame=None, **kwargs):
        assert self.cfg_coef == 1.0, "the model was distilled"
        (entries,), (attribute,) = all_entries, attributes
        first = entries[0].text
        if first == "die":
            print("the card is gone", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if first == "fail":
            raise RuntimeError("CUDA out of memory")
        if first == "sleep":
            import time; time.sleep(600)
        end = 2 * len(entries)
        frames = [torch.full((1, 3, 1), -1)] * self.delay_steps
        base = sum(map(ord, attribute.voice)) % 100
        frames += [base + torch.randint(0, 300, (1, 3, 1)) for _ in range(end + self.final_padding)]
        return SimpleNamespace(frames=frames, end_steps=[None if first == "endless" else end])
"""


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """An "environment" with the stand-in; its interpreter is this one."""
    folder = tmp_path_factory.mktemp("moshi-environment")
    models = folder / "packages" / "moshi" / "models"
    models.mkdir(parents=True)
    for file in (models.parent / "__init__.py", models / "__init__.py"):
        file.write_text("")
    (models / "loaders.py").write_text(LOADERS)
    (models / "tts.py").write_text(TTS)
    (folder / "packages" / "torch.py").write_text(TORCH)
    metadata = folder / "packages" / "moshi-0.2.13.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: moshi\nVersion: 0.2.13\n")
    python = folder / "python"
    python.write_text(
        f"#!/bin/sh\nexport PYTHONPATH={folder}/packages STAND_IN_LOG={folder}/log\n"
        f'exec {sys.executable} -s "$@"\n'
    )
    python.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def engine(stand_in):
    return KyutaiEngine(python=str(stand_in / "python"), max_seconds=20.0)


@pytest.fixture(scope="module")
def worker(engine):
    worker = engine.open_worker()
    yield worker
    worker.close()


def run_script(stand_in, *arguments):
    command = [str(stand_in / "python"), str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def write_manifest(path, *requests):
    path.write_text(
        "".join(
            json.dumps({"id": key, "text": text, "voice": voice, "seed": seed}) + "\n"
            for key, text, voice, seed in requests
        )
    )
    return path


# The stand-in against the real thing


def signatures(source):
    """Python source -> {"Class.method": its arguments and their defaults, as text without annotations}."""
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, ast.FunctionDef):
                    for argument in ast.walk(method.args):
                        if isinstance(argument, ast.arg):
                            argument.annotation = None
                    found[f"{node.name}.{method.name}"] = [
                        argument.arg for argument in method.args.posonlyargs + method.args.args
                    ] + [f"**{method.args.kwarg.arg}" if method.args.kwarg else ""]
    return found


@pytest.mark.skipif("HF_CLSI_MOSHI_SOURCE" not in os.environ, reason="needs a folder with the package moshi")
def test_the_stand_in_has_the_signatures_of_moshi():
    folder = Path(os.environ["HF_CLSI_MOSHI_SOURCE"], "moshi", "models")
    for name, source, ours in (
        ("loaders", LOADERS, ["CheckpointInfo.from_hf_repo"]),
        (
            "tts",
            TTS,
            [
                f"TTSModel.{name}"
                for name in (
                    "from_checkpoint_info", "prepare_script", "get_voice_path", "make_condition_attributes",
                    "generate",
                )
            ],
        ),
    ):  # fmt: skip
        real = signatures((folder / f"{name}.py").read_text())
        for method in ours:
            assert signatures(source)[method] == real[method], method
    text = (folder / "tts.py").read_text()
    for attribute in ("delay_steps", "final_padding", "cfg_coef", "max_gen_length", "n_q", "temp"):
        assert f"\n    {attribute}: " in text
    assert "def multi_speaker(self)" in text
    assert "def valid_cfg_conditionings(self)" in text


# The script, run by hand


def test_a_manifest_becomes_files_and_a_line_for_each_text(stand_in, tmp_path):
    manifest = write_manifest(
        tmp_path / "in.jsonl",
        ("a-1", "The cat sleeps.", VOICE, 0),
        ("a-2", "fail now", VOICE, 0),
        ("a-3", "Hi.", "vctk/nobody.wav", 0),
        ("a-4", "endless story", VOICE, 0),
    )
    out = tmp_path / "out"
    run = run_script(stand_in, "--manifest", manifest, "--output-dir", out, "--max-seconds", 20)
    assert json.loads(run.stdout) == {"num_texts": 4, "num_errors": 3}
    assert run.returncode == 1
    results = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    for result in results:
        assert len(result.pop("request")) == 16
    # Three words of two frames and four frames of final padding; the frames before the delay are not heard.
    assert results == [
        {"id": "a-1", "num_samples": 10 * 1920},
        {"id": "a-2", "error": "RuntimeError: CUDA out of memory", "kind": "runtime"},
        {
            "id": "a-3",
            "error": "kyutai/tts-voices has no voice 'vctk/nobody.wav' for this model (404)",
            "kind": "value",
        },
        {"id": "a-4", "error": "RuntimeError: the text was not finished after 250 frames", "kind": "runtime"},
    ]
    assert sorted(path.name for path in out.iterdir()) == ["a-1.wav", "results.jsonl"]
    with wave.open(str(out / "a-1.wav")) as file:
        assert file.getparams()[:4] == (1, 2, 24000, 19200)


def test_a_second_run_speaks_only_what_is_missing_changed_or_failed(stand_in, tmp_path):
    out = tmp_path / "out"
    requests = [(f"t{number}", f"Text number {number}.", VOICE, 0) for number in range(4)]
    arguments = ("--manifest", tmp_path / "in.jsonl", "--output-dir", out)
    write_manifest(tmp_path / "in.jsonl", *requests)
    assert run_script(stand_in, *arguments).returncode == 0
    lines = (out / "results.jsonl").read_text().splitlines(keepends=True)
    first = {path.name: path.read_bytes() for path in out.glob("*.wav")}

    # As after a kill: no file for t1, and the line of t3 was cut while it was written.
    (out / "t1.wav").unlink()
    (out / "results.jsonl").write_text("".join(lines[:3]) + lines[3][:20])
    times = {name: (out / name).stat().st_mtime_ns for name in ("t0.wav", "t2.wav")}
    write_manifest(tmp_path / "in.jsonl", *requests[:2], ("t2", "Another text.", VOICE, 0), requests[3])
    assert run_script(stand_in, *arguments).returncode == 0
    assert (out / "t0.wav").stat().st_mtime_ns == times["t0.wav"]
    assert (out / "t1.wav").read_bytes() == first["t1.wav"]
    assert (out / "t2.wav").read_bytes() != first["t2.wav"]
    assert (out / "t3.wav").read_bytes() == first["t3.wav"]
    after = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [line["id"] for line in after] == ["t0", "t1", "t2", "t1", "t2", "t3"]

    # Everything is there: the model is not even loaded.
    log = (stand_in / "log").read_text()
    assert run_script(stand_in, *arguments).returncode == 0
    assert (stand_in / "log").read_text() == log


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"id": "a"', "line 1: no JSON"),
        ('\n{"id": "a", "text": "Hi."}', "line 2: voice, seed missing or of another type"),
        ('{"id": "../a", "text": "Hi.", "voice": "v", "seed": 0}', "the id '../a' cannot be a file name"),
        ('{"id": "a", "text": "Hi.", "voice": "v", "seed": 0}\n' * 2, "line 2: the id 'a' occurs twice"),
    ],
)
def test_a_manifest_that_is_wrong_is_refused_before_anything_is_spoken(stand_in, tmp_path, content, message):
    (tmp_path / "in.jsonl").write_text(content)
    run = run_script(stand_in, "--manifest", tmp_path / "in.jsonl", "--output-dir", tmp_path / "out")
    assert run.returncode == 2
    assert message in run.stderr
    assert not (tmp_path / "out").exists()


def test_without_moshi_the_script_says_what_to_install(tmp_path):
    manifest = write_manifest(tmp_path / "in.jsonl", ("a", "Hi.", VOICE, 0))
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "--manifest", manifest, "--output-dir", tmp_path],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert "No module named 'moshi'" in run.stderr
    assert "pip install moshi" in run.stderr


def test_the_script_needs_nothing_of_hf_clsi():
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(SCRIPT.read_text()))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in (
            [node.module] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names]
        )
    }
    assert imported - set(sys.stdlib_module_names) == {"moshi", "torch"}


# The engine


def test_equal_requests_sound_alike_in_any_company_and_the_model_is_loaded_once(stand_in, engine, worker):
    loaded = (stand_in / "log").read_text().splitlines()
    requests = [
        SynthesisRequest("The cat sleeps.", VOICE, seed=1),
        SynthesisRequest("Le chat dort.", VOICE, seed=1),
        SynthesisRequest("The cat sleeps.", VOICE, seed=2),
        SynthesisRequest("The cat sleeps.", "vctk/p229_023.wav", seed=1),
    ]
    together = worker.synthesize(requests)
    assert [waveform.shape for waveform in together] == [(19200,)] * 4
    assert together[0].dtype == np.float32
    alone = [worker.synthesize([request])[0] for request in reversed(requests)]
    for one, other in zip(together, reversed(alone), strict=True):
        np.testing.assert_array_equal(one, other)
    assert len({waveform.tobytes() for waveform in together[1:]}) == 3
    assert (stand_in / "log").read_text().splitlines() == loaded
    assert loaded[-1].startswith("kyutai/tts-1.6b-en_fr None ")


def test_one_text_that_fails_names_itself_and_does_not_spoil_the_worker(worker):
    good = SynthesisRequest("The cat sleeps.", VOICE)
    with pytest.raises(RuntimeError, match=r"CUDA out of memory: voice '.*p228_023\.wav', text 'fail now'"):
        worker.synthesize([good, SynthesisRequest("fail now", VOICE), good])
    with pytest.raises(ValueError, match=r"has no voice 'vctk/nobody\.wav'"):
        worker.synthesize([SynthesisRequest("Hello.", "vctk/nobody.wav")])
    with pytest.raises(ValueError, match=r"there is no file '/no/such\.safetensors'"):
        worker.synthesize([SynthesisRequest("Hello.", "/no/such.safetensors")])
    assert len(worker.synthesize([good])[0]) == 19200
    assert list(Path(worker._folder.name).iterdir()) == []  # nothing is left behind


def test_a_process_that_dies_is_an_error_with_its_last_words(engine):
    requests = [SynthesisRequest(text, VOICE) for text in ("Good.", "die now", "Fine.")]
    with pytest.raises(RuntimeError, match=r"(?s)exit code -9.*It said: .*the card is gone") as caught:
        list(synthesize_many(requests, engine, 1, progress=False))
    assert "preparing ['die now']" in str(caught.value)  # printed by the library, out of the way


def test_a_checkpoint_that_cannot_be_loaded_says_so(stand_in):
    python = str(stand_in / "python")
    with pytest.raises(RuntimeError, match="did not start: OSError: there is no such repository"):
        KyutaiEngine(python=python, checkpoint="nobody/nothing").open_worker()
    with pytest.raises(RuntimeError, match=r"tts-0\.75b-en-public takes a recording as its voice"):
        KyutaiEngine(python=python, checkpoint="kyutai/tts-0.75b-en-public").open_worker()


def test_the_process_ends_at_the_end_of_its_input_whatever_it_is_doing(engine):
    worker = engine.open_worker()
    said = []
    speaking = threading.Thread(target=lambda: said.append(error_of(worker)))
    speaking.start()
    time.sleep(0.3)
    assert worker._process.poll() is None
    worker._process.stdin.close()  # what the death of this process would do
    assert worker._process.wait(timeout=10) == 0
    speaking.join(timeout=10)
    assert "ended early (exit code 0)" in said[0]
    worker.close()
    assert not Path(worker._folder.name).exists()


def speak_forever(worker):
    return worker.synthesize([SynthesisRequest("sleep well", VOICE)])


def error_of(worker):
    with pytest.raises(RuntimeError) as caught:
        speak_forever(worker)
    return str(caught.value)


def test_closing_a_worker_ends_a_text_under_way(engine):
    worker = engine.open_worker()
    threading.Timer(0.3, worker.close).start()
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="ended early"):
        speak_forever(worker)
    assert time.monotonic() - started < 10


def test_a_missing_environment_comes_with_the_commands_that_make_it(monkeypatch):
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    commands = r"python3 -m venv ~/moshi && ~/moshi/bin/pip install moshi\n *export HF_CLSI_MOSHI_PYTHON="
    with pytest.raises(RuntimeError, match=commands):
        KyutaiEngine().open_worker()
    with pytest.raises(RuntimeError, match=f"(?s)no interpreter at '/no/python'.*{commands}"):
        KyutaiEngine(python="/no/python").open_worker()
    with pytest.raises(RuntimeError, match=f"(?s)has no package moshi.*{commands}"):
        _ = KyutaiEngine(python=sys.executable).version
    with pytest.raises(RuntimeError, match=r"No module named 'moshi'.*pip install moshi"):
        KyutaiEngine(python=sys.executable).open_worker()


def test_the_interpreter_can_come_from_the_environment(stand_in, monkeypatch):
    monkeypatch.setenv(PYTHON_VARIABLE, str(stand_in / "python"))
    assert KyutaiEngine(revision="abc").version == "kyutai/tts-1.6b-en_fr@abc, moshi 0.2.13"
    assert moshi_version(str(stand_in / "python")) == "0.2.13"


def test_the_record_tells_engine_voice_licence_and_seed(engine):
    request = engine.request("Le chat dort.", "fr", "expresso/ex03.wav", seed=3)
    record = engine.record(request)
    assert request.voice == engine.voice_for("en", "expresso/ex03.wav")  # the same speaker in both languages
    assert record["engine"] == "kyutai-tts"
    assert record["engine_version"] == "kyutai/tts-1.6b-en_fr, moshi 0.2.13"
    assert (record["voice"], record["licence"], record["seed"]) == ("expresso/ex03.wav", "CC-BY-NC-4.0", 3)
    assert record["cfg_coef"] == 2.0


@pytest.mark.parametrize(
    ("voice", "licence"),
    [
        ("voice-donations/Selfie.wav", "CC0-1.0"),
        ("voice-zero/bill_boerst.wav", "CC0-1.0"),
        ("vctk/p228_023.wav", "CC-BY-4.0"),
        ("cml-tts/fr/1591_1028_000108-0004.wav", "CC-BY-4.0"),
        ("alba-mackenna/casual.wav", "CC-BY-4.0"),
        ("expresso/ex03-ex01_happy_001_channel1_334s.wav", "CC-BY-NC-4.0"),
        ("hf://kyutai/tts-voices/ears/p010/freeform_speech_01.wav", "CC-BY-NC-4.0"),
    ],
)
def test_the_licence_of_a_voice_is_that_of_its_folder(voice, licence):
    assert voice_licence(voice) == licence


@pytest.mark.parametrize(
    ("voice", "repository"),
    [
        ("unmute-prod-website/default_voice.wav", "kyutai/tts-voices"),
        ("cml-tts/de/1.wav", "kyutai/tts-voices"),
        ("/home/me/vctk/p228.safetensors", "kyutai/tts-voices"),
        ("vctk/p228_023.wav", "somebody/voices"),
        ("hf://somebody/voices/vctk/p228_023.wav", "kyutai/tts-voices"),
    ],
)
def test_a_licence_that_is_not_known_is_never_guessed(voice, repository):
    with pytest.warns(UserWarning, match="recorded as 'unknown'"):
        assert voice_licence(voice, repository) == "unknown"
    assert KyutaiEngine(voices_repo=repository, licences={voice: "MIT"}).voice_licence(voice) == "MIT"


def test_the_voices_drawn_by_default_may_be_used_for_anything():
    assert {voice_licence(voice) for voice in DEFAULT_VOICES} == {"CC0-1.0", "CC-BY-4.0"}
    assert KyutaiEngine().speakers() == DEFAULT_VOICES


def test_settings_make_an_equal_engine():
    engine = KyutaiEngine(voices=["a", "b"], licences={"a": "CC0-1.0"}, temperature=0.3)
    assert load_engine(json.loads(json.dumps(engine.to_settings()))) == engine


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "int8"}, "dtype must be"),
        ({"max_seconds": 0}, "must be positive"),
        ({"voices": []}, "must not be empty"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        KyutaiEngine(**settings)


def test_a_language_beyond_those_of_the_model_is_refused_unless_told():
    with pytest.raises(ValueError, match="speaks en, fr, not 'de'"):
        KyutaiEngine().voice_for("de")
    assert KyutaiEngine(languages=["de"]).voice_for("de") == DEFAULT_VOICES[0]


# The real package

# Writes the files of a model of a few thousand random weights, as kyutai/tts-1.6b-en_fr has them, into a
# folder laid out like the cache of the Hub.
TINY_CHECKPOINT = """
    import copy, json, sys
    from pathlib import Path
    import sentencepiece, torch
    from moshi.models import loaders
    from safetensors.torch import save_file

    torch.manual_seed(0)
    hub = Path(sys.argv[1]) / "hub"

    def snapshot(name):
        folder = hub / name / "snapshots" / ("a" * 40)
        folder.mkdir(parents=True)
        (hub / name / "refs").mkdir()
        (hub / name / "refs" / "main").write_text("a" * 40)
        return folder

    model, voices = snapshot("models--kyutai--tts-1.6b-en_fr"), snapshot("models--kyutai--tts-voices")
    corpus = model / "corpus.txt"
    corpus.write_text("The little cat sleeps.\\nLe petit chat dort.\\nhello world again\\nbonjour\\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(model / "tokenizer"), vocab_size=60, unk_id=0, bos_id=1, eos_id=2,
        pad_id=3, hard_vocab_limit=False)
    pieces = sentencepiece.SentencePieceProcessor(str(model / "tokenizer.model")).get_piece_size()

    codec = copy.deepcopy(loaders._mimi_config)
    codec["seanet"] |= {"dimension": 16, "n_filters": 2}
    codec["quantizer"] |= {"dimension": 8, "n_q": 8, "bins": 16, "input_dimension": 16,
                           "output_dimension": 16}
    codec["transformer"] |= {"d_model": 16, "num_heads": 2, "num_layers": 1, "dim_feedforward": 32,
                             "input_dimension": 16, "output_dimensions": [16]}
    weights = loaders.get_mimi(None, codec).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, model / "mimi.safetensors")
    (model / "mimi.json").write_text(json.dumps(codec))

    def lookup(values):
        table = {"n_bins": 7, "dim": 16, "tokenizer": "noop", "possible_values": values}
        return {"type": "lut", "lut": table}

    language_model = dict(
        dim=32, text_card=pieces, text_card_out=5, existing_text_padding_id=3, n_q=8, dep_q=8, card=16,
        num_heads=2, num_layers=2, hidden_scale=4.125, causal=True, layer_scale=None, context=500,
        max_period=10000, gating="silu", norm="rms_norm_f32", positional_embedding="rope", depformer_dim=16,
        depformer_dim_feedforward=32, depformer_num_heads=2, depformer_num_layers=1, depformer_context=8,
        depformer_multi_linear=True, depformer_max_period=10000, depformer_gating="silu",
        depformer_pos_emb="none", depformer_weights_per_step=True, delays=[0, 0] + [2] * 7,
        cross_attention=True, demux_second_stream=True,
        conditioners={"speaker_wavs": {"type": "tensor", "tensor": {"dim": 12}}, "control": lookup(["ok"]),
                      "cfg": lookup(["1.0", "1.5", "2.0", "2.5", "3.0", "3.5", "4.0"])},
        fuser={"cross_attention_pos_emb": False, "cross_attention_pos_emb_scale": 1,
               "sum": ["control", "cfg"], "prepend": [], "cross": ["speaker_wavs"]})
    (model / "config.json").write_text(json.dumps(language_model | dict(
        moshi_name="model.safetensors", mimi_name="mimi.safetensors", mimi_config_name="mimi.json",
        tokenizer_name="tokenizer.model", tts_config={"audio_delay": 1.28, "second_stream_ahead": 2},
        model_id={"sig": "1e68beda", "epoch": 240}, model_type="tts", lm_gen_config={}, stt_config={})))
    network = loaders.get_moshi_lm(None, language_model, device="cpu", dtype=torch.float32)
    save_file({name: tensor.clone() for name, tensor in network.state_dict().items()},
              model / "model.safetensors")
    for number in (228, 229):
        file = voices / "vctk" / f"p{number}_023.wav.1e68beda@240.safetensors"
        file.parent.mkdir(exist_ok=True)
        save_file({"speaker_wavs": torch.randn(1, 12, 20)}, file)
    """


@pytest.mark.slow
@pytest.mark.skipif(PYTHON_VARIABLE not in os.environ, reason="needs an environment with the package moshi")
def test_moshi_itself_speaks_with_a_tiny_random_model(tmp_path):
    real = os.environ[PYTHON_VARIABLE]
    program = textwrap.dedent(TINY_CHECKPOINT)
    subprocess.run([real, "-c", program, str(tmp_path / "home")], check=True, capture_output=True)
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\nexport HF_HOME={tmp_path}/home HF_HUB_OFFLINE=1 NO_TORCH_COMPILE=1\nexec {real} "$@"\n'
    )
    python.chmod(0o755)
    engine = KyutaiEngine(
        python=str(python), num_codebooks=8, dtype="float32", device="cpu", max_seconds=20.0
    )
    requests = [
        engine.request("The little cat sleeps.", "en", VOICE),
        engine.request("Le petit chat dort.", "fr", VOICE),
        engine.request("Le petit chat dort.", "fr", VOICE, seed=1),
        engine.request("Le petit chat dort.", "fr", "vctk/p229_023.wav"),
    ]
    forwards = list(synthesize_many(requests, engine, 1, progress=False))
    backwards = list(synthesize_many(requests[::-1], engine, 2, progress=False))[::-1]
    for one, other in zip(forwards, backwards, strict=True):
        np.testing.assert_array_equal(one, other)
        assert 0.5 < len(one) / 24000 < 20
        assert len(one) % 1920 == 0
    assert len({waveform.tobytes() for waveform in forwards}) == 4
