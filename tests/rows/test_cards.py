"""Facts to a card: what it says, what it refuses, and that the stock libraries read the folder with it."""

import dataclasses
import io
import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import yaml

from hf_clsi.rows import schema
from hf_clsi.rows.cards import (
    PAPER_CITATION,
    DatasetCard,
    Licence,
    Step,
    card_text,
    check_publishable,
    loading_snippet,
    size_category,
    write_card,
)
from hf_clsi.rows.shards import register_split, write_shards

STORIES = schema.story_columns(["en", "no"], extra=["topic", "voice_en", "voice_no"])
SPOKEN = schema.story_columns(["en", "no"], audio=True, extra=["topic", "voice_en", "voice_no"])
TRAIN = {"rows": 1200, "shards": 2, "seconds": {"en": 90.0, "no": 84.0}, "units": {"en": 1125, "no": 9}}
CARD = DatasetCard(
    name="clsi/stories",
    kind="story",
    summary="Two stories.",
    languages=["en", "no"],
    columns={"units": STORIES, "audio": SPOKEN},
    splits={
        "units": {"train": TRAIN, "validation": {"rows": 8, "shards": 1}},
        "audio": {"train": {"rows": 1200, "shards": 3}},
    },
    num_units=2048,
    frame_rate_hz=12.5,
    audio_tokenizer="kyutai/mimi",
    tokenizer_origin="given",
    seconds={"en": 7200.0, "no": 3600.0},
    units={"en": 90_000, "no": 45_000},
    steps=[
        Step("Spoken by\n a machine.", "espeak-ng 1.52", {"rate_wpm": 200, "speakers": ["a", "é"]}),
        Step("Cut."),
    ],
    command="hf-clsi build stories --source grammar",
    voices=[
        {
            "speaker": "f3",
            "voices": {"en": "en+f3", "no": "nb|f3"},
            "licences": {"en": "GPL-3.0", "no": "GPL-3.0"},
        },
        {"speaker": "m1", "voices": {"no": "nb+m1"}, "licences": {"no": "CC0-1.0"}},
    ],
    licence="other",
    licences=[
        Licence("text", "Apache-2.0", "a grammar"),
        Licence("speech", "none.", "espeak", "Made by E.\nAll."),
    ],
    dropped={"empty": 3, "refused": 1200},
    limits=["Synthetic.", "A\nminiature."],
    default_config="units",
    citation=PAPER_CITATION,
)


def changed(**changes):
    return dataclasses.replace(CARD, **changes)


def section(card, title):
    """The lines under a heading."""
    text = card_text(card).split(f"\n## {title}\n")[1].split("\n## ")[0]
    return text.strip().split("\n")


def header(path):
    return yaml.safe_load(path.read_text(encoding="utf-8").split("---\n")[1])


# ---- What it says


def test_front_matter(tmp_path):
    text = card_text(CARD)
    # Unquoted, `no` is false to the Hub's parser.
    assert "language:\n- en\n- 'no'\n" in text
    assert yaml.safe_load(text.split("---\n")[1]) == {
        "license": "other",
        "language": ["en", "no"],
        "pretty_name": "stories",
        "task_categories": ["audio-to-audio"],
        "size_categories": ["1K<n<10K"],
        "tags": ["speech", "audio-units", "hf_clsi"],
    }
    assert "license" not in yaml.safe_load(card_text(changed(licence=None)).split("---\n")[1])
    front = yaml.safe_load(card_text(changed(pretty_name="S", task_categories=["x"])).split("---\n")[1])
    assert (front["pretty_name"], front["task_categories"]) == ("S", ["x"])


def test_columns_are_told_once_a_family_with_type_and_meaning():
    assert section(CARD, "Columns") == [
        "A row is a story in every language, aligned sentence by sentence; `story_id` names it.",
        "",
        "| column | type | meaning |",
        "| --- | --- | --- |",
        "| `story_id` | `string` | name of the story, in every language the same row |",
        "| `speaker` | `string` | who speaks |",
        "| `units_en`, `units_no` | `List(List(uint16))` | units: one list of ids a sentence |",
        "| `text_en`, `text_no` | `List(string)` | the sentences as text |",
        "| `topic` | `string` | what it is about |",
        "| `voice_en`, `voice_no` | `string` | voice, or person, in that language |",
        "| `audio_en`, `audio_no` | `List(Audio(decode=False))` | "
        "the sentences as sound, one encoded file each (config `audio` only) |",
        "",
        "Units are plain frames of the audio tokenizer: ids from 0 to 2,047, one every 0.08 s, "
        "repetitions kept.",
    ]


