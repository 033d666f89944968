"""ClsiProcessor: speech -> units -> token ids -> speech; the audio tokenizer that comes back."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoProcessor, AutoTokenizer

from hf_clsi import ClsiConfig, ClsiFeatureExtractor, ClsiProcessor, ClsiUnitsConfig, ClsiUnitsModel
from hf_clsi.processing_clsi import build_unit_tokenizer

RATE = 16_000


def tiny_units():
    torch.manual_seed(0)
    model = ClsiUnitsModel(ClsiUnitsConfig(num_units=32, sampling_rate=RATE, hop_length=1280)).eval()
    model.centroids.normal_()
    model.centroid_mels.normal_(mean=-3.0)
    model.mean_run_length.copy_(torch.linspace(1, 4, 32))
    return model


TOKENIZERS = {"mimi": 24_000, "units": RATE}


@pytest.fixture(scope="module")
def build(tiny_mimi):
    """Function that makes a processor with a small audio tokenizer of one kind."""
    make = {"mimi": tiny_mimi, "units": tiny_units}

    def build(kind, **settings):
        extractor = ClsiFeatureExtractor(sampling_rate=TOKENIZERS[kind], frame_rate=12.5)
        return ClsiProcessor(extractor, build_unit_tokenizer(32, [(7, 8), (32, 9)]), make[kind](), **settings)

    return build


@pytest.fixture
def text_only():
    """Without an audio tokenizer: 10 units, merges 10 = (7 8), 11 = (7 8 9); bos 12, eos 13, pad 14."""
    return ClsiProcessor(
        ClsiFeatureExtractor(), build_unit_tokenizer(10, [(7, 8), (10, 9)]), deduplicate=True
    )


def noise(seconds, rate, seed=0):
    """Noise whose loudness and color move, so that units differ."""
    steps = np.random.default_rng(seed).normal(size=int(seconds * rate))
    color = np.repeat(np.random.default_rng(seed + 1).uniform(0.01, 1, size=20), len(steps) // 20 + 1)[
        : len(steps)
    ]
    return (np.cumsum(steps) * 0.002 * color + steps * 0.05 * (1 - color)).astype(np.float32)


# -- the tokenizer of units ----------------------------------------------------------------------------------


def test_token_id_is_unit_id_then_merges_then_specials():
    tokenizer = build_unit_tokenizer(5, [(0, 1), (5, 2)])
    assert len(tokenizer) == 10
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (7, 8, 9)
    strings = tokenizer.convert_ids_to_tokens(list(range(7)))
    assert strings[5] == strings[0] + strings[1]
    assert strings[6] == strings[0] + strings[1] + strings[2]


def test_merges_apply_in_the_order_in_which_they_were_learned():
    tokenizer = build_unit_tokenizer(4, [(1, 2), (0, 1)])
    text = "".join(tokenizer.convert_ids_to_tokens([0, 1, 2, 0, 1, 3]))
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == [0, 4, 5, 3]


def test_two_pairs_that_spell_the_same_share_an_id():
    tokenizer = build_unit_tokenizer(3, [(0, 1), (1, 2), (3, 2), (0, 4)])
    assert len(tokenizer) == 3 + 3 + 3


def test_all_of_uint16_survives(tmp_path):
    tokenizer = build_unit_tokenizer(65_536)
    units = [0, 65_535, 65_534, 65_533, 13, 10, 32, 0]
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for each in (tokenizer, loaded):
        text = "".join(each.convert_ids_to_tokens(units))
        assert each(text, add_special_tokens=False)["input_ids"] == units
        assert each.padding_side == "left"


@pytest.mark.parametrize("num_units", [0, 65_537])
def test_number_of_units_is_limited(num_units):
    with pytest.raises(ValueError, match=r"num_units must lie in 1\.\.65536"):
        build_unit_tokenizer(num_units)


def test_a_merge_of_unknown_ids_is_refused():
    with pytest.raises(ValueError, match=r"Merge 1 joins ids 6 and 0, but only ids 0\.\.5 exist"):
        build_unit_tokenizer(5, [(0, 1), (6, 0)])


# -- units in, units out -------------------------------------------------------------------------------------


def test_units_become_a_left_padded_batch(text_only):
    batch = text_only(units=[[5, 5, 7, 8, 8, 9], np.array([3], dtype=np.uint16)])
    assert batch["input_ids"].tolist() == [[12, 5, 11], [14, 12, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 1, 1]]
    assert batch["input_ids"].dtype == torch.int64


def test_one_sequence_gives_a_batch_of_one(text_only):
    assert text_only(units=torch.tensor([1, 2]))["input_ids"].tolist() == [[12, 1, 2]]
    assert text_only(units=[1, 2], add_bos=False, return_tensors=None)["input_ids"] == [[1, 2]]
    assert text_only(units=np.array([[1, 2], [3, 4]]), return_tensors="np")["input_ids"].shape == (2, 3)


def test_runs_are_kept_unless_deduplicate():
    processor = ClsiProcessor(ClsiFeatureExtractor(), build_unit_tokenizer(10))
    assert processor.encode_units([5, 5, 7, 7]).tolist() == [5, 5, 7, 7]
    processor = ClsiProcessor(ClsiFeatureExtractor(), build_unit_tokenizer(10), deduplicate=True)
    assert processor.encode_units([5, 5, 7, 7, 5]).tolist() == [5, 7, 5]


def test_decode_units_undoes_merges_and_drops_specials(text_only):
    units = text_only.decode_units(torch.tensor([14, 12, 5, 11, 13, 10, 13]))
    assert units.dtype == np.uint16
    assert units.tolist() == [5, 7, 8, 9, 7, 8]
    assert [row.tolist() for row in text_only.decode_units([[12, 1], [10, 13]])] == [[1], [7, 8]]
    assert text_only.decode_units([12, 13]).tolist() == []


@pytest.mark.parametrize("ids", [[0, 15], [-1, 3], [-100]])
def test_ids_out_of_range_are_refused(text_only, ids):
    with pytest.raises(ValueError, match=r"Token ids must lie in 0\.\.14"):
        text_only.decode_units(ids)


def test_refuses_what_makes_no_prompt(text_only):
    for arguments, message in (
        ({}, "exactly one of `audio`"),
        ({"audio": np.zeros(4), "units": [1]}, "exactly one of `audio`"),
        ({"units": [[1], []]}, "Sequence 1 has no units"),
        ({"units": [3, 10]}, r"Units must lie in 0\.\.9, got 3\.\.10"),
        ({"units": [0.5]}, "sequence of integers"),
    ):
        with pytest.raises(ValueError, match=message):
            text_only(**arguments)
    with pytest.raises(TypeError, match="unexpected text"):
        text_only(text="hello")


def test_audio_needs_an_audio_tokenizer(text_only):
    with pytest.raises(RuntimeError, match="has no audio tokenizer"):
        text_only(np.zeros(4), sampling_rate=24_000)
    with pytest.raises(RuntimeError, match="has no audio tokenizer"):
        text_only.decode([1])


def test_parts_that_do_not_belong_together_are_refused(tiny_mimi):
    extractor = ClsiFeatureExtractor(sampling_rate=RATE)
    with pytest.raises(ValueError, match="has 30 units, but the audio tokenizer ClsiUnitsModel has 32"):
        ClsiProcessor(extractor, build_unit_tokenizer(30), tiny_units())
    with pytest.raises(
        ValueError, match="has 16000 Hz of sampling rate, but the audio tokenizer MimiModel has 24000"
    ):
        ClsiProcessor(extractor, build_unit_tokenizer(32), tiny_mimi())
    with pytest.raises(ValueError, match="has 50 units a second"):
        ClsiProcessor(
            ClsiFeatureExtractor(sampling_rate=RATE, frame_rate=50), build_unit_tokenizer(32), tiny_units()
        )
    tokenizer = build_unit_tokenizer(30)
    tokenizer.add_tokens(["word"])
    with pytest.raises(ValueError, match="does not hold units, merges, bos, eos and pad in this order"):
        ClsiProcessor(extractor, tokenizer)


# -- through the audio tokenizer -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_audio_becomes_the_tokenizers_first_codebook(kind, build):
    processor = build(kind)
    rate = processor.feature_extractor.sampling_rate
    clip = noise(1.0, rate)
    frames = 13  # 12.5, rounded up to whole frames
    padded = np.pad(clip, (0, frames * rate * 2 // 25 - len(clip)))
    mask = torch.arange(len(padded))[None] < len(clip)
    with torch.no_grad():
        codes = processor.audio_tokenizer.encode(
            torch.from_numpy(padded)[None, None], padding_mask=mask
        ).audio_codes
    (units,) = processor.encode_audio(clip, sampling_rate=rate)
    assert units.tolist() == codes[0, 0].tolist()
    assert len(units) == frames
    assert len(set(units.tolist())) > 2
    expected = [processor.tokenizer.bos_token_id, *processor.encode_units(units).tolist()]
    assert processor(clip, sampling_rate=rate)["input_ids"].tolist() == [expected]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_batch_gives_the_units_of_one_by_one(kind, build):
    processor = build(kind)
    rate = processor.feature_extractor.sampling_rate
    clips = [noise(seconds, rate, seed) for seed, seconds in enumerate((0.61, 1.37, 0.05))]
    together = processor.encode_audio(clips, sampling_rate=rate)
    assert [len(units) for units in together] == [8, 18, 1]
    for clip, units in zip(clips, together, strict=True):
        assert processor.encode_audio(clip, sampling_rate=rate)[0].tolist() == units.tolist()


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_decode_is_the_tokenizers_decode(kind, build):
    processor = build(kind)
    tokens = [processor.tokenizer.bos_token_id, 3, 33, processor.tokenizer.eos_token_id]
    with torch.no_grad():
        expected = processor.audio_tokenizer.decode(torch.tensor([[[3, 7, 8, 9]]])).audio_values[0, 0].numpy()
    waveform = processor.decode(tokens)
    assert waveform.dtype == np.float32
    assert len(waveform) == 4 * processor.feature_extractor.hop_length
    np.testing.assert_array_equal(waveform, expected)
    batch = processor.batch_decode([tokens, [processor.tokenizer.eos_token_id]])
    np.testing.assert_array_equal(batch[0], expected)
    assert batch[1].shape == (0,)


def test_collapsed_units_get_their_mean_length_back(build):
    processor = build("units", deduplicate=True)
    hop = processor.feature_extractor.hop_length
    # mean_run_length: unit 0 lasts 1 frame, unit 31 lasts 4.
    assert len(processor.decode([0, 31, 0])) == 6 * hop
    assert len(build("mimi", deduplicate=True).decode([0, 31, 0])) == 3 * 1920


def test_encode_and_decode_keep_the_audio_tokenizer_free_of_gradients(build):
    processor = build("mimi")
    processor.decode([1, 2, 3])
    assert all(parameter.grad is None for parameter in processor.audio_tokenizer.parameters())


# -- checkpoints ---------------------------------------------------------------------------------------------


def all_text(folder):
    return "".join(path.read_text() for path in folder.rglob("*.json"))


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_checkpoint_brings_its_audio_tokenizer_back_even_when_moved(kind, tmp_path, build):
    processor = build(kind, deduplicate=True)
    processor.save_pretrained(tmp_path / "saved")
    assert (
        json.loads((tmp_path / "saved/processor_config.json").read_text())["audio_tokenizer_id"]
        == "./audio_tokenizer"
    )
    shutil.move(tmp_path / "saved", tmp_path / "moved")
    loaded = AutoProcessor.from_pretrained(tmp_path / "moved")
    assert type(loaded) is ClsiProcessor
    assert type(loaded.audio_tokenizer) is type(processor.audio_tokenizer)
    assert not loaded.audio_tokenizer.training
    assert loaded.deduplicate is True
    rate = processor.feature_extractor.sampling_rate
    batch = [noise(0.61, rate), noise(1.37, rate, 1)]
    ours, theirs = processor(batch, sampling_rate=rate), loaded(batch, sampling_rate=rate)
    assert ours["input_ids"].tolist() == theirs["input_ids"].tolist()
    np.testing.assert_array_equal(
        processor.decode(ours["input_ids"][1]), loaded.decode(theirs["input_ids"][1])
    )
    # Saved from its new place, the copy is as complete as the first, and names no folder of this machine.
    loaded.save_pretrained(tmp_path / "again")
    assert str(tmp_path) not in all_text(tmp_path / "again") + all_text(tmp_path / "moved")
    for path in (tmp_path / "moved").rglob("*"):
        if path.is_file():
            assert (
                path.read_bytes() == (tmp_path / "again" / path.relative_to(tmp_path / "moved")).read_bytes()
            ), path


def test_an_audio_tokenizer_inside_the_checkpoint_is_recorded_by_its_relative_path(tmp_path, build):
    tiny_units().save_pretrained(tmp_path / "parts" / "units")
    processor = build("units")
    processor.audio_tokenizer = ClsiUnitsModel.from_pretrained(tmp_path / "parts" / "units")
    processor.save_pretrained(tmp_path)
    assert not (tmp_path / "audio_tokenizer").exists()
    assert (
        json.loads((tmp_path / "processor_config.json").read_text())["audio_tokenizer_id"] == "./parts/units"
    )
    assert type(AutoProcessor.from_pretrained(tmp_path).audio_tokenizer) is ClsiUnitsModel


def test_an_audio_tokenizer_of_the_hub_is_recorded_by_its_id(tmp_path, monkeypatch, build, tiny_mimi):
    processor = build("mimi")
    processor.audio_tokenizer.name_or_path = "someone/mimi"
    processor.save_pretrained(tmp_path)
    assert not (tmp_path / "audio_tokenizer").exists()
    assert (
        json.loads((tmp_path / "processor_config.json").read_text())["audio_tokenizer_id"] == "someone/mimi"
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"(?s)'someone/mimi' of .* Pass load_audio_tokenizer=False"):
        AutoProcessor.from_pretrained(tmp_path)
    without = AutoProcessor.from_pretrained(tmp_path, load_audio_tokenizer=False)
    assert without.audio_tokenizer is None
    assert without.decode_units([33]).tolist() == [7, 8, 9]
    # Without having been loaded, the reference is kept.
    without.save_pretrained(tmp_path / "copy")
    assert (
        json.loads((tmp_path / "copy/processor_config.json").read_text())["audio_tokenizer_id"]
        == "someone/mimi"
    )
    other = tiny_mimi()
    assert AutoProcessor.from_pretrained(tmp_path, audio_tokenizer=other).audio_tokenizer is other


def test_a_relative_folder_is_no_hub_id_wherever_the_processor_is_saved_from(tmp_path, monkeypatch, build):
    build("units").audio_tokenizer.save_pretrained(tmp_path / "here" / "codec")
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    audio_tokenizer = ClsiUnitsModel.from_pretrained("codec")
    processor = ClsiProcessor(
        ClsiFeatureExtractor(sampling_rate=RATE), build_unit_tokenizer(32), audio_tokenizer
    )
    monkeypatch.chdir(tmp_path / "there")
    processor.save_pretrained("slm")
    assert processor.audio_tokenizer_id == "./audio_tokenizer"
    assert AutoProcessor.from_pretrained("slm").audio_tokenizer is not None


def test_a_processor_loaded_without_its_audio_tokenizer_makes_no_incomplete_copy(tmp_path, build):
    build("units").save_pretrained(tmp_path / "a")
    without = AutoProcessor.from_pretrained(tmp_path / "a", load_audio_tokenizer=False)
    without.save_pretrained(tmp_path / "a")
    assert AutoProcessor.from_pretrained(tmp_path / "a").audio_tokenizer is not None
    with pytest.raises(ValueError, match="was loaded without it"):
        without.save_pretrained(tmp_path / "b")


def test_a_reference_that_leaves_the_checkpoint_is_refused(tmp_path, build):
    build("units").save_pretrained(tmp_path / "a")
    path = tmp_path / "a/processor_config.json"
    path.write_text(path.read_text().replace("./audio_tokenizer", "./../elsewhere"))
    with pytest.raises(ValueError, match="outside itself"):
        AutoProcessor.from_pretrained(tmp_path / "a")


def test_no_audio_tokenizer_round_trips(text_only, tmp_path):
    text_only.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert loaded.audio_tokenizer is None
    assert loaded(units=[5, 5, 7, 8])["input_ids"].tolist() == [[12, 5, 10]]
    assert repr(loaded).startswith("ClsiProcessor:")


# -- how long, and whose -------------------------------------------------------------------------------------


def spoken(merges=(), deduplicate=False):
    """With an embedded tokenizer whose units 0, 1, 2, 3 last 1, 1.5, 2.5 and (never heard) 0 frames."""
    units = ClsiUnitsModel(ClsiUnitsConfig(num_units=4)).eval()
    units.mean_run_length.copy_(torch.tensor([1.0, 1.5, 2.5, 0.0]))
    extractor = ClsiFeatureExtractor(sampling_rate=16_000, frame_rate=12.5)
    return ClsiProcessor(extractor, build_unit_tokenizer(4, merges), units, deduplicate=deduplicate)


def test_every_token_has_its_seconds():
    """Units, merges (0 1) and (0 1 2), then BOS, EOS, PAD; a frame is 0.08 s."""
    merges = [(0, 1), (4, 2)]
    plain = [1, 1, 1, 1, 2, 3, 0, 0, 0]
    np.testing.assert_allclose(spoken(merges).token_seconds, np.array(plain) * 0.08)
    lasting = [1, 1.5, 2.5, 1, 2.5, 5, 0, 0, 0]
    np.testing.assert_allclose(spoken(merges, deduplicate=True).token_seconds, np.array(lasting) * 0.08)


def test_frames_of_a_beginning_are_the_beginning_of_the_frames():
    processor = spoken([(0, 1), (4, 2)], deduplicate=True)
    tokens = [6, 5, 1, 1, 2, 3, 4, 7, 8]  # BOS, 0 1 2, 1, 1, 2, 3, 0 1, EOS, PAD
    frames = processor.decode_frames(tokens).tolist()
    # They end after 1, 2.5, 5, 6.5, 8, 10.5, 11.5, 12.5, 14 frames, rounded to even: 1 2 5 6 8 10 12 12 14.
    assert frames == [0, 1, 2, 2, 2, 1, 1, 1, 2, 2, 3, 3, 1, 1]
    for length in range(len(tokens)):
        beginning = processor.decode_frames(tokens[:length]).tolist()
        assert beginning == frames[: len(beginning)]
    assert len(processor.decode(tokens)) == 14 * 1280


def test_frames_need_no_audio_tokenizer(text_only):
    assert text_only.decode_frames([5, 5, 8]).tolist() == text_only.decode_units([5, 5, 8]).tolist()


def test_a_model_of_other_tokens_is_told_apart():
    processor = spoken([(0, 1)], deduplicate=True)
    right = {
        "num_units": 4,
        "num_merges": 1,
        "deduplicate": True,
        "sampling_rate": 16_000,
        "frame_rate": 12.5,
    }
    processor.check_model(ClsiConfig(**right))
    for name, other in {
        "num_units": 5,
        "num_merges": 0,
        "deduplicate": False,
        "sampling_rate": 24_000,
        "frame_rate": 25.0,
    }.items():
        with pytest.raises(ValueError, match=f"processor has {name}=.* but the model has {name}={other}"):
            processor.check_model(ClsiConfig(**{**right, name: other}))


def test_a_path_is_audio(tmp_path):
    processor = spoken()
    samples = np.random.default_rng(0).normal(size=4000).astype(np.float32) * 0.1
    soundfile.write(tmp_path / "prompt.wav", samples, 16_000, subtype="FLOAT")
    expected = processor(samples, sampling_rate=16_000)["input_ids"]
    assert torch.equal(processor(tmp_path / "prompt.wav")["input_ids"], expected)
    assert torch.equal(processor([str(tmp_path / "prompt.wav")])["input_ids"], expected)
