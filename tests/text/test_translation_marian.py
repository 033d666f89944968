"""MarianTranslator on tiny models: one that has learned four sentences, and faults that random ones show."""

import io
import json
import sys
import warnings

import pytest
import torch

from hf_clsi.text.translation import Translation
from hf_clsi.text.translation_marian import MarianTranslator

PAIRS = {
    "The cat sleeps.": "Le chat dort.",
    "It dreams of the sea.": "Il rêve de la mer.",
    "The rain has stopped, and the sun is back.": "La pluie a cessé, et le soleil est revenu.",
    "Good night!": "Bonne nuit !",
}


@pytest.fixture(autouse=True)
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def save_marian(folder, codes=(), steps=0, end_bias=0.0, **tokenizer_config):
    """A Marian of width 32 with its own SentencePiece models, saved as OPUS-MT models are.

    steps: of training on PAIRS. end_bias: added to the logit of the end token, from which it is generated
    never (negative) or at once.
    """
    import sentencepiece
    from transformers import MarianConfig, MarianMTModel, MarianTokenizer

    folder.mkdir()
    pieces = ["</s>", "<unk>", *codes]
    for name, texts in (("source.spm", PAIRS), ("target.spm", PAIRS.values())):
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=60,
            hard_vocab_limit=False,
            num_threads=1,
            minloglevel=2,
        )
        (folder / name).write_bytes(model.getvalue())
        processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
        pieces += [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    pieces = [piece for piece in dict.fromkeys(pieces) if piece != "<s>"] + ["<pad>"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "MarianTokenizer", "model_max_length": 64, **tokenizer_config})
    )
    pad = vocabulary["<pad>"]
    config = MarianConfig(
        vocab_size=len(vocabulary),
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=64,
        dropout=0.0,
        init_std=0.1,
        pad_token_id=pad,
        eos_token_id=0,
        forced_eos_token_id=0,
        decoder_start_token_id=pad,
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Recommended: pip install sacremoses")
        torch.manual_seed(0)
        model = MarianMTModel(config)
        if steps:
            tokenizer = MarianTokenizer.from_pretrained(folder)
            batch = tokenizer(
                list(PAIRS), text_target=list(PAIRS.values()), padding=True, return_tensors="pt"
            )
            batch["labels"][batch["labels"] == pad] = -100
            optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
            for _ in range(steps):
                model(**batch).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
    model.final_logits_bias[0, 0] = end_bias
    model.generation_config.update(bad_words_ids=[[pad]], max_length=64, num_beams=2)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("marian") / "trained"
    return save_marian(folder, steps=120, source_lang="en", target_lang="fr")


@pytest.fixture(scope="module")
def random(tmp_path_factory):
    """Never comes to an end."""
    folder = tmp_path_factory.mktemp("marian") / "random"
    return save_marian(folder, end_bias=-1e4, source_lang="en", target_lang="fr")


# -- translations --------------------------------------------------------------------------------------------


def test_stories_become_as_many_sentences_in_order(trained):
    stories = [
        ["The rain has stopped, and the sun is back.", "Good night!"],
        ["Good night!"],
        ["The cat sleeps.", "It  dreams\nof the sea.", "Good night!"],
    ]
    assert MarianTranslator(trained).translate(stories, "en", "fr") == [
        Translation(("La pluie a cessé, et le soleil est revenu.", "Bonne nuit !")),
        Translation(("Bonne nuit !",)),
        Translation(("Le chat dort.", "Il rêve de la mer.", "Bonne nuit !")),
    ]


@pytest.mark.parametrize("changes", [{"batch_size": 1}, {"batch_size": 3}, {"num_beams": 1}])
def test_batches_and_beams_change_nothing_that_was_learned(trained, changes):
    results = MarianTranslator(trained, **changes).translate([list(PAIRS)], "en", "fr")
    assert results == [Translation(tuple(PAIRS.values()))]


def test_equal_sentences_are_translated_once(trained, capsys):
    MarianTranslator(trained).translate(
        [["Good night!", "The cat sleeps."], ["Good night!"]], "en", "fr", True
    )
    assert "translating: 100%" in (error := capsys.readouterr().err)
    assert " 2/2 " in error


def test_stories_that_cannot_be_translated_leave_the_others_alone(trained):
    results = MarianTranslator(trained).translate([[], ["Good night!"], ["a", ""]], "en", "fr")
    assert [result.reason for result in results] == ["empty_story", None, "empty_sentence"]
    assert results[1].sentences == ("Bonne nuit !",)


def test_nothing_to_translate_loads_no_model():
    assert MarianTranslator("/no/such/model").translate([], "en", "fr") == []
    assert MarianTranslator("/no/such/model").translate([[]], "en", "fr")[0].reason == "empty_story"


def test_variety_of_a_language_is_that_language(trained):
    (result,) = MarianTranslator(trained).translate([["Good night!"]], "en-us", "fr-be")
    assert result.sentences == ("Bonne nuit !",)


def test_random_state_is_neither_used_nor_changed(trained):
    before = torch.random.get_rng_state()
    MarianTranslator(trained).translate([["Good night!"]], "en", "fr")
    assert torch.equal(torch.random.get_rng_state(), before)


# -- faults of a sentence ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("max_new_tokens", "limit"), [(5, 5), (256, 63)])
def test_sentence_that_does_not_end_is_truncated(random, max_new_tokens, limit):
    """Though its last token is an end token: the model's config forces it there."""
    translator = MarianTranslator(random, max_new_tokens=max_new_tokens, num_beams=1)
    assert translator.translate([["The cat sleeps."]], "en", "fr") == [
        Translation(None, "truncated", f"'The cat sleeps.' needs {limit} tokens or more")
    ]


def test_only_the_story_with_the_truncated_sentence_is_dropped(trained):
    translator = MarianTranslator(trained, max_new_tokens=12)
    results = translator.translate([["Good night!"], ["Good night!", list(PAIRS)[2]]], "en", "fr")
    assert [result.reason for result in results] == [None, "truncated"]


def test_sentence_that_the_model_cannot_read_whole(trained):
    long = "The cat sleeps. " * 40
    results = MarianTranslator(trained).translate([[long], ["Good night!"]], "en", "fr")
    assert [result.reason for result in results] == ["too_long", None]
    assert results[0].message == (
        "'The cat sleeps. The cat sleeps. The cat ...' has 321 tokens, the model reads 64"
    )


def test_translation_that_is_empty(tmp_path):
    model = save_marian(tmp_path / "mute", end_bias=1e4, source_lang="en", target_lang="fr")
    assert MarianTranslator(model).translate([["The cat sleeps."]], "en", "fr") == [
        Translation(None, "empty_sentence", "'The cat sleeps.' became nothing")
    ]


# -- the direction -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("languages", "message"),
    [
        (("fr", "en"), "translates from 'en', not from 'fr'"),
        (("en", "de"), "translates to 'fr', not to 'de'"),
    ],
)
def test_model_of_another_direction_is_refused(random, languages, message):
    with pytest.raises(ValueError, match=message):
        MarianTranslator(random).translate([["Good night!"]], *languages)