@pytest.mark.parametrize("kind", schema.ROW_KINDS)
def test_every_column_of_the_schema_has_a_meaning(kind):
    languages = ["en", "fr"] if kind in ("story", "parallel") else []
    known = schema._known_metadata(kind, languages)
    make = {
        "story": lambda: schema.story_columns(languages, audio=True, extra=known),
        "parallel": lambda: schema.story_columns(languages, audio=True, extra=known),
        "cloze": lambda: schema.cloze_columns(audio=True, extra=known),
        "pair": lambda: schema.pair_columns(audio=True, extra=known),
    }
    columns = make[kind]()
    card = changed(
        kind=kind,
        languages=["en", "fr"],
        columns={"x": columns},
        splits={"x": {"test": {"rows": 1, "shards": 1}}},
        default_config=None,
    )
    text = "\n".join(section(card, "Columns"))
    assert all(f"`{name}`" in text for name in columns)


def test_a_column_without_a_meaning_is_refused():
    columns = {"units": STORIES | {"mood": "string"}, "audio": SPOKEN}
    with pytest.raises(ValueError, match="what does the column 'mood' of clsi/stories hold"):
        changed(columns=columns)
    card = changed(columns=columns, meanings={"mood": "how it ends", "units_{L}": "numbers"})
    assert "| `mood` | `string` | how it ends (config `units` only) |" in section(card, "Columns")
    assert "| `units_en`, `units_no` | `List(List(uint16))` | numbers |" in section(card, "Columns")


def test_sizes_are_those_given_and_no_others():
    assert section(CARD, "Size") == [
        "| config | split | rows | hours en | hours no | units en | units no |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| units | train | 1,200 | 0.0 | 0.0 | 1,125 | 9 |",
        "| units | validation | 8 | – | – | – | – |",
        "| audio | train | 1,200 | – | – | – | – |",
        "",
        "| language | hours | units |",
        "| --- | --- | --- |",
        "| en | 2.0 | 90,000 |",
        "| no | 1.0 | 45,000 |",
    ]
    # What is short is told in minutes; without totals there is no second table.
    small = section(changed(seconds={}, units={}), "Size")
    assert small[0] == "| config | split | rows | minutes en | minutes no | units en | units no |"
    assert small[2] == "| units | train | 1,200 | 1.5 | 1.4 | 1,125 | 9 |" and len(small) == 5
    bare = changed(seconds={}, units={}, splits={"units": {"train": {"rows": 5, "shards": 1}}})
    assert section(bare, "Size") == [
        "| config | split | rows |",
        "| --- | --- | --- |",
        "| units | train | 5 |",
    ]


def test_how_it_was_made():
    assert section(CARD, "How it was made") == [
        '1. Spoken by a machine. Engine: espeak-ng 1.52. Settings: `rate_wpm` 200, `speakers` ["a", "é"].',
        "2. Cut.",
        "3. Audio tokenizer: kyutai/mimi; given. 2,048 units, 12.5 a second.",
        "",
        "```bash",
        "hf-clsi build stories --source grammar",
        "```",
    ]


def test_voices_have_one_licence_column_unless_a_speaker_has_two():
    assert section(CARD, "Voices") == [
        "| speaker | voice en | voice no | licence |",
        "| --- | --- | --- | --- |",
        "| f3 | en+f3 | nb\\|f3 | GPL-3.0 |",
        "| m1 | – | nb+m1 | CC0-1.0 |",
    ]
    two = {"speaker": "a", "rows": 7, "voices": {"en": "x", "no": "y"}, "licences": {"en": "L1", "no": "L2"}}
    assert section(changed(voices=[two]), "Voices") == [
        "| speaker | rows | voice en | voice no | licence en | licence no |",
        "| --- | --- | --- | --- | --- | --- |",
        "| a | 7 | x | y | L1 | L2 |",
    ]
    assert "## Voices" not in card_text(changed(voices=[]))


