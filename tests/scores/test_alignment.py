import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_clsi.scores import alignment
from hf_clsi.scores.alignment import alignment_of_vectors, cross_lingual_alignment

VOCAB, BOS = 64, 63


def tiny_llama(initializer_range: float = 0.02) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=initializer_range,
    )
    return LlamaForCausalLM(config).eval()


def random_sentences(count: int, seed: int, low: int = 0, high: int = 30) -> list[np.ndarray]:
    """Ragged sentences, each of different tokens in another order or choice, so that none occurs twice."""
    rng = np.random.default_rng(seed)
    return [rng.integers(low, high, rng.integers(3, 12)).astype(np.uint16) for _ in range(count)]


def translate(sentences: list[np.ndarray]) -> list[np.ndarray]:
    """The other language: token t is called t + 30 there."""
    return [s + 30 for s in sentences]


def slow_alignment(model, sentences_a, sentences_b, layer) -> dict:
    """The obvious way: one sentence at a time, all cosines by loops over pairs."""

    def vector(sentence):
        ids = torch.tensor([[BOS, *(int(t) for t in sentence)]])
        with torch.no_grad():
            states = model(input_ids=ids, output_hidden_states=True).hidden_states[layer]
        return states[0, 1:].mean(dim=0).double().numpy()

    def cosine(x, y):
        return float(x @ y / np.sqrt((x @ x) * (y @ y)))

    a, b = [vector(s) for s in sentences_a], [vector(s) for s in sentences_b]
    n = len(a)
    plain = np.array([[cosine(x, y) for y in b] for x in a])
    mean_a, mean_b = sum(a) / n, sum(b) / n
    centred = np.array([[cosine(x - mean_a, y - mean_b) for y in b] for x in a])
    own = [plain[i, i] for i in range(n)]
    others = [plain[i, j] for i in range(n) for j in range(n) if i != j]

    def retrieval(matrix):
        return sum(int(np.argmax(matrix[i]) == i) for i in range(n)) / n

    return {
        "cosine": np.mean(own),
        "random_cosine": np.mean(others),
        "gap": np.mean(own) - np.mean(others),
        "centred_cosine": np.mean(np.diag(centred)),
        "retrieval_at_1_a_to_b": retrieval(centred),
        "retrieval_at_1_b_to_a": retrieval(centred.T),
        "retrieval_at_1": (retrieval(centred) + retrieval(centred.T)) / 2,
        "retrieval_at_1_raw_a_to_b": retrieval(plain),
        "retrieval_at_1_raw_b_to_a": retrieval(plain.T),
        "retrieval_at_1_raw": (retrieval(plain) + retrieval(plain.T)) / 2,
        "chance": 1 / n,
    }


def test_measures_equal_the_slow_way_in_every_layer(monkeypatch):
    monkeypatch.setattr(alignment, "QUERY_ROWS", 7)  # several blocks of the similarity matrix
    model = tiny_llama(0.3)
    a = random_sentences(30, seed=0)
    b = [
        np.concatenate([x[:4] + 30, y[:3]])
        for x, y in zip(a, random_sentences(30, seed=1, low=30, high=60), strict=True)
    ]
    with (
        torch.no_grad()
    ):  # half of the second language's embeddings are those of the first: some alignment to find
        model.model.embed_tokens.weight[30:45] = model.model.embed_tokens.weight[:15]
    got = cross_lingual_alignment(model, a, b, bos_token_id=BOS, batch_tokens=40, progress=False)
    assert [r["layer"] for r in got] == [0, 1, 2]
    for record in got:
        for name, value in slow_alignment(model, a, b, record["layer"]).items():
            assert record[name] == pytest.approx(value, abs=1e-5), (record["layer"], name)
        assert record["gap_ci95"][0] < record["gap"] < record["gap_ci95"][1]
        assert record["retrieval_at_1_ci95"][0] < record["retrieval_at_1"] < record["retrieval_at_1_ci95"][1]
    assert 0.1 < got[0]["retrieval_at_1"] < 1.0


def test_an_untrained_model_has_no_gap_and_retrieves_by_chance():
    model = tiny_llama()
    a, b = random_sentences(400, seed=0), random_sentences(400, seed=1, low=30, high=60)
    for record in cross_lingual_alignment(model, a, b, bos_token_id=BOS, progress=False):
        assert abs(record["gap"]) < 0.02
        assert record["gap_ci95"][0] < 0 < record["gap_ci95"][1]
        assert record["retrieval_at_1"] < 0.015  # chance is 0.0025


def test_a_planted_alignment_is_found_completely():
    # Token t + 30 has the embedding of token t: the two languages are one, sentence by sentence.
    model = tiny_llama()
    with torch.no_grad():
        model.model.embed_tokens.weight[30:60] = model.model.embed_tokens.weight[:30]
    a = random_sentences(60, seed=0)
    for record in cross_lingual_alignment(model, a, translate(a), bos_token_id=BOS, progress=False):
        assert record["cosine"] == pytest.approx(1.0, abs=1e-6)
        assert record["centred_cosine"] == pytest.approx(1.0, abs=1e-6)
        assert record["retrieval_at_1"] == record["retrieval_at_1_raw"] == 1.0
        assert record["gap"] > 0.1


def test_a_language_offset_hides_from_centred_measures_only():
    rng = np.random.default_rng(0)
    meaning, offset = rng.normal(size=(50, 8)), 20 * rng.normal(size=8)
    record = alignment_of_vectors(meaning, meaning + offset)
    assert record["centred_cosine"] == pytest.approx(1.0)
    assert record["retrieval_at_1"] == 1.0
    assert record["cosine"] < 0.5 and record["retrieval_at_1_raw"] < 0.9


