"""Byte-pair merges of units: what is learned, that nothing crosses a border, and that all of it comes
back."""

import json

import numpy as np
import pytest

from hf_clsi.units.merges import UnitMerges


def units(*values):
    return np.array(values, dtype=np.uint16)


def random_sentences(count=300, num_units=20, seed=0):
    """Sentences from a Markov chain with few successors per unit, so that there is something to merge."""
    rng = np.random.default_rng(seed)
    successors = rng.integers(0, num_units, size=(num_units, 2))
    sentences = []
    for length in rng.integers(1, 40, size=count):
        sentence = [rng.integers(num_units)]
        for _ in range(length - 1):
            sentence.append(successors[sentence[-1], rng.integers(2)] if rng.random() < 0.9 else sentence[-1])
        sentences.append(np.array(sentence, dtype=np.uint16))
    return sentences


def test_learning_joins_the_most_frequent_pair_first():
    # "0 1" occurs 5 times, "2 3" 3 times; then "4 2" (that is, 0 1 2) twice.
    sentences = [units(0, 1, 2, 3), units(0, 1, 2, 3), units(0, 1), units(2, 3), units(0, 1), units(0, 1)]
    merges = UnitMerges.learn(sentences, num_units=4, num_merges=2, show_progress=False)
    assert merges.pairs == ((0, 1), (2, 3))
    assert merges.token_lengths.tolist() == [1, 1, 1, 1, 2, 2]
    assert [tokens.tolist() for tokens in merges.encode([units(3, 0, 1, 2, 3, 2)])] == [[3, 4, 5, 2]]


def test_ids_stand_in_order_units_merges_bos_eos_pad():
    merges = UnitMerges(num_units=4, pairs=[(0, 1), (4, 2)])
    assert (merges.num_units, merges.num_merges) == (4, 2)
    assert (merges.bos_token_id, merges.eos_token_id, merges.pad_token_id, merges.vocab_size) == (6, 7, 8, 9)


def test_units_never_heard_in_training_keep_their_ids():
    merges = UnitMerges.learn([units(5, 9)] * 3, num_units=12, num_merges=1, show_progress=False)
    assert merges.pairs == ((5, 9),)
    assert merges.encode([units(0, 11, 5, 9, 7)])[0].tolist() == [0, 11, 12, 7]


def test_two_pairs_with_the_same_units_are_one_token():
    merges = UnitMerges(num_units=3, pairs=[(0, 1), (1, 2), (3, 2), (0, 4)])
    assert merges.num_merges == 3  # (3, 2) and (0, 4) are both 0 1 2
    assert merges.token_lengths.tolist() == [1, 1, 1, 2, 2, 3]


def test_merges_never_reach_over_a_sentence_border():
    # 0 is always followed by 1, but in the next sentence.
    sentences = [units(2, 0), units(1, 2)] * 50
    merges = UnitMerges.learn(sentences, num_units=3, num_merges=10, show_progress=False)
    assert merges.pairs and (0, 1) not in merges.pairs
    encoded = UnitMerges(num_units=3, pairs=[(0, 1)]).encode([units(2, 0), units(1, 2), units(0, 1)])
    assert [tokens.tolist() for tokens in encoded] == [[2, 0], [1, 2], [3]]


def test_learning_ends_early_when_no_pair_occurs_twice():
    merges = UnitMerges.learn(
        [units(0, 1, 2, 3), units(0, 1)], num_units=4, num_merges=50, show_progress=False
    )
    assert merges.num_merges == 1
    assert merges.vocab_size == 4 + 1 + 3


def test_learning_is_deterministic():
    first, second = (
        UnitMerges.learn(random_sentences(), num_units=20, num_merges=100, show_progress=False)
        for _ in range(2)
    )
    assert first.num_merges == 100
    assert first.pairs == second.pairs


def test_deduplication_comes_before_learning_and_encoding():
    sentences = [units(0, 0, 0, 1, 1), units(0, 1, 1)]
    merges = UnitMerges.learn(sentences, num_units=2, num_merges=5, deduplicate=True, show_progress=False)
    assert merges.pairs == ((0, 1),)
    assert merges.encode([units(0, 0, 1, 0, 1, 1)])[0].tolist() == [2, 2]
    assert merges.decode(np.array([2, 2])).tolist() == [0, 1, 0, 1]


def test_without_deduplication_runs_stay():
    assert UnitMerges(num_units=2).encode([units(0, 0, 1)])[0].tolist() == [0, 0, 1]


def test_no_merges_is_the_identity_as_integers():
    merges = UnitMerges.learn([units(3, 3, 1)], num_units=4, num_merges=0, show_progress=False)
    encoded = merges.encode([units(3, 3, 1), units()])
    assert [tokens.tolist() for tokens in encoded] == [[3, 3, 1], []]
    assert encoded[0].dtype == np.int32
    assert merges.vocab_size == 7