def test_licences_losses_limits_and_citation():
    assert section(CARD, "Licence") == [
        "- **text**: Apache-2.0. Source: a grammar.",
        "- **speech**: none. Source: espeak.",
        "  > Made by E. All.",
    ]
    assert section(CARD, "What was left out")[2:] == [
        "| empty | 3 |",
        "| refused | 1,200 |",
        "",
        "`dropped.jsonl` lists each.",
    ]
    assert section(CARD, "Limits") == ["- Synthetic.", "- A miniature."]
    assert section(CARD, "Citation") == ["```bibtex", *PAPER_CITATION.split("\n"), "```"]
    bare = card_text(changed(dropped={}, limits=[], citation="", licences=[]))
    assert re.findall("^## (.*)$", bare, re.MULTILINE) == [
        "Columns", "Size", "How it was made", "Voices", "Loading",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "category"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (99_999, "10K<n<100K"), (10**9, "n>1B")],
)
def test_size_categories(rows, category):
    assert size_category(rows) == category


# ---- What it refuses


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "poem"}, "unknown row kind 'poem'"),
        ({"splits": {}}, "needs a split in every config"),
        ({"splits": {"units": {}}}, "needs a split in every config"),
        ({"default_config": "fr"}, r"default_config 'fr' is none of \['units', 'audio'\]"),
        ({"columns": {"units": STORIES}}, r"no columns for the configs \['audio'\]"),
        (
            {"command": "hf-clsi build --output-dir /work/out"},
            r"command holds the path '/work/out', which is of",
        ),
        ({"limits": ["fine", "see `/home/ann/x`"]}, r"limits holds the path '/home/ann/x'"),
        (
            {"steps": [Step("Read.", settings={"source": "/data"})]},
            r"steps\.settings\.source holds the path '/data'",
        ),
        ({"licences": [Licence("text", "MIT", "~/texts")]}, r"licences\.source holds the path '~/texts'"),
        ({"steps": [Step("x", settings={"key": "hf_abcdefghijABCDEFGHIJ0123"})]}, "looks like a secret"),
    ],
)
def test_wrong_facts_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        changed(**changes)


@pytest.mark.parametrize(
    "text",
    [
        "/home/ann", "in /tmp, then", "--out=/var/tmp/x", "path:/foo/bar", '"/srv"', "`/a/b`", "~/corpus",
        "~ann/x", "C:\\Users\\ann", "\\\\server\\share", "file:///x", "(/opt/x)",
    ],
)  # fmt: skip
def test_paths_of_a_machine_are_found(text):
    with pytest.raises(ValueError, match="which is of this machine only"):
        check_publishable([text], "it")


@pytest.mark.parametrize(
    "text",
    [
        "clsi/stories", "en/p1.flac", "../data/x", "./x", "https://example.org/work/x", "s3://bucket/home/x",
        "http://127.0.0.1:80/v1", "km/h", "and/or", "French (Canada)/English", "`units`/`text`", "</b>",
        "1 / 2", "he /she", "50 %/60 %", "~ 5/6", "/b/", "sk-learn", "hf_clsi", "C: done",
    ],
)  # fmt: skip
def test_what_is_no_path_of_a_machine_and_no_secret_passes(text):
    check_publishable({"a": [text], text: None}, "it")


@pytest.mark.parametrize(
    "secret",
    [
        "hf_" + "a1" * 17,
        "sk-proj-" + "Z9" * 12,
        "ghp_" + "x" * 36,
        "AKIA" + "B" * 16,
        "-----BEGIN RSA " + "PRIVATE KEY-----",
    ],
)
def test_secrets_are_refused_and_not_repeated(secret):
    with pytest.raises(ValueError, match="it: key holds what looks like a secret") as error:
        check_publishable({"key": f"Bearer {secret}"}, "it")
    assert secret not in str(error.value)


# ---- In a folder


def test_the_same_facts_give_the_same_file(tmp_path):
    first = write_card(tmp_path / "a", CARD).read_text()
    assert write_card(tmp_path / "b", CARD).read_text() == first
    assert write_card(tmp_path / "b", CARD).read_text() == first
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["README.md"]


def test_the_card_names_its_own_splits_and_no_stale_ones(tmp_path):
    register_split(tmp_path, "test", 9, "gone")
    path = write_card(tmp_path, CARD)
    assert header(path)["configs"] == [
        {
            "config_name": "units",
            "default": True,
            "data_files": [
                {"split": "train", "path": "units/train-*-of-00002.parquet"},
                {"split": "validation", "path": "units/validation-*-of-00001.parquet"},
            ],
        },
        {
            "config_name": "audio",
            "data_files": [{"split": "train", "path": "audio/train-*-of-00003.parquet"}],
        },
    ]
    unnamed = changed(
        columns={None: STORIES}, splits={None: {"test": {"rows": 1, "shards": 1}}}, default_config=None
    )
    assert header(write_card(tmp_path, unnamed))["configs"] == [
        {"config_name": "default", "data_files": [{"split": "test", "path": "data/test-*-of-00001.parquet"}]}
    ]


