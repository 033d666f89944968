"""Prompts of units become continuations: what may come out, when it stops, audio while it is being made."""

import math
from collections.abc import Iterator
from queue import Queue

import numpy as np
import torch
from transformers import GenerationMixin, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from .configuration_clsi import ClsiConfig

# Shapes: B rows of a batch, T tokens of a row, V vocabulary.


class ClsiGenerationMixin(GenerationMixin):
    """`generate` for models of units: the library's, with the checks that a wrong prompt needs.

    By default, only units (and merges of units), EOS, and the model's own separator are generated: the other
    special tokens are in `generation_config.suppress_tokens`, where plain engines find them too.
    """

    output_modalities = ("audio",)  # as units

    def generate(self, inputs: torch.Tensor | None = None, *args, **kwargs):
        """As `GenerationMixin.generate`, whose every argument is taken: sampling, beams, caches, streamers.

        Args:
            inputs: prompts [B, T] of token ids, padded on the left; `ClsiProcessor` makes them, with their
                `attention_mask`. None starts from BOS alone.

        Raises:
            ValueError: a prompt without tokens, ids outside the vocabulary, or prompt and new tokens that
                together exceed the context of the decoder (`config.text_config.max_position_embeddings`).
        """
        prompt = kwargs.get("input_ids", inputs)
        if prompt is not None:
            check_token_ids(prompt, self.config)
            mask = kwargs.get("attention_mask")
            if mask is not None and mask.ndim == 2 and not mask.any(dim=1).all():
                empty = (~mask.any(dim=1)).nonzero()[0].item()
                raise ValueError(f"Row {empty} of the prompt is nothing but padding. Leave it out.")
        return super().generate(inputs, *args, **kwargs)

    def speech_continuation(self, processor, **settings):
        """The pipeline around this model, where model and processor are at hand; see the class it returns.

        Args:
            processor (`ClsiProcessor`): with an audio tokenizer.
            **settings: defaults of its calls.

        Returns:
            `SpeechContinuationPipeline`, on this model's device.
        """
        # Imported here, and so copied beside every checkpoint, where `pipeline(...)` looks for it.
        from .pipeline_clsi import SpeechContinuationPipeline

        return SpeechContinuationPipeline(
            self, processor=processor, task="speech-continuation", device=self.device, **settings
        )

    def _validate_generated_length(self, generation_config, input_ids_length, has_default_max_length):
        context = self.config.context_length
        if context is not None:
            if input_ids_length >= context:
                raise ValueError(
                    f"The prompt has {input_ids_length:,} tokens, and the model's context is {context:,} "
                    "(max_position_embeddings), which leaves no room to go on. Give the last part of it."
                )
            if has_default_max_length and generation_config.max_new_tokens is None:
                generation_config.max_length = min(generation_config.max_length, context)
            elif generation_config.max_length > context:
                new = generation_config.max_length - input_ids_length
                raise ValueError(
                    f"A prompt of {input_ids_length:,} tokens and {new:,} new ones exceed the model's "
                    f"context of {context:,} (max_position_embeddings). Ask for at most "
                    f"{context - input_ids_length:,} new tokens, or give a shorter prompt."
                )
        super()._validate_generated_length(generation_config, input_ids_length, has_default_max_length)


def suppressed_tokens(config: ClsiConfig) -> list[int]:
    """Special tokens that a continuation must not hold: all but EOS and the separator between sentences."""
    allowed = {config.eos_token_id, config.separator_token_id}
    return [token for token in (config.bos_token_id, config.pad_token_id) if token not in allowed]