def test_the_common_component_raises_the_cosine_but_not_the_gap():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(300, 16)) + 10, rng.normal(size=(300, 16)) + 10  # nothing aligned
    record = alignment_of_vectors(a, b)
    assert record["cosine"] > 0.98
    assert abs(record["gap"]) < 0.002 and abs(record["centred_cosine"]) < 0.1


def test_one_vector_for_everything_scores_chance_and_not_100_per_cent():
    vectors = np.ones((10, 4))
    record = alignment_of_vectors(vectors, vectors.copy())
    assert record["retrieval_at_1"] == record["retrieval_at_1_raw"] == record["chance"] == 0.1
    assert record["cosine"] == pytest.approx(1.0) and record["gap"] == pytest.approx(0.0)
    assert record["centred_cosine"] == 0.0


def test_repeated_sentences_share_the_hit():
    model = tiny_llama()
    with torch.no_grad():
        model.model.embed_tokens.weight[30:60] = model.model.embed_tokens.weight[:30]
    a = random_sentences(10, seed=0)
    a = [a[0], a[0], *a[1:9]]  # ten pairs, the first two the same sentence
    for record in cross_lingual_alignment(
        model, a, translate(a), bos_token_id=BOS, progress=False, batch_tokens=13
    ):
        assert (record["unique_a"], record["unique_b"], record["n"]) == (9, 9, 10)
        assert record["retrieval_at_1"] == pytest.approx(0.9)  # eight hits and twice one half


def test_batches_models_and_layers_agree():
    model = tiny_llama(0.2)
    a, b = random_sentences(20, seed=0), random_sentences(20, seed=1, low=30, high=60)
    full = cross_lingual_alignment(model, a, b, bos_token_id=BOS, progress=False)
    for other in (
        cross_lingual_alignment(model, a, b, bos_token_id=BOS, batch_tokens=1, progress=False),
        cross_lingual_alignment(
            model.model, a, b, bos_token_id=BOS, progress=False
        ),  # the decoder without its head
        cross_lingual_alignment(model, a, b, bos_token_id=BOS, layers=[0, 1, -1], progress=False),
    ):
        for x, y in zip(full, other, strict=True):
            assert x["layer"] == y["layer"]
            assert x["cosine"] == pytest.approx(y["cosine"], abs=1e-5)
    (last,) = cross_lingual_alignment(model, a, b, bos_token_id=BOS, layers=[-1], progress=False)
    assert last == full[-1]
    with pytest.raises(
        ValueError, match=r"layer 3 does not exist; this model has layers 0 \(embeddings\) to 2"
    ):
        cross_lingual_alignment(model, a, b, bos_token_id=BOS, layers=[3], progress=False)


def test_the_last_layer_is_the_last_hidden_state():
    model = tiny_llama(0.2)
    a, b = [np.array([1, 2, 3]), np.array([4])], [np.array([5, 6]), np.array([7, 8])]
    (record,) = cross_lingual_alignment(model, a, b, bos_token_id=BOS, layers=[-1], progress=False)
    vectors = []
    for sentence in (*a, *b):
        with torch.no_grad():
            state = model.model(input_ids=torch.tensor([[BOS, *sentence]])).last_hidden_state
        vectors.append(state[0, 1:].mean(dim=0).double().numpy())
    expected = alignment_of_vectors(np.stack(vectors[:2]), np.stack(vectors[2:]))
    assert record["cosine"] == pytest.approx(expected["cosine"], abs=1e-6)


def test_the_gap_interval_covers_the_truth_and_depends_on_the_seed_alone():
    # 100 sets of 40 pairs out of one population; the true gap is that of a very large set. The interval has
    # to hold it about 95 times (below 87 has probability under 0.1% at a true coverage of 95%).
    def sample(n, seed):
        rng = np.random.default_rng(seed)
        meaning = rng.normal(size=(n, 6))
        return meaning + rng.normal(size=(n, 6)) + 0.5, meaning + rng.normal(size=(n, 6)) + 0.5

    truth = alignment_of_vectors(*sample(4_000, 10**6), num_bootstrap=1)["gap"]
    records = [alignment_of_vectors(*sample(40, seed), num_bootstrap=400) for seed in range(100)]
    assert sum(r["gap_ci95"][0] <= truth <= r["gap_ci95"][1] for r in records) >= 87
    assert records[0] == alignment_of_vectors(*sample(40, 0), num_bootstrap=400)


def test_mode_is_left_as_found():
    model = tiny_llama().train()
    cross_lingual_alignment(model, [[1], [2]], [[3], [4]], bos_token_id=BOS, progress=False)
    assert model.training and model.model.layers[0].training


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([[1], [2]], [[1]], "Got 2 and 1 sentences"),
        ([[1]], [[1]], "at least 2"),
        ([[1], []], [[1], [2]], r"sentences_a\[1\]: no tokens"),
        ([[1], [2]], [[1], [VOCAB]], r"sentences_b\[1\]: token 64 is outside"),
        ([[1] * 64, [2]], [[1], [2]], r"sentences_a\[0\]: BOS and 64 tokens are more"),
    ],
)
def test_bad_sentences_are_refused_by_place(a, b, message):
    with pytest.raises(ValueError, match=message):
        cross_lingual_alignment(tiny_llama(), a, b, bos_token_id=BOS, progress=False)