@pytest.mark.parametrize("deduplicate", [False, True])
def test_decoding_brings_back_every_sentence(deduplicate):
    sentences = [*random_sentences(), units()]
    merges = UnitMerges.learn(sentences, 20, 100, deduplicate=deduplicate, show_progress=False)
    encoded = merges.encode(sentences)
    expected = [
        s[np.diff(s, prepend=-1) != 0] if deduplicate and len(s) else s for s in map(np.int64, sentences)
    ]
    assert [merges.decode(tokens).tolist() for tokens in encoded] == [s.tolist() for s in expected]
    assert [merges.token_lengths[tokens].sum() for tokens in encoded] == [len(s) for s in expected]
    assert sum(map(len, encoded)) < 0.6 * sum(map(len, expected))


def test_all_65536_units_can_be_written():
    sentence = np.array([0, 65535, 0x10000 - 0x2000, 65535], dtype=np.uint16)
    merges = UnitMerges(num_units=65536, pairs=[(0, 65535)])
    assert merges.encode([sentence])[0].tolist() == [65536, 57344, 65535]
    assert merges.decode(np.array([65536, 57344])).tolist() == [0, 65535, 57344]


def test_saving_and_loading_is_a_round_trip(tmp_path):
    sentences = random_sentences()
    merges = UnitMerges.learn(sentences, 20, 60, deduplicate=True, show_progress=False)
    merges.save(tmp_path / "merges")
    loaded = UnitMerges.load(tmp_path / "merges")
    assert (loaded.num_units, loaded.pairs, loaded.deduplicate) == (20, merges.pairs, True)
    assert [t.tolist() for t in loaded.encode(sentences)] == [t.tolist() for t in merges.encode(sentences)]


def test_loading_from_a_checkpoint_takes_the_settings_from_its_config(tmp_path):
    merges = UnitMerges(num_units=4, pairs=[(0, 1), (4, 2)], deduplicate=True)
    merges.to_fast_tokenizer().save_pretrained(tmp_path)
    config = {"model_type": "clsi", "num_units": 4, "num_merges": 2, "deduplicate": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = UnitMerges.load(tmp_path)
    assert (loaded.pairs, loaded.deduplicate) == (merges.pairs, True)

    (tmp_path / "config.json").write_text(json.dumps({**config, "num_merges": 3}))
    with pytest.raises(ValueError, match=r"has 2 merges, but config\.json says 3"):
        UnitMerges.load(tmp_path)


def test_the_fast_tokenizer_gives_the_same_ids():
    sentences = random_sentences(count=50)
    merges = UnitMerges.learn(sentences, 20, 60, show_progress=False)
    tokenizer = merges.to_fast_tokenizer()
    assert len(tokenizer) == merges.vocab_size
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (
        merges.bos_token_id,
        merges.eos_token_id,
        merges.pad_token_id,
    )
    for sentence, tokens in zip(sentences, merges.encode(sentences), strict=True):
        text = "".join(tokenizer.convert_ids_to_tokens(sentence.tolist()))
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == tokens.tolist()


def test_a_unit_of_another_tokenizer_is_refused_with_its_sentence():
    merges = UnitMerges(num_units=4, pairs=[(0, 1)])
    with pytest.raises(ValueError, match=r"Sequence 2 has unit 4, but units lie in 0\.\.3"):
        merges.encode([units(0, 1), units(), units(1, 4)])
    with pytest.raises(ValueError, match="Sequence 0 has unit 9"):
        UnitMerges.learn([units(9)], num_units=4, num_merges=1, show_progress=False)
    with pytest.raises(ValueError, match="Sequence 0 must be one-dimensional"):
        merges.encode([np.zeros((1, 2), dtype=np.uint16)])


@pytest.mark.parametrize("token", [-1, 5, 7])
def test_special_and_unknown_tokens_cannot_be_decoded(token):
    with pytest.raises(ValueError, match=r"must lie in 0\.\.4"):
        UnitMerges(num_units=4, pairs=[(0, 1)]).decode(np.array([0, token]))


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match=r"num_units must lie in 1\.\.65536"):
        UnitMerges(num_units=65537)
    with pytest.raises(ValueError, match=r"Merge 1 joins 6 and 0, but only tokens 0\.\.4 exist"):
        UnitMerges(num_units=4, pairs=[(0, 1), (6, 0)])
    with pytest.raises(ValueError, match="num_merges must be at least 0"):
        UnitMerges.learn([units(0)], num_units=4, num_merges=-1)


def test_loading_from_the_hub_takes_the_files_of_a_checkpoint(tmp_path):
    """As huggingface_hub lays out its cache."""
    merges = UnitMerges(20, [(1, 2), (20, 3)], deduplicate=True)
    place = tmp_path / "models--someone--slm"
    revision = "0123456789abcdef0123456789abcdef01234567"
    merges.save(place / "snapshots" / revision)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(revision)
    loaded = UnitMerges.load("someone/slm", cache_dir=tmp_path, local_files_only=True)
    assert (loaded.num_units, loaded.pairs, loaded.deduplicate) == (20, merges.pairs, True)


@pytest.mark.parametrize("source", ["no/such/folder", "nothing"])
def test_a_missing_folder_is_no_hub_id(source):
    with pytest.raises(FileNotFoundError, match=source):
        UnitMerges.load(source)