def test_a_card_that_cannot_be_completed_leaves_the_old_one(tmp_path, monkeypatch):
    from hf_clsi.rows import cards

    before = write_card(tmp_path, CARD).read_text()

    def broken(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr(cards, "register_split", broken)
    with pytest.raises(OSError, match="No space left"):
        write_card(tmp_path, changed(summary="Other."))
    assert (tmp_path / "README.md").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def flac(seconds=0.2):
    file = io.BytesIO()
    soundfile.write(
        file, np.linspace(-0.5, 0.5, int(16000 * seconds), dtype=np.float32), 16000, format="FLAC"
    )
    return {"bytes": file.getvalue(), "path": "x.flac"}


ROWS = {
    "story": (
        schema.story_columns(["en"], audio=True),
        {"story_id": "s", "speaker": "a", "units_en": [[5, 6]], "text_en": ["Hi."], "audio_en": [flac()]},
    ),
    "cloze": (
        schema.cloze_columns(audio=True),
        {
            **{"id": "i", "speaker": "a", "prompt_language": "en", "ending_language": "en"},
            **{f"{side}_text": "x" for side in ("prompt", "correct", "negative")},
            **{f"{side}_audio": flac() for side in ("prompt", "correct", "negative")},
            **{"prompt_units": [[5, 6], [7]], "correct_units": [1], "negative_units": [2]},
        },
    ),
    "pair": (
        schema.pair_columns(text=False, audio=False),
        {"id": "i", "speaker": "a", "language": "en", "correct_units": [5, 6], "negative_units": [2]},
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One small published folder a kind, with its card."""
    place = tmp_path_factory.mktemp("published")
    for kind, (columns, row) in ROWS.items():
        shards = write_shards([row], place / kind, "test", kind, config="en", columns=columns)
        card = changed(
            name=kind,
            kind=kind,
            languages=["en"],
            columns={"en": columns},
            splits={"en": {"test": {"rows": 1, "shards": len(shards)}}},
            seconds={},
            units={},
            default_config="en",
        )
        write_card(place / kind, card)
    return place


def test_the_snippets_run_where_hf_clsi_is_not_installed(folders, tmp_path):
    """In another process, which cannot import the package and never asks for torchcodec."""
    blocks = []
    for kind in ROWS:
        readme = (folders / kind / "README.md").read_text(encoding="utf-8")
        blocks += re.findall(r"^```python\n(.*?)^```", readme, flags=re.MULTILINE | re.DOTALL)
        blocks.append(f"print({kind!r}, units, {'rate_hz, len(waveform)' if kind != 'pair' else '0'})\n")
    assert len(blocks) == 6
    script = "import sys\nsys.modules['hf_clsi'] = None\n" + "".join(blocks)
    script += "print([name for name in ('torch', 'torchcodec', 'torchaudio') if name in sys.modules])\n"
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folders,
        env={"PATH": "", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "USE_TORCH": "0"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.splitlines() == [
        "story [5, 6] 16000 3200",
        "cloze [5, 6] 16000 3200",
        "pair [5, 6] 0",
        "[]",
    ]


def test_the_card_is_one_to_huggingface_hub(folders):
    import huggingface_hub

    card = huggingface_hub.DatasetCard.load(folders / "cloze/README.md")
    assert card.data.language == ["en"] and card.data.license == "other"
    assert card.data.configs[0]["config_name"] == "en"
    assert card.data.task_categories == ["multiple-choice"]


def test_a_default_config_without_sound_is_not_the_one_to_listen_to():
    snippet = loading_snippet(CARD)
    assert 'load_dataset("clsi/stories", "audio", split="train")' in snippet
    assert 'units = rows[0]["units_en"][0]' in snippet and 'rows[0]["audio_en"][0]' in snippet
    silent = changed(columns={"units": STORIES, "audio": STORIES})
    assert 'load_dataset("clsi/stories", "units", split="train")' in loading_snippet(silent)
    assert "soundfile" not in loading_snippet(silent)
    assert section(silent, "Loading")[0].startswith("The dataset holds units, no sound.")
