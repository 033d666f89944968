"""Generation: what may come out, where it ends, what is refused, and audio while it is made."""

import threading

import numpy as np
import pytest
import torch
from transformers import GenerationConfig
from transformers.modeling_utils import PreTrainedAudioTokenizerBase

from hf_clsi import (
    ClsiAudioStreamer,
    ClsiConfig,
    ClsiFeatureExtractor,
    ClsiForCausalLM,
    ClsiProcessor,
    ClsiUnitsConfig,
    ClsiUnitsModel,
)
from hf_clsi.generation_clsi import MaxSecondsCriteria
from hf_clsi.processing_clsi import build_unit_tokenizer

DECODER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.02,  # nearly uniform: every token comes out sooner or later
}
UNITS, BOS, EOS, PAD = range(20), 20, 21, 22


def build(**settings):
    torch.manual_seed(0)
    return ClsiForCausalLM(ClsiConfig(num_units=20, text_config=DECODER, **settings)).eval()


@pytest.fixture(scope="module")
def model():
    return build()


PROMPT = torch.tensor([[BOS, 1, 2, 3]])

# -- what may come out ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("separator", "allowed"),
    [("none", {*UNITS, EOS}), ("eos", {*UNITS, EOS}), ("bos", {*UNITS, EOS, BOS})],
)
def test_only_units_eos_and_the_separator_come_out(separator, allowed):
    torch.manual_seed(0)
    out = build(separator=separator).generate(
        PROMPT, max_new_tokens=40, do_sample=True, num_return_sequences=50
    )
    drawn = set()
    for row in out[:, 4:].tolist():
        end = row.index(EOS) + 1 if EOS in row else len(row)
        drawn.update(row[:end])
        assert set(row[end:]) <= {PAD}
    assert drawn == allowed


def test_without_the_constraint_other_specials_come_out(model):
    """The control of the test above."""
    torch.manual_seed(0)
    out = model.generate(
        PROMPT, max_new_tokens=40, do_sample=True, num_return_sequences=50, suppress_tokens=[]
    )
    assert {BOS, PAD} <= set(out[:, 4:].flatten().tolist())


def test_the_constraint_is_saved_and_survives_another_generation_config(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = ClsiForCausalLM.from_pretrained(tmp_path)
    assert loaded.generation_config.suppress_tokens == [BOS, PAD]
    torch.manual_seed(0)
    own = GenerationConfig(max_new_tokens=40, do_sample=True, num_return_sequences=50)
    assert BOS not in loaded.generate(PROMPT, generation_config=own)[:, 4:]


def test_beams_and_merges_keep_the_constraint():
    model = build(num_merges=3)
    out = model.generate(torch.tensor([[23, 1, 2]]), num_beams=4, num_return_sequences=4, max_new_tokens=20)
    continuation = out[:, 3:]
    assert not ((continuation == 23) | (continuation > 25)).any()


def test_no_prompt_begins_with_bos(model):
    assert model.generate(max_new_tokens=3, do_sample=False)[0, 0] == BOS


# -- limits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        (torch.tensor([[BOS, 23]]), {}, r"must lie in 0\.\.22 \(20 units, 0 merges, .* got 20\.\.23"),
        (torch.tensor([[-1, 2]]), {}, r"got -1\.\.2"),
        (torch.zeros(1, 0, dtype=torch.long), {}, r"prompt is empty: \(1, 0\)\. Begin it with BOS \(20\)"),
        (torch.tensor([1, 2]), {}, r"\[rows, tokens\] of integers, got torch.int64 \(2,\)"),
        (torch.tensor([[1.0, 2.0]]), {}, r"of integers, got torch.float32 \(1, 2\)"),
        (
            torch.tensor([[1, 2], [PAD, PAD]]),
            {"attention_mask": torch.tensor([[1, 1], [0, 0]])},
            "Row 1 of the prompt is nothing but padding",
        ),
        (torch.ones(1, 64, dtype=torch.long), {}, "prompt has 64 tokens, and the model's context is 64"),
        (
            PROMPT,
            {"max_new_tokens": 61},
            "prompt of 4 tokens and 61 new ones exceed .* at most 60 new tokens",
        ),
        (PROMPT, {"max_length": 65}, "exceed the model's context of 64"),
    ],
)
def test_prompts_that_cannot_be_continued_are_refused(model, prompt, settings, message):
    with pytest.raises(ValueError, match=message):
        model.generate(prompt, **settings)


