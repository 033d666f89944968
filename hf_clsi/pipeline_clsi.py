"""Speech in, its continuation out: the task `speech-continuation` of `transformers.pipeline`."""

import bisect
import math
from collections.abc import Iterator
from threading import Event, Thread
from typing import Any

import numpy as np
import torch
from transformers import Pipeline, StoppingCriteria, StoppingCriteriaList

from .generation_clsi import ClsiAudioStreamer, MaxSecondsCriteria, whole_frames

DEFAULT_SECONDS = 5.0
STREAMER_SETTINGS = ("chunk_seconds", "context_seconds", "overlap_seconds", "timeout")


class SpeechContinuationPipeline(Pipeline):
    r"""
    Continues speech with a model of units, through [`ClsiProcessor`] and its audio tokenizer.

    Example:

    >>> import hf_clsi  # or trust_remote_code=True
    >>> from transformers import pipeline
    >>> speak = pipeline("speech-continuation", model="runs/tiny/models/interleave-ft")  # doctest: +SKIP
    >>> result = speak("prompt.wav", max_new_seconds=3.0, seed=0)  # doctest: +SKIP
    >>> result["audio"], result["sampling_rate"], result["units"], result["seconds"]  # doctest: +SKIP

    Arguments of a call (or of `pipeline(...)`, as defaults):

        inputs: one of, or a list, dataset or generator of:
            the path of an audio file; its bytes; a waveform [samples] or [channels, samples]; a mapping with
            "array" (or "raw") and "sampling_rate", or with "bytes" and "path", as datasets' Audio columns
            yield; a mapping {"units": [n]} of the audio tokenizer's raw units.
        sampling_rate: Hz of bare waveforms.
        max_new_seconds (defaults to 5.0, unless `max_new_tokens` or `max_length` is given): speech to add, at
            most; a continuation that ends itself by EOS is shorter. Where the last token says more (one token
            can hold several units), it is cut.
        num_return_sequences: continuations of each prompt; with more than one, the result is a list of them.
        seed: makes sampling repeatable: every batch starts from it, whatever was drawn before, and PyTorch's
            global generators are left as they were.
        return_prompt (defaults to False): also return the prompt, alone and joined with its continuation.
        any argument of `generate`: `do_sample` (here True by default), `temperature`, `top_k`, `top_p`,
            `num_beams`, `max_new_tokens`, `cache_implementation`, `generation_config`, ...

    Returns for each prompt:
        "audio": the continuation, float32 [samples];
        "sampling_rate": Hz of it;
        "units": its raw units, uint16 [n] (collapsed where the model collapses runs);
        "seconds": how long it is;
        with `return_prompt`, "prompt": float32 [samples], mono and at the same rate (empty for units), and
        "joined": prompt and continuation.

    Raises:
        ValueError: audio that the feature extractor refuses, a prompt that leaves no room in the model's
            context, processor and model of different vocabularies or rates, more seconds than the context
            holds.
        RuntimeError: the checkpoint has no audio tokenizer.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_feature_extractor = False
    _load_image_processor = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.processor is None:
            raise ValueError(
                "A speech-continuation pipeline needs a processor: pass processor=ClsiProcessor(...)."
            )
        if self.processor.audio_tokenizer is None:
            raise RuntimeError(
                "The processor has no audio tokenizer, so it can neither hear a prompt nor speak. Save the "
                "processor with one, or pass processor=ClsiProcessor(..., audio_tokenizer=model)."
            )
        self.processor.check_model(self.model)
        self.processor.audio_tokenizer.to(self.device)
        # Batches are padded like token ids, on the left; of two padding sides the library would refuse one.
        self.tokenizer, self.feature_extractor = self.processor.tokenizer, None

    def _sanitize_parameters(
        self, sampling_rate=None, return_prompt=None, **generation
    ) -> tuple[dict, dict, dict]:
        preprocess = {} if sampling_rate is None else {"sampling_rate": sampling_rate}
        postprocess = {} if return_prompt is None else {"return_prompt": return_prompt}
        return preprocess, generation, postprocess

    def preprocess(self, inputs, sampling_rate: int | None = None) -> dict[str, Any]:
        """One prompt -> `input_ids` and `attention_mask` [1, T], and its waveform."""
        if isinstance(inputs, dict) and "units" in inputs:
            return {**self.processor(units=inputs["units"]), "prompt": np.zeros(0, dtype=np.float32)}
        features = self.processor.feature_extractor(inputs, sampling_rate=sampling_rate)
        if len(features["padding_mask"]) != 1:
            raise ValueError(
                f"Expected one prompt, got {len(features['padding_mask'])} waveforms in one: pass a list of "
                "prompts, not a list of lists."
            )
        prompt = features["input_values"][0, 0, : features["padding_mask"][0].sum()]
        return {
            **self.processor(prompt, sampling_rate=self.processor.feature_extractor.sampling_rate),
            "prompt": prompt,
        }

    def _forward(self, model_inputs, **generation) -> dict[str, Any]:
        inputs = dict(model_inputs)
        prompt = inputs.pop("prompt")
        rows, length = inputs["input_ids"].shape
        seed = generation.pop("seed", None)
        seconds, settings = self._generation_settings(length, generation)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices, enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            output = self.model.generate(**inputs, **settings)
        sequences = output if isinstance(output, torch.Tensor) else output.sequences
        limit = math.inf if seconds is None else seconds
        # A batch is taken apart again by its first axis: continuations of one prompt stay together.
        return {
            "sequences": sequences.reshape(rows, -1, sequences.shape[1]),
            "prompt_length": torch.full((rows,), length),
            "max_seconds": torch.full((rows,), limit, dtype=torch.float64),  # 163.84 s are 2,048 frames
            "prompt": prompt,
        }

    def _generation_settings(
        self, prompt_length: int, generation: dict[str, Any]
    ) -> tuple[float | None, dict[str, Any]]:
        """Arguments of a call -> seconds, if they limit it, and arguments of `generate`.

        The prompts are [B, prompt_length].
        """
        config = generation.get("generation_config")
        settings = dict(generation) if config is not None else {"do_sample": True, **generation}
        seconds = settings.pop("max_new_seconds", None)
        given = {*settings} if config is None else {*settings, *config.to_diff_dict()}
        if seconds is None and not given & {"max_new_tokens", "max_length"}:
            seconds = DEFAULT_SECONDS
        if seconds is None:
            return None, settings
        token_seconds = self.processor.token_seconds
        stop = MaxSecondsCriteria(token_seconds, seconds, prompt_length)
        # The shortest token bounds the number of tokens; the criterion ends a row that speaks in longer ones.
        most = math.ceil(seconds / token_seconds[token_seconds > 0].min() - 1e-9)
        context = self.model.config.context_length
        if context is not None and 0 < context - prompt_length < most:
            longest = token_seconds.max() * (context - prompt_length)
            if longest < seconds:
                raise ValueError(
                    f"A prompt of {prompt_length:,} tokens leaves room for {longest:.1f} s in the model's "
                    f"context of {context:,} tokens, less than max_new_seconds={seconds:g}. Ask for less, or "
                    "give a shorter prompt."
                )
            most = context - prompt_length
        settings.setdefault("max_new_tokens", most)
        criteria = [*settings.get("stopping_criteria", ()), stop]
        return seconds, {**settings, "stopping_criteria": StoppingCriteriaList(criteria)}

    def postprocess(
        self, model_outputs, return_prompt: bool = False
    ) -> "dict[str, Any] | list[dict[str, Any]]":
        """Token ids of one prompt -> its continuation, or a list of them."""
        # Of a batch that was taken apart, the library gives each part its axis of the batch back.
        length, prompt = int(model_outputs["prompt_length"]), np.ravel(model_outputs["prompt"])
        extractor, results = self.processor.feature_extractor, []
        for sequence in model_outputs["sequences"].reshape(-1, model_outputs["sequences"].shape[-1]):
            heard = len(self.processor.decode_frames(sequence[:length]))
            frames = self.processor.decode_frames(sequence)
            units = self.processor.decode_units(sequence[length:])
            seconds = float(model_outputs["max_seconds"])
            if seconds < math.inf:
                frames = frames[: heard + whole_frames(seconds, extractor.frame_rate)]
                units = units[: self._units_in(sequence[:length], units, len(frames))]
            # Decoded after the prompt, so that the voice goes on where it stopped.
            audio = self.processor.frames_to_audio(frames)[heard * extractor.hop_length :]
            result = {
                "audio": audio,
                "sampling_rate": extractor.sampling_rate,
                "units": units,
                "seconds": len(audio) / extractor.sampling_rate,
            }
            if return_prompt:
                result |= {"prompt": prompt, "joined": np.concatenate([prompt, audio])}
            results.append(result)
        return results[0] if len(results) == 1 else results

    def _units_in(self, prompt: torch.Tensor, units: np.ndarray, frames: int) -> int:
        """How many of the `units` after a `prompt` of token ids it takes to fill `frames` with both."""
        tokens = np.concatenate([prompt.cpu().numpy(), units])  # a unit is a token
        # More units never last for fewer frames.
        return bisect.bisect_left(
            range(len(units)),
            frames,
            key=lambda number: len(self.processor.decode_frames(tokens[: len(prompt) + number])),
        )

    def save_pretrained(self, save_directory, **kwargs) -> None:
        """Save model and processor (with its audio tokenizer) in one folder, which `pipeline` loads."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)

    def stream(self, inputs, **settings) -> Iterator[np.ndarray]:
        """Yield the continuation of one prompt while it is generated, as chunks of float32 [samples].

        Args:
            inputs: one prompt, as in a call.
            **settings: those of a call, and `chunk_seconds`, `context_seconds`, `overlap_seconds` and
                `timeout` of [`ClsiAudioStreamer`].

        Raises:
            ValueError: as in a call; beam search, or several continuations.

        Whoever stops reading early (`break`, `close`) stops the generation. `seed` seeds PyTorch's global
        generators here, since the drawing happens in another thread.
        """
        streaming = {key: settings.pop(key) for key in STREAMER_SETTINGS if key in settings}
        preprocess, generation, _ = self._sanitize_parameters(**settings)
        generation = {**self._forward_params, **generation}
        prompt = dict(self.preprocess(inputs, **{**self._preprocess_params, **preprocess}))
        prompt.pop("prompt")
        seed = generation.pop("seed", None)
        seconds, settings = self._generation_settings(prompt["input_ids"].shape[1], generation)
        streamer = ClsiAudioStreamer(self.processor, max_seconds=seconds, **streaming)
        reader_left = Event()
        settings["stopping_criteria"] = StoppingCriteriaList(
            [*settings.get("stopping_criteria", ()), _StopWhenSet(reader_left)]
        )
        prompt = {name: tensor.to(self.device) for name, tensor in prompt.items()}

        def generate() -> None:
            try:
                if seed is not None:
                    torch.manual_seed(seed)
                self.model.generate(**prompt, **settings, streamer=streamer)
            except BaseException as error:  # raised again where the chunks are read
                streamer.fail(error)

        thread = Thread(target=generate, name="speech-continuation", daemon=True)
        thread.start()
        try:
            yield from streamer
        finally:
            reader_left.set()
            thread.join()


class _StopWhenSet(StoppingCriteria):
    def __init__(self, event: Event):
        self.event = event

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)


__all__ = ["SpeechContinuationPipeline"]