def check_token_ids(ids: torch.Tensor, config: ClsiConfig) -> None:
    """Raise ValueError unless `ids` [B, T] are token ids of the model, at least one a row.

    It reads two numbers back from the device, so it is done once a prompt, not once a step.
    """
    if ids.ndim != 2 or ids.is_floating_point():
        raise ValueError(
            f"Expected token ids [rows, tokens] of integers, got {ids.dtype} {tuple(ids.shape)}."
        )
    if ids.numel() == 0:
        raise ValueError(
            f"The prompt is empty: {tuple(ids.shape)}. Begin it with BOS ({config.bos_token_id})."
        )
    lowest, highest = (bound.item() for bound in ids.aminmax())
    if lowest < 0 or highest >= config.vocab_size:
        raise ValueError(
            f"Token ids must lie in 0..{config.vocab_size - 1} ({config.num_units} units, "
            f"{config.num_merges} merges, 3 special tokens), got {lowest}..{highest}: they come from another "
            "audio tokenizer or another processor than the model's."
        )


def whole_frames(seconds: float, frame_rate: float) -> int:
    """Frames of `frame_rate` Hz that end within `seconds`, at least one.

    >>> whole_frames(0.24, 12.5), whole_frames(0.25, 12.5), whole_frames(0.01, 12.5)
    (3, 3, 1)
    """
    return max(1, math.floor(seconds * frame_rate + 1e-6))  # 0.24 * 12.5 need not be 3


class MaxSecondsCriteria(StoppingCriteria):
    """Ends each row once its new tokens sound for `max_seconds`, by at most one token more.

    Args:
        token_seconds: how long each token sounds [V], in seconds, as `ClsiProcessor.token_seconds` says.
        max_seconds: seconds of speech to generate.
        prompt_length: tokens T of the prompts (padding included), which do not count.
    """

    def __init__(self, token_seconds: "np.ndarray | torch.Tensor", max_seconds: float, prompt_length: int):
        if not max_seconds > 0:
            raise ValueError(f"max_seconds must be positive, got {max_seconds}.")
        self.token_seconds = torch.as_tensor(token_seconds, dtype=torch.float64)
        self.max_seconds, self.prompt_length = max_seconds, prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        self.token_seconds = self.token_seconds.to(input_ids.device)
        seconds = self.token_seconds[input_ids[:, self.prompt_length :]].sum(dim=1)
        return seconds >= self.max_seconds - 1e-9  # sums of frame lengths are not exact