def test_the_whole_context_may_be_used(model):
    assert model.generate(PROMPT, max_new_tokens=60, min_new_tokens=60).shape == (1, 64)


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
def test_the_default_length_stays_inside_the_context(model):
    assert model.generate(torch.ones(1, 60, dtype=torch.long), min_new_tokens=4).shape == (1, 64)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": torch.tensor([[BOS, 99]])}, r"got 20\.\.99"),
        ({"input_ids": torch.tensor([[-3]])}, r"got -3\.\.-3"),
        ({"input_ids": torch.zeros(2, 0, dtype=torch.long)}, "rows have no tokens"),
        (
            {"input_ids": torch.zeros(1, 65, dtype=torch.long)},
            "65 tokens is longer than the model's context of 64",
        ),
        ({"inputs_embeds": torch.zeros(1, 65, 32)}, "65 tokens is longer"),
        ({"input_ids": PROMPT, "labels": torch.tensor([[-100, 1, 99, 2]])}, r"got 0\.\.99"),
    ],
)
def test_forward_refuses_what_is_no_document(model, inputs, message):
    with pytest.raises(ValueError, match=message):
        model(**inputs)


def test_a_packed_row_may_be_longer_than_the_context(model):
    positions = torch.arange(50).repeat(2)[None]
    assert model(input_ids=torch.ones(1, 100, dtype=torch.long), position_ids=positions).logits.shape == (
        1,
        100,
        23,
    )


