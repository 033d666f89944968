"""Manifest of texts -> WAV files, spoken by Kyutai TTS through the `moshi` package; a stand-alone script.

It runs in an environment of its own, since moshi needs older releases of torch and huggingface-hub than the
rest of hf_clsi, and needs nothing but that environment and this file:

    python3 -m venv ~/moshi && ~/moshi/bin/pip install moshi
    ~/moshi/bin/python kyutai_process.py --manifest in.jsonl --output-dir out

A line of the manifest: {"id": "a-1", "text": "Hello.", "voice": "vctk/p228_023.wav", "seed": 0}. The id names
the files; the voice is a path in the voices repository, or a local .safetensors file of its embedding.
Written are out/<id>.wav (16 bit, mono, 24 kHz; whole or not at all) and out/results.jsonl, one line a text:
{"id", "num_samples", "request"} or {"id", "error", "kind", "request"} with kind "value" (the request is
wrong) or "runtime". "request" is a digest of all that shapes the sound. A second run with the same manifest
speaks what is missing or failed; where an id has several lines, the last one counts.

`--serve` keeps the model loaded for `hf_clsi.speech.kyutai.KyutaiEngine`: after a first line {"version",
"sampling_rate_hz"} or {"error"}, every line of standard input is the path of a manifest, answered by one line
{"num_texts", "num_errors"} or {"error", "kind"} when it is done; the files go to a folder of the manifest's
name in the output folder. The end of standard input ends the process at once, whatever it is doing.

Texts are spoken one by one, each after setting the seed: in a batch they would share one stream of random
numbers, and a text would sound different in other company.

Written after moshi 0.2.13, `moshi/run_tts.py` and `moshi/models/tts.py`.
"""

import argparse
import hashlib
import json
import os
import queue
import re
import sys
import threading
import wave
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
INSTALL = "python3 -m venv ~/moshi && ~/moshi/bin/pip install moshi"


class KyutaiModel:
    """Kyutai TTS, loaded.

    options: the arguments of the command line. Raises RuntimeError for a checkpoint without voice embeddings,
    and whatever moshi raises.
    """

    def __init__(self, options):
        import moshi.models.loaders
        import moshi.models.tts
        import torch

        self.torch = torch
        revision = {"revision": options.revision} if options.revision else {}
        self.model = moshi.models.tts.TTSModel.from_checkpoint_info(
            moshi.models.loaders.CheckpointInfo.from_hf_repo(options.checkpoint, **revision),
            voice_repo=options.voices_repo,
            n_q=options.num_codebooks,
            temp=options.temperature,
            cfg_coef=options.cfg_coef,
            max_gen_length=round(options.max_seconds * 12.5),
            device=options.device or ("cuda" if torch.cuda.is_available() else "cpu"),
            dtype=getattr(torch, options.dtype),
        )
        if not self.model.multi_speaker:
            raise RuntimeError(
                f"{options.checkpoint} takes a recording as its voice; this script drives models that take "
                "voice embeddings, as kyutai/tts-1.6b-en_fr does"
            )
        # The 1.6B model learned classifier-free guidance by distillation: the coefficient is a condition, and
        # guidance itself stays off.
        self.cfg_condition = None
        if self.model.valid_cfg_conditionings:
            self.cfg_condition = self.model.cfg_coef
            self.model.cfg_coef = 1.0
        self.sampling_rate_hz = int(self.model.mimi.sample_rate)

    def speak(self, text, voice, seed):
        """Speak `text` (str) -> int16 samples [n]. ValueError for an unknown voice or nothing to say."""
        model, torch = self.model, self.torch
        entries = model.prepare_script([text], padding_between=1)
        if not any(entry.tokens for entry in entries):
            raise ValueError("there is no word in the text")
        distilled = self.cfg_condition is not None
        attributes = model.make_condition_attributes([self.voice_path(voice)], self.cfg_condition)
        torch.manual_seed(seed)
        result = model.generate(
            [entries], [attributes], cfg_is_no_prefix=not distilled, cfg_is_no_text=not distilled
        )
        end_step = result.end_steps[0]
        if end_step is None:
            raise RuntimeError(f"the text was not finished after {model.max_gen_length} frames")
        with torch.no_grad(), model.mimi.streaming(1):
            # Audio follows text by delay_steps frames; before that the model has said nothing yet.
            pieces = [model.mimi.decode(frame[:, 1:]) for frame in result.frames[model.delay_steps :]]
        waveform = torch.cat(pieces, dim=-1)[0, 0]
        seconds = (end_step + model.final_padding) / model.mimi.frame_rate
        samples = torch.round(waveform[: int(self.sampling_rate_hz * seconds)].float().cpu() * 32768)
        return samples.clamp(-32768, 32767).numpy().astype("<i2")

    def voice_path(self, voice):
        if voice.endswith(".safetensors"):
            path = Path(voice)
            if not path.is_file():
                raise ValueError(f"there is no file {voice!r}")
            return path
        try:
            return self.model.get_voice_path(voice)
        except Exception as error:
            # By name, since huggingface-hub has moved these classes about. No network is another matter.
            if type(error).__name__ in ("EntryNotFoundError", "RemoteEntryNotFoundError"):
                raise ValueError(
                    f"{self.model.voice_repo} has no voice {voice!r} for this model ({error})"
                ) from error
            raise