class ClsiAudioStreamer(BaseStreamer):
    r"""
    Audio while it is generated: hand it to `generate`, and iterate over it in another thread.

    Units are decoded as they come, `chunk_seconds` at a time, together with the `context_seconds` before
    them, so that an audio tokenizer whose decoder looks back (Mimi's does, and only back) says the same as if
    everything were decoded at once. One that also looks ahead (Griffin-Lim in `ClsiUnitsModel`) would leave a
    seam; therefore the last `overlap_seconds` of a chunk are held back and blended with the next one.

    Args:
        processor (`ClsiProcessor`): with an audio tokenizer.
        chunk_seconds (`float`, defaults to 1.0): least new speech in a chunk; the delay before the first one.
        context_seconds (`float`, defaults to 10.0): speech before the chunk that is decoded again. Each
            second generated costs `1 + context_seconds / chunk_seconds` seconds of decoding.
        overlap_seconds (`float`, defaults to 0.04): blended at each border.
        skip_prompt (`bool`, defaults to `True`): leave out the prompt, which still serves as context.
        max_seconds (`float`, *optional*): hand out no more new speech than this, even if the last token says
            more.
        timeout (`float`, *optional*): seconds to wait for a chunk before `queue.Empty` is raised.

    Yields:
        float32 arrays [samples] at `processor.feature_extractor.sampling_rate`; joined, they are as long as
        `processor.decode` of the same tokens.

    Raises:
        ValueError: more than one row is generated; settings that are not positive.
        RuntimeError: the processor has no audio tokenizer.

    Example:

    >>> streamer = ClsiAudioStreamer(processor)  # doctest: +SKIP
    >>> Thread(target=model.generate, kwargs={**prompt, "streamer": streamer}).start()  # doctest: +SKIP
    >>> for chunk in streamer:  # doctest: +SKIP
    ...     play(chunk)

    `SpeechContinuationPipeline.stream` does this in one call, and stops cleanly when its reader does.
    """

    def __init__(
        self,
        processor,
        chunk_seconds: float = 1.0,
        context_seconds: float = 10.0,
        overlap_seconds: float = 0.04,
        skip_prompt: bool = True,
        max_seconds: float | None = None,
        timeout: float | None = None,
    ):
        if not chunk_seconds > 0 or context_seconds < 0 or overlap_seconds < 0:
            raise ValueError(
                "chunk_seconds must be positive, context_seconds and overlap_seconds not negative; got "
                f"{chunk_seconds}, {context_seconds} and {overlap_seconds}."
            )
        if processor.audio_tokenizer is None:
            raise RuntimeError("The processor has no audio tokenizer, so it cannot make audio of units.")
        self.processor, self.skip_prompt, self.timeout = processor, skip_prompt, timeout
        extractor = processor.feature_extractor
        self.chunk_frames = max(1, round(chunk_seconds * extractor.frame_rate))
        self.context_frames = round(context_seconds * extractor.frame_rate)
        self.overlap_samples = round(overlap_seconds * extractor.sampling_rate)
        self.max_frames = None if max_seconds is None else whole_frames(max_seconds, extractor.frame_rate)
        self.queue: Queue = Queue()
        self._begin()

    def _begin(self) -> None:
        self._tokens: list[int] = []
        self._has_prompt = False
        self._prompt_frames = 0
        self._sent = 0  # samples handed out or skipped, from the beginning of the prompt
        self._tail = np.zeros(0, dtype=np.float32)  # decoded behind `_sent`, not yet handed out

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt [1, T], then each new token [1]; called by `generate`."""
        rows = value.shape[0] if value.ndim > 0 else 1
        if (rows > 1 and not self._has_prompt) or (value.ndim > 1 and rows != 1):
            raise ValueError(
                f"ClsiAudioStreamer follows one row, and generate has {rows}. Generate them one by one."
            )
        self._tokens.extend(value.reshape(-1).tolist())
        if not self._has_prompt:
            self._has_prompt = True
            self._prompt_frames = len(self.processor.decode_frames(self._tokens))
            if self.skip_prompt:
                self._sent = self._prompt_frames * self.processor.feature_extractor.hop_length
            return
        self._decode(last=False)

    def end(self) -> None:
        """Hand out the rest; called by `generate` when it is done."""
        self._decode(last=True)
        self.queue.put(None)
        self._begin()

    def fail(self, error: BaseException) -> None:
        """Let the reader raise `error`, which ended `generate`; for whoever runs it in a thread."""
        self.queue.put(error)
        self._begin()

    def _decode(self, last: bool) -> None:
        hop = self.processor.feature_extractor.hop_length
        frames = self.processor.decode_frames(self._tokens)
        if self.max_frames is not None:
            frames = frames[: self._prompt_frames + self.max_frames]
        done = (self._sent + len(self._tail)) // hop
        if len(frames) - done < (1 if last else self.chunk_frames):
            if last and len(self._tail):
                self.queue.put(self._tail)
            return
        first = max(0, self._sent // hop - self.context_frames)
        audio = self.processor.frames_to_audio(frames[first:])[self._sent - first * hop :]
        blended = len(self._tail)
        ramp = np.linspace(0.0, 1.0, blended + 2, dtype=np.float32)[1:-1]
        audio[:blended] = (1 - ramp) * self._tail + ramp * audio[:blended]
        held = 0 if last else min(self.overlap_samples, len(audio) - 1)
        self._tail = audio[len(audio) - held :]
        self._sent += len(audio) - held
        self.queue.put(audio[: len(audio) - held])

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        chunk = self.queue.get(timeout=self.timeout)
        if chunk is None:
            raise StopIteration
        if isinstance(chunk, BaseException):
            raise chunk
        return chunk


__all__ = ["ClsiAudioStreamer", "ClsiGenerationMixin", "MaxSecondsCriteria"]