def test_arguments_are_left_as_they_were(model):
    prompt, mask = torch.tensor([[PAD, BOS, 1], [BOS, 2, 3]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
    config = GenerationConfig(max_new_tokens=4, do_sample=True)
    before = prompt.clone(), mask.clone(), config.to_dict(), model.generation_config.to_dict()
    model.generate(prompt, attention_mask=mask, generation_config=config)
    assert torch.equal(prompt, before[0])
    assert torch.equal(mask, before[1])
    assert (config.to_dict(), model.generation_config.to_dict()) == before[2:]


# -- seconds -------------------------------------------------------------------------------------------------


def test_rows_end_when_their_new_tokens_have_sounded_long_enough():
    criterion = MaxSecondsCriteria(np.array([0.08, 0.16, 0.0]), 0.24, prompt_length=1)
    # New tokens: 0.16 s, 0.32 s, 0.24 s to the last digit, 0 s; the prompt's 0.16 s do not count.
    ids = torch.tensor([[1, 0, 0], [1, 1, 1], [1, 0, 1], [1, 2, 2]])
    assert criterion(ids, None).tolist() == [False, True, True, False]


def test_seconds_must_be_positive():
    with pytest.raises(ValueError, match="max_seconds must be positive, got 0"):
        MaxSecondsCriteria(np.ones(3), 0, prompt_length=1)


# -- audio while it is generated -----------------------------------------------------------------------------


class Causal(PreTrainedAudioTokenizerBase):
    """Four samples a frame; each is the frame's unit plus half of the sample before: it only looks back."""

    config_class = ClsiUnitsConfig

    def __init__(self, num_units=20):
        frame = {"sampling_rate": 40, "hop_length": 4, "inner_hop_length": 4, "window_length": 4, "n_fft": 4}
        mels = {"num_mel_bins": 2, "num_mfcc": 2, "min_frequency": 1}
        super().__init__(ClsiUnitsConfig(num_units=num_units, **frame, **mels))
        self.anything = torch.nn.Parameter(torch.zeros(1))
        self.frames_decoded = []

    def encode(self, input_values, padding_mask=None):
        raise NotImplementedError

    def decode(self, audio_codes):
        self.frames_decoded.append(audio_codes.shape[-1])
        values, last = [], 0.0
        for unit in audio_codes[0, 0].tolist():
            for _ in range(4):
                last = unit / 20 + last / 2
                values.append(last)
        return type("Output", (), {"audio_values": torch.tensor(values)[None, None]})


def causal_processor():
    extractor = ClsiFeatureExtractor(sampling_rate=40, frame_rate=10.0)
    return ClsiProcessor(extractor, build_unit_tokenizer(20), Causal())


def feed(streamer, prompt, tokens):
    streamer.put(torch.tensor([prompt]))
    for token in tokens:
        streamer.put(torch.tensor([token]))
    streamer.end()
    return list(streamer)


TOKENS = [(7 * place) % 20 for place in range(25)]


@pytest.mark.parametrize("overlap", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("chunk", [0.1, 0.7, 100.0])
def test_a_decoder_that_looks_back_says_the_same_as_at_once(chunk, overlap):
    processor = causal_processor()
    streamer = ClsiAudioStreamer(processor, chunk_seconds=chunk, overlap_seconds=overlap)
    chunks = feed(streamer, [BOS, 5, 9], [*TOKENS, EOS])
    whole = processor.decode([BOS, 5, 9, *TOKENS, EOS])
    # What was held back comes last, alone where no frame came after it.
    assert len(chunks) - {0.1: 25, 0.7: 4, 100.0: 1}[chunk] in ([0] if overlap == 0.0 else [0, 1])
    np.testing.assert_allclose(np.concatenate(chunks), whole[2 * 4 :], atol=1e-6)


def test_the_prompt_is_spoken_too_if_asked_for():
    processor = causal_processor()
    chunks = feed(ClsiAudioStreamer(processor, chunk_seconds=0.5, skip_prompt=False), [BOS, 5, 9], TOKENS)
    np.testing.assert_allclose(np.concatenate(chunks), processor.decode([5, 9, *TOKENS]), atol=1e-6)


def test_context_bounds_what_is_decoded_again():
    processor = causal_processor()
    feed(
        ClsiAudioStreamer(processor, chunk_seconds=0.5, context_seconds=0.3, overlap_seconds=0.0),
        [BOS, 5],
        TOKENS,
    )
    # 5 frames a chunk after at most 3 of context; the first chunk has the prompt's one.
    assert processor.audio_tokenizer.frames_decoded == [6, 8, 8, 8, 8]


def test_a_streamer_can_follow_another_generation():
    streamer = ClsiAudioStreamer(causal_processor(), chunk_seconds=0.5)
    first, second = feed(streamer, [BOS, 5], TOKENS), feed(streamer, [BOS, 5], TOKENS)
    np.testing.assert_array_equal(np.concatenate(first), np.concatenate(second))


def test_nothing_generated_is_no_chunk():
    assert feed(ClsiAudioStreamer(causal_processor()), [BOS, 5], [EOS]) == []


def test_seams_of_a_decoder_that_looks_ahead_are_small():
    """Griffin-Lim, collapsed runs and merges: as long as at once, and nearly the same samples."""
    torch.manual_seed(0)
    units = ClsiUnitsModel(ClsiUnitsConfig(num_units=20, hop_length=320)).eval()
    units.centroid_mels.normal_(-3.0)
    units.mean_run_length.uniform_(1.0, 4.0)
    extractor = ClsiFeatureExtractor(sampling_rate=16_000, frame_rate=50.0)
    processor = ClsiProcessor(extractor, build_unit_tokenizer(20, [(1, 2), (7, 14)]), units, deduplicate=True)
    tokens = [*TOKENS, 20, 21, 20, 3]
    chunks = feed(ClsiAudioStreamer(processor, chunk_seconds=0.3), [22, 5, 9], tokens)
    whole = processor.decode([22, 5, 9, *tokens])[len(processor.decode([22, 5, 9])) :]
    joined = np.concatenate(chunks)
    assert len(chunks) > 3
    assert joined.shape == whole.shape
    assert np.corrcoef(joined, whole)[0, 1] > 0.8
    borders = np.cumsum([len(chunk) for chunk in chunks[:-1]])
    steps = np.abs(np.diff(joined))
    assert steps[borders - 1].max() <= steps.max() / 2  # no click at a border


def test_generate_feeds_the_streamer_from_another_thread(model):
    processor = causal_processor()
    streamer = ClsiAudioStreamer(processor, chunk_seconds=0.5, overlap_seconds=0.0, timeout=60)
    settings = {"max_new_tokens": 30, "do_sample": False, "min_new_tokens": 30}
    thread = threading.Thread(
        target=model.generate, args=(PROMPT,), kwargs={**settings, "streamer": streamer}
    )
    thread.start()
    chunks = list(streamer)
    thread.join()
    ids = model.generate(PROMPT, **settings)[0]
    assert len(chunks) == 6
    np.testing.assert_allclose(np.concatenate(chunks), processor.decode(ids)[3 * 4 :], atol=1e-6)


def test_an_error_of_the_generation_reaches_the_reader():
    streamer = ClsiAudioStreamer(causal_processor())
    streamer.fail(KeyError("out of memory"))
    with pytest.raises(KeyError, match="out of memory"):
        next(streamer)


def test_only_one_row_can_be_followed(model):
    streamer = ClsiAudioStreamer(causal_processor())
    with pytest.raises(ValueError, match="follows one row, and generate has 3"):
        model.generate(PROMPT, num_return_sequences=3, do_sample=True, streamer=streamer, max_new_tokens=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"chunk_seconds": 0}, "got 0, 10.0 and 0.04"), ({"context_seconds": -1}, "not negative"),
     ({"overlap_seconds": -1}, "not negative")],
)  # fmt: skip
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ClsiAudioStreamer(causal_processor(), **settings)


def test_a_streamer_needs_an_audio_tokenizer():
    processor = ClsiProcessor(ClsiFeatureExtractor(), build_unit_tokenizer(20))
    with pytest.raises(RuntimeError, match="no audio tokenizer"):
        ClsiAudioStreamer(processor)
