"""What holds for every interleaving, whatever the stories and settings: properties, checked by hypothesis.

No unit occurs twice in the stories made up here, so every token of a batch tells which story, sentence and
language it comes from. Examples are the same in every run. Statistical tests have fixed seeds; bounds are
critical values for p = 0.001.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_clsi.batches.collator import InterleavingDataCollator
from hf_clsi.batches.stories import Documents, StoryTable

CODES = ("en", "fr", "de")
NUM_UNITS = 1_000_000
BOS, EOS, PAD = NUM_UNITS, NUM_UNITS + 1, NUM_UNITS + 2
SEPARATORS = {"none": [], "bos": [BOS], "eos": [EOS]}

checked = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


class Corpus:
    """Rows whose units are all different, and where each of them comes from.

    Args:
        lengths: units of every sentence, `lengths[story][sentence][language]`.
    """

    def __init__(self, lengths):
        fresh = itertools.count()
        self.lengths = lengths
        self.codes = CODES[: len(lengths[0][0])]
        self.counts = [len(story) for story in lengths]
        self.origin = {}  # unit -> (story, sentence, language, place in the sentence)
        self.rows = []
        for story, sentences in enumerate(lengths):
            row = {"story_id": f"story-{story}"} | {f"units_{code}": [] for code in self.codes}
            for sentence, sizes in enumerate(sentences):
                for language, size in enumerate(sizes):
                    units = [next(fresh) for _ in range(size)]
                    row[f"units_{self.codes[language]}"].append(units)
                    for place, unit in enumerate(units):
                        self.origin[unit] = (story, sentence, language, place)
            self.rows.append(row)

    def __repr__(self):
        return f"Corpus({self.lengths})"

    def sentence(self, story, sentence, language):
        return self.rows[story][f"units_{self.codes[language]}"][sentence]

    def collator(self, **options):
        return InterleavingDataCollator(self.codes, **{"num_units": NUM_UNITS, "max_length": 32, **options})

    def batch(self, epoch=0, **options):
        collator = self.collator(**options)
        collator.set_epoch(epoch)
        return collator(self.rows)

    def drawn(self, batch):
        """story -> the language of each of its sentences; none may be missing, be halved or be in two."""
        seen = {}
        for unit in units_of(batch):
            story, sentence, language, place = self.origin[unit]
            seen.setdefault(story, {}).setdefault(sentence, []).append((language, place))
        found = {}
        for story, sentences in seen.items():
            assert sorted(sentences) == list(range(self.counts[story])), "a sentence is missing"
            found[story] = []
            for sentence in range(self.counts[story]):
                language = sentences[sentence][0][0]
                size = len(self.sentence(story, sentence, language))
                assert sorted(sentences[sentence]) == [(language, place) for place in range(size)]
                found[story].append(language)
        return found

    def document(self, story, languages, options):
        """A story as it stands in a row: the simplest program that makes one."""
        separator = SEPARATORS[options["separator"]]
        tokens = [BOS] * options["prepend_bos"]
        for sentence, language in enumerate(languages):
            tokens += (separator if sentence else []) + self.sentence(story, sentence, language)
        return tokens + [EOS] * options["append_eos"]


@dataclass
class Row:
    """One row of a batch, without its pads."""

    tokens: list[int]
    labels: list[int]
    positions: list[int]
    num_pads: int

    def pieces(self):
        """[(tokens, labels)] of what is kept apart: positions restart there, and only there."""
        starts = [column for column, position in enumerate(self.positions) if position == 0]
        assert starts[0] == 0
        stops = [*starts[1:], len(self.tokens)]
        for start, stop in zip(starts, stops, strict=True):
            assert self.positions[start:stop] == list(range(stop - start))
        return [
            (self.tokens[start:stop], self.labels[start:stop])
            for start, stop in zip(starts, stops, strict=True)
        ]


def rows_of(batch):
    """The rows of a batch. Pads stand at the end, are no labels, and count their own positions."""
    found = []
    tensors = (batch[name].tolist() for name in ("input_ids", "labels", "position_ids"))
    for tokens, labels, positions in zip(*tensors, strict=True):
        used = tokens.index(PAD) if PAD in tokens else len(tokens)
        num_pads = len(tokens) - used
        assert used and tokens[used:] == [PAD] * num_pads
        assert labels[used:] == [-100] * num_pads
        assert positions[used:] == list(range(num_pads))
        found.append(Row(tokens[:used], labels[:used], positions[:used], num_pads))
    return found


def units_of(batch):
    """All units of a batch, row after row."""
    return [token for token in batch["input_ids"].flatten().tolist() if token < NUM_UNITS]


@st.composite
def corpora(draw, max_stories=5, max_sentences=6, max_units=6, languages=(1, 3)):
    number = draw(st.integers(*languages))
    sizes = st.lists(st.integers(1, max_units), min_size=number, max_size=number)
    story = st.lists(sizes, min_size=1, max_size=max_sentences)
    return Corpus(draw(st.lists(story, min_size=1, max_size=max_stories)))


seeds = st.integers(-(2**63), 2**63 - 1)
epochs = st.integers(0, 2**40)
formats = st.fixed_dictionaries(
    {
        "max_length": st.integers(3, 40),
        "prepend_bos": st.booleans(),
        "packing": st.sampled_from(["best_fit", "concatenate"]),
        "isolate": st.booleans(),
        "separator": st.sampled_from(["none", "bos", "eos"]),
        "append_eos": st.booleans(),
        "pad_to_max_length": st.booleans(),
        "seed": seeds,
    }
)


# --- every sentence once, in order, in one language ---------------------------------------------------------


@checked
@given(corpora(), formats, epochs)
def test_every_sentence_appears_once_in_order_in_one_language(corpus, options, epoch):
    batch = corpus.batch(epoch, **options)
    drawn = corpus.drawn(batch)  # each once, in one language
    assert sorted(drawn) == list(range(len(corpus.rows)))
    # In order: in the whole stream where it is only cut, in every row where documents are sorted into rows.
    whole = [units_of(batch)]
    parts = whole if options["packing"] == "concatenate" else [row.tokens for row in rows_of(batch)]
    for part in parts:
        places = [corpus.origin[token] for token in part if token < NUM_UNITS]
        for story in {place[0] for place in places}:
            own = [(sentence, place) for at, sentence, _, place in places if at == story]
            assert own == sorted(own)
    if options["packing"] == "concatenate":
        stories = [corpus.origin[unit][0] for unit in whole[0]]
        assert stories == sorted(stories)


@checked
@given(corpora(), formats, epochs)
def test_rows_hold_the_documents_and_nothing_else(corpus, options, epoch):
    """Against the simplest program: nothing is lost, doubled or moved, special tokens included."""
    batch = corpus.batch(epoch, **options)
    drawn = corpus.drawn(batch)
    rows = rows_of(batch)
    capacity = options["max_length"]
    documents = [corpus.document(story, drawn[story], options) for story in range(len(corpus.rows))]
    if options["packing"] == "concatenate":
        stream = list(itertools.chain(*documents))
        expected = [stream[start : start + capacity] for start in range(0, len(stream), capacity)]
        assert [row.tokens for row in rows] == expected
    else:
        if options["isolate"] and all(len(document) <= capacity for document in documents):
            found = Counter(tuple(tokens) for row in rows for tokens, _ in row.pieces())
            assert found == Counter(map(tuple, documents))
        used = sorted(len(row.tokens) for row in rows)
        assert used[-1] <= capacity
        assert len(used) == 1 or used[0] + used[1] > capacity, "two rows would have fitted into one"
    width = batch["input_ids"].shape[1]
    longest = max(len(row.tokens) for row in rows)
    assert (
        width == capacity if options["pad_to_max_length"] else longest <= width <= min(capacity, longest + 7)
    )


@checked
@given(corpora(), formats, epochs)
def test_long_stories_are_split_at_sentence_borders(corpus, options, epoch):
    options = {**options, "packing": "best_fit", "isolate": True}
    batch = corpus.batch(epoch, **options)
    drawn = corpus.drawn(batch)
    separator = SEPARATORS[options["separator"]]
    room = options["max_length"] - options["prepend_bos"] - options["append_eos"]
    parts = {}  # story -> [its parts]
    for row in rows_of(batch):
        for tokens, _ in row.pieces():
            body = tokens[options["prepend_bos"] :]
            assert tokens == [BOS] * options["prepend_bos"] + body
            origin = corpus.origin[body[0]]
            parts.setdefault(origin[0], []).append((origin, body))
    for story, found in parts.items():
        bodies = [body for _, body in sorted(found)]
        if options["append_eos"]:  # the story ends once, at its end
            assert bodies[-1][-1] == EOS
            bodies[-1] = bodies[-1][:-1]
        sentences = [corpus.sentence(story, i, language) for i, language in enumerate(drawn[story])]
        expected = sentences[0]
        for sentence in sentences[1:]:
            expected = expected + separator + sentence
        where = 0
        for body in bodies:
            assert body == expected[where : where + len(body)]
            where += len(body)
            if where == len(expected):
                break
            _, sentence, language, place = corpus.origin[body[-1]]
            cut = corpus.sentence(story, sentence, language)
            if place == len(cut) - 1:  # between two sentences: no separator on either side
                assert expected[where : where + len(separator)] == separator
                where += len(separator)
                following = corpus.sentence(story, sentence + 1, drawn[story][sentence + 1])
                assert len(body + separator + following) > room, "the next sentence would have fitted"
            else:
                assert len(cut) > room, "a sentence was cut that fits into a row"
                assert len(body) == room
        assert where == len(expected)


@checked
@given(corpora(), formats, epochs)
def test_labels_and_positions_follow_from_the_pieces(corpus, options, epoch):
    for row in rows_of(corpus.batch(epoch, **options)):  # which looks at the pads
        if not options["isolate"]:
            assert row.labels == row.tokens
            assert row.positions == list(range(len(row.tokens)))
            continue
        for tokens, labels in row.pieces():
            assert labels == [-100, *tokens[1:]]
            stories = {corpus.origin[token][0] for token in tokens if token < NUM_UNITS}
            assert len(stories) <= 1, "two documents in one piece"


@checked
@given(corpora(), formats, epochs, st.data())
def test_one_language_alone_is_the_source(corpus, options, epoch, data):
    language = data.draw(st.integers(0, len(corpus.codes) - 1))
    only = {"mode": "monolingual", "language": corpus.codes[language]}
    batch = corpus.batch(epoch, **options, **only)
    drawn = corpus.drawn(batch)
    assert drawn == {story: [language] * count for story, count in enumerate(corpus.counts)}
    by_weight = [float(code == corpus.codes[language]) for code in corpus.codes]
    for other in (
        corpus.batch(epoch, **options, weights=by_weight),
        corpus.batch(epoch + 1, **options, **only),
    ):
        assert_equal(other, batch)


@checked
@given(corpora(), formats, epochs, st.data())
def test_max_tokens_cuts_exactly(corpus, options, epoch, data):
    options["max_length"] = data.draw(st.integers(3, 8))  # so that some are cut and split
    limits = [data.draw(st.one_of(st.none(), st.integers(1, 25))) for _ in corpus.rows]
    collator = corpus.collator(**options, return_counts=True)
    collator.set_epoch(epoch)
    drawn = corpus.drawn(collator(corpus.rows))
    batch = collator([row | {"max_tokens": limit} for row, limit in zip(corpus.rows, limits, strict=True)])
    expected, num_ends = set(), 0
    for story, limit in enumerate(limits):
        sentences = [corpus.sentence(story, i, language) for i, language in enumerate(drawn[story])]
        whole = list(itertools.chain(*sentences))
        expected.update(whole[:limit])
        num_ends += options["append_eos"] and (limit is None or limit >= len(whole))
    assert sorted(units_of(batch)) == sorted(expected)
    assert batch["token_counts"][:, 0].sum() == len(expected)
    if options["separator"] != "eos":  # what was cut does not end
        assert int((batch["input_ids"] == EOS).sum()) == num_ends


# --- what a draw depends on ---------------------------------------------------------------------------------

policies = st.one_of(
    st.just({"mode": "mixed"}),
    st.fixed_dictionaries(
        {
            "switch_every": st.integers(1, 4),
            "switch_probability": st.one_of(st.none(), st.sampled_from([0.0, 0.3, 1.0])),
            "start_language": st.sampled_from([None, CODES[0]]),
        }
    ),
    st.fixed_dictionaries(
        {"switch_every": st.just("story"), "start_language": st.sampled_from([None, "en"])}
    ),
)


@checked
@given(corpora(max_stories=8), policies, seeds, epochs, st.data())
def test_draws_do_not_depend_on_the_batch_or_the_order(corpus, policy, seed, epoch, data):
    drawn = corpus.drawn(corpus.batch(epoch, seed=seed, **policy))
    collator = corpus.collator(seed=seed, packing="concatenate", **policy)
    collator.set_epoch(data.draw(epochs))
    order = data.draw(st.permutations(range(len(corpus.rows))))
    size = data.draw(st.integers(1, len(order)))
    found = {}
    for start in range(0, len(order), size):  # rows that name their epoch, in another order and packing
        rows = [corpus.rows[story] | {"epoch": epoch} for story in order[start : start + size]]
        found |= corpus.drawn(collator(rows))
    assert found == drawn


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_draws_do_not_depend_on_the_number_of_workers(num_workers):
    corpus = even_corpus(40, 5)
    collator = corpus.collator(seed=3)
    loader = torch.utils.data.DataLoader(
        corpus.rows,
        batch_size=7,
        shuffle=True,
        generator=torch.Generator().manual_seed(num_workers),
        collate_fn=collator,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,  # which must hear of the new epoch, too
    )
    for epoch in (0, 1, 5):
        collator.set_epoch(epoch)
        found = {}
        for batch in loader:
            found |= corpus.drawn(batch)
        assert found == corpus.drawn(corpus.batch(epoch, seed=3))


def test_epochs_and_seeds_differ():
    corpus = even_corpus(20, 5)
    draws = [corpus.drawn(corpus.batch(epoch, seed=seed)) for seed in range(5) for epoch in range(20)]
    assert not any(a == b for a, b in itertools.combinations(draws, 2))


# --- chances ------------------------------------------------------------------------------------------------

# Chi-square is above this with probability 0.001, for so many degrees of freedom.
CRITICAL = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47, 8: 26.12, 28: 56.89}
three_seeds = pytest.mark.parametrize("seed", [0, 1, 2])


def even_corpus(num_stories, num_sentences, num_languages=2):
    """Every sentence is one unit."""
    return Corpus([[[1] * num_languages] * num_sentences] * num_stories)


@pytest.fixture(scope="module")
def large():
    """Languages -> 2,000 stories of 8 sentences."""
    return {number: even_corpus(2000, 8, number) for number in (2, 3)}


def draw(corpus, epoch=0, **options):
    """`[stories, sentences]` languages, as the collator draws them."""
    units = np.array(units_of(corpus.batch(epoch, max_length=16, **options)))
    number = len(corpus.codes)
    languages = np.full(len(corpus.rows) * corpus.counts[0], -1)
    languages[units // number] = units % number
    assert units.size == languages.size and languages.min() >= 0
    return languages.reshape(len(corpus.rows), -1)


def chi_square(observed, expected):
    observed, expected = np.asarray(observed, dtype=float), np.asarray(expected, dtype=float)
    assert observed.sum() == pytest.approx(expected.sum())
    return float(((observed - expected) ** 2 / expected).sum())


def independence(a, b):
    """Chi-square of two variables of two values each being independent; one degree of freedom."""
    table = np.array([[np.sum((a == i) & (b == j)) for j in (0, 1)] for i in (0, 1)])
    return chi_square(table, table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum())


def test_the_statistics_see_what_they_shall_see():
    assert chi_square([510, 490], [500, 500]) == pytest.approx(0.4)
    assert chi_square([560, 440], [500, 500]) > CRITICAL[1]
    a = np.array([0, 1] * 500)
    assert independence(a, np.repeat([0, 1], 500)) == 0
    assert independence(a, a) == 1000


@three_seeds
def test_draws_are_uniform(large, seed):
    drawn = draw(large[2], seed=seed)
    french, total = drawn.sum(), drawn.size
    assert chi_square([total - french, french], [total / 2] * 2) < CRITICAL[1]
    at = drawn.sum(0)  # at every place in a story
    assert chi_square([*at, *(2000 - at)], [1000] * 16) < CRITICAL[8]
    patterns = np.bincount(drawn[:, :3] @ [1, 2, 4], minlength=8)  # of the first three sentences
    assert chi_square(patterns, [250] * 8) < CRITICAL[8]  # 7 degrees of freedom


@three_seeds
def test_neighbours_are_independent(large, seed):
    drawn = draw(large[2], seed=seed)
    assert independence(drawn[:, :-1].ravel(), drawn[:, 1:].ravel()) < CRITICAL[1]  # in a story
    assert independence(drawn[:-1].ravel(), drawn[1:].ravel()) < CRITICAL[1]  # in the next story
    switches = int((drawn[:, 1:] != drawn[:, :-1]).sum())
    assert chi_square([switches, 14_000 - switches], [7000, 7000]) < CRITICAL[1]
    pairs = sum(independence(drawn[:, i], drawn[:, j]) for i, j in itertools.combinations(range(8), 2))
    assert pairs < CRITICAL[28]


@three_seeds
def test_epochs_and_seeds_are_independent(large, seed):
    drawn = draw(large[2], seed=seed).ravel()
    assert independence(drawn, draw(large[2], epoch=1, seed=seed).ravel()) < CRITICAL[1]
    assert independence(drawn, draw(large[2], seed=seed + 100).ravel()) < CRITICAL[1]
    # Of 8 epochs, every sentence is in French in as many as 8 throws of a coin give.
    times = sum(draw(large[2], epoch=epoch, seed=seed) for epoch in range(8)).ravel()
    expected = 16_000 / 2**8 * np.array([1, 8, 28, 56, 70, 56, 28, 8, 1])
    assert chi_square(np.bincount(times, minlength=9), expected) < CRITICAL[8]


@three_seeds
@pytest.mark.parametrize("mode", ["interleaved", "mixed"])
def test_weights_are_chances(large, seed, mode):
    drawn = draw(large[3], seed=seed, weights=[1, 2, 5], mode=mode)
    if mode == "mixed":
        assert (drawn == drawn[:, :1]).all()
        drawn = drawn[:, 0]
    expected = drawn.size / 8 * np.array([1, 2, 5])
    assert chi_square(np.bincount(drawn.ravel(), minlength=3), expected) < CRITICAL[2]


@checked
@given(corpora(languages=(2, 3)), seeds, epochs, st.lists(st.integers(0, 3), min_size=3, max_size=3))
def test_a_language_without_weight_is_never_drawn(corpus, seed, epoch, weights):
    weights = weights[: len(corpus.codes)]
    if sum(weights):
        drawn = corpus.drawn(corpus.batch(epoch, seed=seed, weights=weights))
        assert all(weights[language] for languages in drawn.values() for language in languages)


# --- spans, chances of switching, start ---------------------------------------------------------------------


@checked
@given(corpora(languages=(2, 3)), policies, seeds, epochs)
def test_languages_change_only_where_they_may(corpus, policy, seed, epoch):
    drawn = corpus.drawn(corpus.batch(epoch, seed=seed, **policy))
    every, chance = policy.get("switch_every", "story"), policy.get("switch_probability")
    for languages in drawn.values():
        if policy.get("start_language") is not None:
            assert languages[0] == corpus.codes.index(policy["start_language"])
        for sentence, (before, after) in enumerate(itertools.pairwise(languages), start=1):
            if every == "story" or sentence % every or chance == 0.0:
                assert before == after
            elif chance == 1.0:
                assert before != after


@three_seeds
@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("chance", [0.1, 0.5, 0.9])
def test_the_chance_of_a_switch(large, seed, every, chance):
    drawn = draw(large[2], seed=seed, switch_every=every, switch_probability=chance)
    before, after = drawn[:, every - 1 : -1 : every], drawn[:, every::every]  # at the borders of spans
    switched = before != after
    n, share = switched.size, switched.mean()
    assert chi_square([n * share, n * (1 - share)], [n * chance, n * (1 - chance)]) < CRITICAL[1]
    first = drawn[:, 0].sum()
    assert chi_square([first, 2000 - first], [1000, 1000]) < CRITICAL[1]
    if switched.shape[1] > 1:  # a switch does not depend on the one before, nor on the language
        assert independence(switched[:, :-1].ravel(), switched[:, 1:].ravel()) < CRITICAL[1]
    assert independence(switched.ravel(), before.ravel()) < CRITICAL[1]


@three_seeds
def test_a_switch_leads_to_the_others_by_their_weights(large, seed):
    drawn = draw(large[3], seed=seed, switch_probability=0.6, weights=[1, 2, 5])
    before, after = drawn[:, :-1].ravel(), drawn[:, 1:].ravel()
    for language, weights in enumerate(([0, 2, 5], [1, 0, 5], [1, 2, 0])):
        led = np.bincount(after[(before == language) & (after != before)], minlength=3)
        assert led[language] == 0
        expected = led.sum() * np.array(weights) / sum(weights)
        kept = np.array(weights) > 0
        assert chi_square(led[kept], expected[kept]) < CRITICAL[1]


@three_seeds
def test_a_start_language_decides_the_first_span_alone(large, seed):
    drawn = draw(large[2], seed=seed, start_language="fr", switch_every=3)
    assert (drawn[:, :3] == 1).all()
    later = drawn[:, 3::3]
    assert chi_square([(later == 0).sum(), (later == 1).sum()], [later.size / 2] * 2) < CRITICAL[1]
    assert (draw(large[2], seed=seed, start_language="fr", switch_every="story") == 1).all()


@checked
@given(corpora(languages=(2, 2)), st.lists(policies, min_size=1, max_size=3), seeds, st.data())
def test_a_schedule_is_what_its_epochs_ask_for(corpus, entries, seed, data):
    begins = sorted(data.draw(st.sets(st.integers(1, 9), min_size=len(entries), max_size=len(entries))))
    schedule = dict(zip(begins, entries, strict=True))
    for epoch in range(10):
        own = next((schedule[begin] for begin in reversed(begins) if begin <= epoch), {})
        assert_equal(corpus.batch(epoch, seed=seed, schedule=schedule), corpus.batch(epoch, seed=seed, **own))


# --- what is reported beside the tokens ---------------------------------------------------------------------


@checked
@given(corpora(), formats, policies, epochs)
def test_languages_and_counts_are_those_of_the_tokens(corpus, options, policy, epoch):
    batch = corpus.batch(epoch, **options, **policy, return_counts=True, return_languages=True)
    ids, languages = batch["input_ids"], batch["languages"]
    assert languages.shape == ids.shape
    expected = [corpus.origin[i][2] if i < NUM_UNITS else -1 for i in ids.flatten().tolist()]
    assert languages.flatten().tolist() == expected
    drawn = corpus.drawn(batch)
    counts = [[0, 0, 0] for _ in corpus.codes]
    for story, chosen in drawn.items():
        for sentence, language in enumerate(chosen):
            size = len(corpus.sentence(story, sentence, language))
            counts[language] = [a + b for a, b in zip(counts[language], (size, size, 1), strict=True)]
    assert batch["token_counts"].tolist() == counts
    borders = [pair for chosen in drawn.values() for pair in itertools.pairwise(chosen)]
    assert batch["switch_counts"].tolist() == [sum(a != b for a, b in borders), len(borders)]


@checked
@given(corpora(), formats, epochs)
def test_flash_attention_gets_the_pieces(corpus, options, epoch):
    options = {**options, "isolate": True, "return_languages": True}
    packed = corpus.batch(epoch, **options)
    flat = corpus.batch(epoch, **options, return_flash_attn_kwargs=True)
    kept = packed["input_ids"] != PAD
    for name in ("input_ids", "labels", "position_ids", "languages"):
        assert flat[name].shape == (1, int(kept.sum()))
        assert torch.equal(flat[name][0], packed[name][kept])
    borders = [*torch.nonzero(flat["position_ids"][0] == 0).flatten().tolist(), int(kept.sum())]
    longest = max(stop - start for start, stop in itertools.pairwise(borders))
    for side in "qk":
        assert flat[f"cu_seq_lens_{side}"].tolist() == borders
        assert flat[f"cu_seq_lens_{side}"].dtype == torch.int32
        assert flat[f"max_length_{side}"] == longest


# --- tables, parts and Arrow --------------------------------------------------------------------------------


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def arrow(rows, chunks=1):
    import pyarrow as pa

    bounds = [len(rows) * index // chunks for index in range(chunks + 1)]
    parts = [pa.Table.from_pylist(rows[a:b]) for a, b in itertools.pairwise(bounds) if b > a]
    return pa.concat_tables(parts)


@checked
@given(corpora(), formats, policies, epochs, st.integers(1, 3), st.data())
def test_arrow_gives_the_same_batches(corpus, options, policy, epoch, chunks, data):
    options = {**options, **policy, "return_counts": True, "return_languages": True}
    expected = corpus.batch(epoch, **options)
    collator = corpus.collator(**options)
    collator.set_epoch(epoch)
    table = arrow(corpus.rows, chunks)
    assert_equal(collator(table), expected)
    stories = StoryTable.from_arrow(table, corpus.codes)
    assert_equal(collator(stories), expected)
    # Any of its stories, in any order, and slices of it.
    chosen = data.draw(st.lists(st.integers(0, len(corpus.rows) - 1), min_size=1, max_size=6, unique=True))
    some = collator([corpus.rows[story] for story in chosen])
    assert_equal(collator.collate(stories, Documents.whole(np.array(chosen), epoch)), some)
    first = data.draw(st.integers(0, len(corpus.rows) - 1))
    assert_equal(collator(table.slice(first)), collator(corpus.rows[first:]))
    assert_equal(collator(table.slice(first).combine_chunks().to_batches()[0]), collator(corpus.rows[first:]))


@checked
@given(corpora(max_stories=8), formats, policies, epochs, st.integers(1, 5), st.booleans())
def test_the_parts_of_a_batch_are_the_batch(corpus, options, policy, epoch, parts, backwards):
    options = {**options, **policy, "return_counts": True, "return_languages": True}
    collator = corpus.collator(**options)
    stories = StoryTable.from_arrow(arrow(corpus.rows), corpus.codes)
    documents = Documents.whole(len(corpus.rows), epoch)
    whole = collator.collate(stories, documents)
    num_rows = len(whole["input_ids"])
    arranged = collator.arrange(stories, documents)
    indices = reversed(range(parts)) if backwards else range(parts)
    found = {index: arranged.part(index, parts) for index in indices}
    rows = []
    for index in range(parts):
        part = found[index]
        assert_equal(part, collator.collate(stories, documents, part=(index, parts)))
        if (part["input_ids"] == PAD).all():  # more parts than rows: somebody has nothing to learn
            assert parts > num_rows
            assert (part["labels"] == -100).all() and not part["token_counts"].any()
        else:
            rows.append(part)
    for name in ("input_ids", "labels", "position_ids", "languages"):
        assert torch.equal(torch.cat([part[name] for part in rows]), whole[name])
    for name in ("token_counts", "switch_counts"):
        assert torch.equal(sum(part[name] for part in rows), whole[name])
    assert_equal(arranged.batch(), whole)  # filling rows leaves the arrangement as it is
    sizes = [len(part["input_ids"]) for part in rows]
    assert max(sizes) - min(sizes) <= 1