def read_manifest(path):
    """JSONL file -> list of {"id", "text", "voice", "seed"}. ValueError naming the first wrong line."""
    requests, seen = [], set()
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                request = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: no JSON ({error})") from error
            kinds = {"id": str, "text": str, "voice": str, "seed": int}
            wrong = [key for key, kind in kinds.items() if not isinstance(request.get(key), kind)]
            if wrong:
                raise ValueError(f"{path}, line {number}: {', '.join(wrong)} missing or of another type")
            if not ID.fullmatch(request["id"]) or request["id"] in seen:
                problem = "occurs twice" if request["id"] in seen else "cannot be a file name"
                raise ValueError(f"{path}, line {number}: the id {request['id']!r} {problem}")
            seen.add(request["id"])
            requests.append({key: request[key] for key in kinds})
    return requests


def read_results(path):
    """results.jsonl -> {id: its last line}. A line cut short by a sudden end is removed from the file."""
    if not path.exists():
        return {}
    data = path.read_bytes()
    if not data.endswith(b"\n"):
        data = data[: data.rfind(b"\n") + 1]
        os.truncate(path, len(data))
    return {line["id"]: line for line in map(json.loads, data.splitlines())}


def write_wav(path, samples, sampling_rate_hz):
    """int16 samples [n] -> a WAV file, which appears under its name only when it is whole."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with wave.open(str(unfinished), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(sampling_rate_hz)
            file.writeframes(samples.tobytes())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def speak_manifest(manifest, output_dir, load_model, options):
    """Speak what is missing -> {"num_texts", "num_errors"}.

    load_model: called, without arguments, only if something is missing.
    """
    requests = read_manifest(manifest)
    output_dir.mkdir(parents=True, exist_ok=True)
    results_path = output_dir / "results.jsonl"
    done = read_results(results_path)
    num_errors = 0
    with open(results_path, "a", encoding="utf-8") as results:
        for request in requests:
            path = output_dir / f"{request['id']}.wav"
            digest = request_digest(request, options)
            before = done.get(request["id"], {})
            if before.get("request") == digest and "num_samples" in before and path.exists():
                continue
            result = {"id": request["id"], "request": digest}
            model = load_model()
            try:
                samples = model.speak(request["text"], request["voice"], request["seed"])
                write_wav(path, samples, model.sampling_rate_hz)
                result["num_samples"] = len(samples)
            except OSError as error:
                if error.filename is not None or error.errno is not None:
                    raise  # a full disk concerns every text, not this one
                result |= {"error": f"{type(error).__name__}: {error}", "kind": "runtime"}
            except Exception as error:
                kind = "value" if isinstance(error, ValueError) else "runtime"
                said = str(error) if kind == "value" else f"{type(error).__name__}: {error}"
                result |= {"error": said, "kind": kind}
            num_errors += "error" in result
            results.write(json.dumps(result) + "\n")
            results.flush()
    return {"num_texts": len(requests), "num_errors": num_errors}


def request_digest(request, options):
    """16 hexadecimal digits that differ wherever the sound would."""
    shaping = ("checkpoint", "revision", "voices_repo", "num_codebooks", "temperature", "cfg_coef", "dtype")
    described = [request["text"], request["voice"], request["seed"]]
    described += [getattr(options, name) for name in shaping]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]


def serve(options, output):
    """Manifest paths from standard input, answers to `output` (a binary file), until the input ends."""

    def answer(message):
        output.write(json.dumps(message).encode() + b"\n")
        output.flush()

    manifests = queue.Queue()

    def listen():
        for line in sys.stdin.buffer:
            manifests.put(os.fsdecode(line.rstrip(b"\n")))
        os._exit(0)  # the caller is gone; nobody would hear the rest

    threading.Thread(target=listen, daemon=True).start()
    try:
        model = KyutaiModel(options)
    except ImportError as error:
        answer({"error": f"{error}. {sys.executable} needs the package moshi: {INSTALL}"})
        return 1
    except Exception as error:
        answer({"error": f"{type(error).__name__}: {error}"})
        return 1
    answer({"version": moshi_version(), "sampling_rate_hz": model.sampling_rate_hz})
    while True:
        manifest = Path(manifests.get())
        try:
            answer(speak_manifest(manifest, options.output_dir / manifest.stem, lambda: model, options))
        except ValueError as error:
            answer({"error": str(error), "kind": "value"})
        except OSError as error:
            answer({"error": f"{type(error).__name__}: {error}", "kind": "runtime"})


def moshi_version():
    try:
        return version("moshi")
    except PackageNotFoundError:
        return None


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description="Speak a manifest of texts with Kyutai TTS (package moshi).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--manifest", type=Path, help='JSONL file of {"id", "text", "voice", "seed"}')
    task.add_argument("--serve", action="store_true", help="take paths of manifests from standard input")
    task.add_argument("--version", action="store_true", help="print the version of moshi as JSON and end")
    parser.add_argument("--output-dir", type=Path, default=Path("speech"), help="folder of the WAV files")
    parser.add_argument("--checkpoint", default="kyutai/tts-1.6b-en_fr", help="Hub id of the model")
    parser.add_argument("--revision", help="commit of the model on the Hub")
    parser.add_argument("--voices-repo", default="kyutai/tts-voices", help="Hub id of the voices")
    parser.add_argument("--device", help="cuda, cuda:1, cpu; the GPU if there is one by default")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--num-codebooks", type=int, default=32, help="8 to 32: quality against speed")
    parser.add_argument("--temperature", type=float, default=0.6)
    parser.add_argument("--cfg-coef", type=float, default=2.0, help="how closely the voice is followed")
    parser.add_argument("--max-seconds", type=float, default=60.0, help="longest time a text may take to say")
    options = parser.parse_args(arguments)
    # A private copy of standard output: whatever the libraries print cannot break into the answers.
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    if options.version:
        output.write(json.dumps({"version": moshi_version()}).encode() + b"\n")
        output.flush()
        return 0
    if options.serve:
        return serve(options, output)
    loaded = []

    def load_model():
        if not loaded:
            loaded.append(KyutaiModel(options))
        return loaded[0]

    try:
        counts = speak_manifest(options.manifest, options.output_dir, load_model, options)
    except ImportError as error:
        print(f"{error}. {sys.executable} needs the package moshi: {INSTALL}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    output.write(json.dumps(counts).encode() + b"\n")
    output.flush()
    return 1 if counts["num_errors"] else 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # at once: taking torch apart takes seconds, in which a caller would mistake the exit code