def test_three_letter_languages_of_a_model(tmp_path):
    model = save_marian(tmp_path / "m", end_bias=1e4, source_lang="eng", target_lang="fra")
    MarianTranslator(model).translate([["Good night!"]], "en", "fr")
    with pytest.raises(ValueError, match="translates to 'fr', not to 'de'"):
        MarianTranslator(model).translate([["Good night!"]], "en", "de")


def test_languages_in_the_name_where_the_tokenizer_has_none(tmp_path):
    model = save_marian(tmp_path / "opus-mt-tc-big-en-fr", end_bias=1e4)
    MarianTranslator(model).translate([["Good night!"]], "en", "fr")
    with pytest.raises(ValueError, match="translates to 'fr', not to 'de'"):
        MarianTranslator(model).translate([["Good night!"]], "en", "de")


def test_unknown_direction_is_said(tmp_path):
    model = save_marian(tmp_path / "m", end_bias=1e4)
    with pytest.warns(UserWarning, match="'en' to 'fr' was not checked"):
        MarianTranslator(model).translate([["Good night!"]], "en", "fr")


def test_model_with_several_target_languages(tmp_path):
    codes = [">>fra<<", ">>deu<<"]
    model = save_marian(tmp_path / "m", codes, end_bias=1e4, source_lang="en", target_lang="mul")
    with pytest.raises(ValueError, match=r"are \['>>fra<<', '>>deu<<'\]; give one of these as target_code"):
        MarianTranslator(model).translate([["Good night!"]], "en", "fr")
    with pytest.raises(ValueError, match=r"got target_code='>>spa<<'"):
        MarianTranslator(model, target_code=">>spa<<").translate([["Good night!"]], "en", "es")
    with pytest.raises(ValueError, match="translates to 'de', not to 'fr'"):
        MarianTranslator(model, target_code=">>deu<<").translate([["Good night!"]], "en", "fr")
    MarianTranslator(model, target_code=">>fra<<").translate([["Good night!"]], "en", "fr")


def test_target_code_opens_what_the_model_reads(tmp_path, monkeypatch):
    from transformers import MarianMTModel

    model = save_marian(tmp_path / "m", [">>fra<<", ">>deu<<"], end_bias=1e4, source_lang="en")
    read = []
    generate = MarianMTModel.generate
    monkeypatch.setattr(
        MarianMTModel, "generate", lambda self, **k: read.append(k["input_ids"]) or generate(self, **k)
    )
    translator = MarianTranslator(model, target_code=">>deu<<")
    translator.translate([["Good night!"]], "en", "de")
    assert read[0][0, 0] == 3  # after </s>, <unk> and >>fra<<
    assert translator._load()[0].decode(read[0][0, 1:-1], use_source_tokenizer=True) == "Good night!"


# -- settings and loading ------------------------------------------------------------------------------------


def test_weights_are_float32_whatever_they_were_saved_in(tmp_path):
    from transformers import MarianMTModel

    model = save_marian(tmp_path / "m", source_lang="en", target_lang="fr")
    MarianMTModel.from_pretrained(model).half().save_pretrained(model)
    assert MarianTranslator(model)._load()[1].dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 and num_beams=4 must be at least 1"),
        ({"num_beams": 0}, "num_beams=0 must be at least 1"),
        ({"max_new_tokens": 1}, "max_new_tokens=1 at least 2"),
        ({"dtype": "int8"}, "dtype='int8' must be"),
    ],
)
def test_settings_without_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        MarianTranslator(**changes)


def test_model_that_is_not_there():
    with pytest.raises(RuntimeError, match="'/no/such/model' cannot be loaded"):
        MarianTranslator("/no/such/model").translate([["a"]], "en", "fr")


def test_model_of_another_kind(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match="is a model of type 'llama'; this engine runs Marian models"):
        MarianTranslator(str(tmp_path)).translate([["a"]], "en", "fr")


def test_missing_package_is_named_with_how_to_install_it(random, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ImportError, match="pip install sentencepiece"):
        MarianTranslator(random).translate([["a"]], "en", "fr")
