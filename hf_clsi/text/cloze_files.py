"""Cloze items of any source become prompts and endings by language; or the endings are swapped: topic-cloze.

* **StoryCloze 2016** (`.csv`): `InputStoryid`, `InputSentence1` to `4`, `RandomFifthSentenceQuiz1` and `2`,
  `AnswerRightEnding` (1 or 2).
* **XStoryCloze** (`.tsv`, `.csv`, `.jsonl`, `.parquet`, or `juletxara/xstory_cloze` of the Hub): `story_id`,
  `input_sentence_1` to `_4`, `sentence_quiz1` and `2`, `answer_right_ending`.
* **Ours** (`.jsonl`, also `.parquet` and `.csv`): for every language L `prompt_L` (a list of sentences, or a
  text that is split into them), `correct_L` and `negative_L`; optional `id`, `topic`, `character`, `pair_id`.
* **`{"en": path, "fr": path}`**: one of these a language, joined by id.
* **`grammar`**: held-out stories of the built-in grammar (text/stories.py), in every language.

Both StoryCloze headers are known in any file, with commas, semicolons or tabs. A line of ours:

    {"id": "7", "prompt_en": ["Tom had a dog.", "It ran."], "correct_en": "He ran after it.",
     "negative_en": "The soup was hot.", "prompt_fr": "Tom avait un chien. Il a couru.", ...}

Text files are UTF-8, with or without a byte order mark; CSV falls back to Windows-1252 with a warning.
All of an item set is held in memory.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .cloze import TASKS, Task, draw_items
from .corpora import GRAMMAR
from .drops import Drops
from .languages import language as get_language
from .matching import match_items
from .sentences import split_sentences
from .sources import KINDS, Row, hub_configs, open_hub, parse_hub_id, read_rows, shown, stem_of
from .stories import Holdout, HoldoutRule, StoryPlan, draw_stories, tell
from .tables import read_table

_TABLES = (".csv", ".tsv")
_FILES = (*_TABLES, *(kind for kind in KINDS if not kind.startswith(".txt")))
#: StoryCloze 2016 and XStoryCloze, in lower case without underscores.
_STORYCLOZE = {
    "inputstoryid": "id",
    "storyid": "id",
    **{f"inputsentence{number}": f"sentence{number}" for number in (1, 2, 3, 4)},
    **{f"randomfifthsentencequiz{number}": f"quiz{number}" for number in (1, 2)},
    **{f"sentencequiz{number}": f"quiz{number}" for number in (1, 2)},
    "answerrightending": "answer",
}
_STORYCLOZE_NEEDED = {"sentence1", "sentence2", "sentence3", "sentence4", "quiz1", "quiz2", "answer"}
_ANSWERS = {"1": 1, "2": 2, "1.0": 1, "2.0": 2}
_ENDS = " .!?…\"'“”„«»‘"


@dataclass(frozen=True)
class ClozeText:
    """One item: prompt sentences and its two endings, each by language, the same languages in all three.

    `negative` is empty where `swap_endings` is still to give it.
    """

    id: str
    prompt: dict[str, tuple[str, ...]]
    correct: dict[str, str]
    negative: dict[str, str] = field(default_factory=dict)
    topic: str | None = None
    character: str | None = None
    pair_id: str | None = None


class _Fault(Exception):
    """Why a row is no item; its arguments are those of `Drops.add`."""


def read_cloze_texts(
    source: str | Path | Mapping[str, str | Path],
    *,
    languages: Sequence[str],
    source_language: str = "en",
    num_items: int | None = None,
    task: Task = "storycloze",
    seed: int = 0,
    holdout_rule: HoldoutRule = "strict",
    complete: bool = False,
    drops: Drops,
) -> list[ClozeText]:
    """The items of a source, in its order.

    Args:
        source: see the module. Of the Hub, all splits one after the other; where a config is named after the
            source language, those of the wanted languages are joined by id (XStoryCloze has no French).
        languages: which are wanted. Of a file, an item has the source language always, and the others where
            they are there; those that are not are to be translated.
        source_language: the language of a StoryCloze or XStoryCloze file.
        num_items: at most so many, the first; None for all. The grammar needs a number.
        task: "topiccloze" reads no wrong endings: `swap_endings` gives them.
        seed, holdout_rule: of the grammar (text/stories.py). Story-cloze items come in symmetric pairs: of an
            odd number, the last is without the other half of its pair.
        complete: every language must be in the source ("missing_language" otherwise).
        drops: takes what was left out: "bad_row" (with file and line as id), "bad_answer" (neither 1 nor 2),
            "missing_language", "empty_sentence", "equal_endings" (but for case, spaces and final
            punctuation), "unequal_sentences" (of the prompt, across languages), "duplicate_id", "duplicate"
            (the same prompt and endings in the source language).

    Raises:
        FileNotFoundError: there is no such file or Hub dataset.
        ValueError: an argument out of range, a source that is none of these, unknown columns, a broken file,
            or no item at all.
        RuntimeError: the grammar has no more items.
    """
    if task not in TASKS:
        raise ValueError(f"task={task!r} is not one of {TASKS}.")
    if not languages or len(set(languages)) < len(languages):
        raise ValueError(f"languages={list(languages)} must be at least one, each once.")
    if source_language not in languages:
        raise ValueError(f"source_language={source_language!r} is not among languages={list(languages)}.")
    if num_items is not None and num_items < 1:
        raise ValueError(f"num_items={num_items} must be at least 1; None takes all of a file.")
    if not isinstance(source, Mapping) and str(source) == GRAMMAR:
        return _tell_items(languages, num_items, task, seed, holdout_rule)
    opened = source if isinstance(source, Mapping) else _open(source, languages, source_language)
    if isinstance(opened, Mapping):
        if source_language not in opened or not set(opened) <= set(languages):
            raise ValueError(
                f"the source has files for {sorted(opened)}; it needs one for the source language "
                f"'{source_language}' and none but for languages={list(languages)}."
            )
        items = _join_languages(opened, source_language, task, drops)
    else:
        items = _read_items(opened, languages, source_language, task, drops)
    items = _distinct(items, languages if complete else (), source_language, drops)
    if not items:
        raise ValueError(f"{source} gives no item of {task}: {drops.counts()}. See the reasons in `drops`.")
    return items[:num_items]


def swap_endings(items: Sequence[ClozeText], seed: int) -> list[ClozeText]:
    """Topic-cloze: the wrong ending of every item is the right ending of another, the same in every language.

    Items swap endings in pairs (three of an odd number in a cycle) and get their `pair_id`, so that a scorer
    that does not listen to the prompt has exactly half of every pair right. Two items are never put together
    if in any language their endings or their prompts are the same text (but for case, spaces and final
    punctuation), or if both have the same topic. Items of one character are put together as long as some are
    left, since otherwise the name gives the answer away (`mixed_pairs` counts the others).

    The result depends on the items and the seed, not on the order of the items; it has their order.

    Raises:
        ValueError: fewer than two items, ids that come twice, items that differ in their languages.
        RuntimeError: there is no such permutation, since too many items share an ending or a topic.
    """
    ordered = sorted(items, key=lambda item: item.id)
    if len({item.id for item in items}) < len(items):
        raise ValueError("items to swap must have different ids.")
    for item in ordered:
        if set(item.correct) != set(ordered[0].correct):
            raise ValueError(
                f"all items must have the same languages: '{ordered[0].id}' has "
                f"{sorted(ordered[0].correct)}, '{item.id}' has {sorted(item.correct)}. Translate first, or "
                "read with complete=True."
            )
    rng = np.random.default_rng([seed, 4])
    try:
        donors = match_items([_keys(item) for item in ordered], [item.character for item in ordered], rng)
    except (ValueError, RuntimeError) as error:
        raise type(error)(
            f"endings cannot be swapped among {len(items)} items: {error.args[0]}. Give more items, or more "
            "different ones; where topics are to blame, leave out the topic."
        ) from error
    pairs: dict[int, str] = {}
    pair_ids = (f"pair-{number:05d}" for number in count())
    for first in range(len(ordered)):
        if first not in pairs:
            pair_id, index = next(pair_ids), first
            while index not in pairs:
                pairs[index] = pair_id
                index = donors[index]
    swapped = {
        item.id: replace(item, negative=dict(ordered[donors[index]].correct), pair_id=pairs[index])
        for index, item in enumerate(ordered)
    }
    return [swapped[item.id] for item in items]


def mixed_pairs(items: Sequence[ClozeText]) -> list[str]:
    """The pairs whose items are about different characters, so that a name may tell the endings apart."""
    characters: dict[str, set[str]] = {}
    for item in items:
        if item.pair_id is not None and item.character is not None:
            characters.setdefault(item.pair_id, set()).add(item.character)
    return [pair_id for pair_id, names in characters.items() if len(names) > 1]


def plain(text: str) -> str:
    """A text as it is compared: without what case, spaces and punctuation at its ends make different.

    >>> plain(" He  said NO!") == plain("he said no")
    True
    """
    text = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    return " ".join(text.split()).strip(_ENDS)


def _keys(item: ClozeText) -> frozenset[str]:
    """What an item's partner must not have as well."""
    keys = {f"the ending '{plain(text)}' in {language}" for language, text in item.correct.items()}
    for language, sentences in item.prompt.items():
        keys.add(f"the prompt '{plain(' '.join(sentences))}' in {language}")
    if item.topic is not None:
        keys.add(f"the topic '{item.topic}'")
    return frozenset(keys)


# -- the grammar ---------------------------------------------------------------------------------------------


def _tell_items(
    languages: Sequence[str], num_items: int | None, task: Task, seed: int, rule: HoldoutRule
) -> list[ClozeText]:
    if num_items is None:
        raise ValueError("the grammar has no last item: say how many with num_items (the field uses 1,871).")
    for code in languages:
        get_language(code)
    holdout = Holdout(seed)

    def told(
        item_id: str, plan: StoryPlan, negative: StoryPlan | None = None, pair_id: str | None = None
    ) -> ClozeText:
        stories = {code: tell(plan, code) for code in languages}
        return ClozeText(
            item_id,
            prompt={code: tuple(sentences[:-1]) for code, sentences in stories.items()},
            correct={code: sentences[-1] for code, sentences in stories.items()},
            negative={code: tell(negative, code)[-1] for code in languages} if negative else {},
            topic=plan.topic,
            character=plan.character,
            pair_id=pair_id,
        )

    if task == "topiccloze":
        plans = draw_stories(num_items, "test", holdout, seed, rule)
        return [told(f"test-{rule}-{task}-{number:05d}", plan) for number, plan in enumerate(plans)]
    items = draw_items(task, num_items + num_items % 2, "test", rule, holdout, seed)[:num_items]
    return [told(item.id, item.prompt, item.negative, item.pair_id) for item in items]


# -- files ---------------------------------------------------------------------------------------------------


class _HubPart(NamedTuple):
    """All splits of one config of a Hub dataset."""

    name: str
    revision: str | None
    config: str | None


def _open(
    source: str | Path, languages: Sequence[str], source_language: str
) -> Path | _HubPart | dict[str, _HubPart]:
    """A file, or a Hub dataset: one config, or one for every wanted language that it has."""
    path = Path(source)
    if path.exists() or not (hub_id := parse_hub_id(source)):
        return path
    configs = hub_configs(*hub_id)
    if source_language not in configs:
        return _HubPart(*hub_id, None)
    return {language: _HubPart(*hub_id, language) for language in languages if language in configs}


def _join_languages(
    sources: Mapping[str, Any], source_language: str, task: Task, drops: Drops
) -> Iterator[ClozeText]:
    """One item of the items with one id in every language. Wrong endings are those of each file's answer."""
    found: dict[str, dict[str, ClozeText]] = {}
    for language, source in sources.items():
        before = len(drops)
        items = list(_read_items(source, [language], language, task, drops, need_ids=True))
        found[language] = {item.id: item for item in items}
        dropped = {drop.id for drop in drops[before:]}
        found[language] |= {item_id: None for item_id in dropped if item_id not in found[language]}
    ids = dict.fromkeys(item_id for items in (found[source_language], *found.values()) for item_id in items)
    for item_id in ids:
        of_item = {language: found[language].get(item_id) for language in sources}
        missing = [language for language in sources if item_id not in found[language]]
        if missing:
            if any(of_item.values()):
                drops.add(item_id, "missing_language", f"not in {', '.join(missing)}")
            continue
        if None in of_item.values():  # dropped where it was read
            continue
        first = of_item[source_language]
        yield replace(
            first,
            prompt={language: item.prompt[language] for language, item in of_item.items()},
            correct={language: item.correct[language] for language, item in of_item.items()},
            negative={
                language: item.negative[language] for language, item in of_item.items() if item.negative
            },
        )


def _distinct(
    items: Iterator[ClozeText], needed: Sequence[str], source_language: str, drops: Drops
) -> list[ClozeText]:
    """Items with all languages, aligned, and none that is the same as an earlier one."""
    seen: set[tuple[str, ...]] = set()
    kept = []
    for item in items:
        texts = (*item.prompt[source_language], item.correct[source_language])
        key = tuple(map(plain, (*texts, item.negative.get(source_language, ""))))
        counts = {language: len(prompt) for language, prompt in item.prompt.items()}
        if missing := [language for language in needed if language not in item.prompt]:
            drops.add(item.id, "missing_language", ", ".join(missing))
        elif len(set(counts.values())) > 1:
            message = ", ".join(f"{number} in {language}" for language, number in counts.items())
            drops.add(item.id, "unequal_sentences", message)
        elif key in seen:
            drops.add(item.id, "duplicate", " ".join(texts)[:60])
        else:
            seen.add(key)
            kept.append(item)
    return kept


def _read_items(
    source: str | Path | _HubPart,
    languages: Sequence[str],
    source_language: str,
    task: Task,
    drops: Drops,
    need_ids: bool = False,
) -> Iterator[ClozeText]:
    """The items of one file or config; `need_ids`: an item without an id is dropped."""
    ids: set[str] = set()
    for position, row in _numbered_rows(source, source_language):
        try:
            item = _item(row, None if need_ids else position, languages, source_language, task)
        except _Fault as fault:
            drops.add(*fault.args)
            continue
        if item.id in ids:
            drops.add(item.id, "duplicate_id", f"{row.where}: an earlier item has this id")
        else:
            ids.add(item.id)
            yield item


def _numbered_rows(source: str | Path | _HubPart, source_language: str) -> Iterator[tuple[str, Row]]:
    """Rows, each with the id that it gets if it brings none."""
    if isinstance(source, _HubPart):
        for split, rows in open_hub(*source).items():
            for number, columns in enumerate(rows):
                if number == 0:
                    _check_columns(columns, source_language, f"the Hub dataset {source.name}")
                yield f"{split}-{number:05d}", Row(f"{source.name}:{split}:{number + 1}", columns)
        return
    path = Path(source)
    ending = path.name.lower()
    if path.is_dir() or (path.is_file() and not ending.endswith(_FILES)):
        raise ValueError(
            f"{path} is no file of cloze items: its name must end in one of {', '.join(_FILES)}."
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no source of cloze items '{path}'. Give '{GRAMMAR}', a file ({', '.join(_FILES)}), "
            "one file a language, or a dataset of the Hub as owner/name."
        )
    unchecked = not ending.endswith((".jsonl", ".jsonl.gz"))  # there, every line has columns of its own
    for number, row in enumerate(read_table(path) if ending.endswith(_TABLES) else read_rows(path)):
        if unchecked and row.columns is not None:
            _check_columns(row.columns, source_language, str(path))
            unchecked = False
        yield f"{stem_of(path)}-{number:05d}", row


def _check_columns(columns: Iterable[str], source_language: str, where: str) -> None:
    """Refuse a table without the columns of an item."""
    ours = {f"prompt_{source_language}", f"correct_{source_language}"}
    if not ours <= set(columns) and not set(_storycloze_names(columns)) >= _STORYCLOZE_NEEDED:
        raise ValueError(
            f"{where} has the columns {list(columns)}, and these are neither StoryCloze's (InputStoryid, "
            "InputSentence1 to 4, RandomFifthSentenceQuiz1 and 2, AnswerRightEnding) nor XStoryCloze's "
            "(story_id, input_sentence_1 to 4, sentence_quiz1 and 2, answer_right_ending) nor ours "
            f"({', '.join(sorted(ours))}, negative_{source_language}). Rename them."
        )


def _storycloze_names(columns: Iterable[str]) -> dict[str, str]:
    """Our short name -> the column, of those columns that are StoryCloze's."""
    short = {column: _STORYCLOZE.get(column.strip().lower().replace("_", "")) for column in columns}
    return {name: column for column, name in short.items() if name}


# -- from rows to items --------------------------------------------------------------------------------------


def _item(
    row: Row, position: str | None, languages: Sequence[str], source_language: str, task: Task
) -> ClozeText:
    if row.columns is None:
        raise _Fault(row.where, "bad_row", row.fault)
    names = _storycloze_names(row.columns)
    is_storycloze = set(names) >= _STORYCLOZE_NEEDED
    id_column = names.get("id") if is_storycloze else "story_id" if "story_id" in row.columns else "id"
    item_id = _label(row, id_column) or position
    if item_id is None:
        raise _Fault(row.where, "bad_row", "no id, by which files of several languages are joined")
    if is_storycloze:
        columns = {name: row.columns[column] for name, column in names.items()}
        texts = {source_language: _storycloze_texts(row, columns, item_id)}
    else:
        texts = _our_texts(row, item_id, languages, source_language, task)
    for language, (prompt, correct, negative) in texts.items():
        endings = (correct,) if task == "topiccloze" else (correct, negative)
        if not prompt or not all(any(map(str.isalnum, text)) for text in (*prompt, *endings)):
            raise _Fault(item_id, "empty_sentence", f"{row.where}: in '{language}'")
        if task == "storycloze" and plain(correct) == plain(negative):
            raise _Fault(item_id, "equal_endings", f"{row.where}: {correct}")
    return ClozeText(
        item_id,
        prompt={language: prompt for language, (prompt, _, _) in texts.items()},
        correct={language: correct for language, (_, correct, _) in texts.items()},
        negative={}
        if task == "topiccloze"
        else {language: wrong for language, (_, _, wrong) in texts.items()},
        topic=_label(row, "topic"),
        character=_label(row, "character"),
        pair_id=_label(row, "pair_id") if task == "storycloze" else None,
    )


#: Prompt sentences, right ending, wrong ending.
_Texts = tuple[tuple[str, ...], str, str]


def _storycloze_texts(row: Row, columns: Mapping[str, Any], item_id: str) -> _Texts:
    answer = _ANSWERS.get(str(columns["answer"]).strip())
    if answer is None:
        raise _Fault(item_id, "bad_answer", f"{row.where}: {shown(columns['answer'])}, neither 1 nor 2")
    prompt = tuple(_sentence(row, columns[f"sentence{number}"]) for number in (1, 2, 3, 4))
    endings = [_sentence(row, columns[f"quiz{number}"]) for number in (answer, 3 - answer)]
    return prompt, *endings


def _our_texts(
    row: Row, item_id: str, languages: Sequence[str], source_language: str, task: Task
) -> dict[str, _Texts]:
    parts = ("prompt", "correct") if task == "topiccloze" else ("prompt", "correct", "negative")
    texts = {}
    for language in languages:
        cells = {part: row.columns.get(f"{part}_{language}") for part in parts}
        missing = [f"{part}_{language}" for part, cell in cells.items() if cell is None]
        if len(missing) == len(parts):
            continue
        if missing:
            raise _Fault(row.where, "bad_row", f"no {', '.join(missing)}")
        prompt = cells["prompt"]
        if isinstance(prompt, list):
            sentences = tuple(_sentence(row, sentence) for sentence in prompt)
        else:
            sentences = tuple(split_sentences(_sentence(row, prompt), language))
        negative = _sentence(row, cells["negative"]) if "negative" in cells else ""
        texts[language] = (sentences, _sentence(row, cells["correct"]), negative)
    if not texts:
        raise _Fault(row.where, "bad_row", f"no prompt_{source_language}, but {sorted(row.columns)[:20]}")
    if source_language not in texts:
        raise _Fault(item_id, "missing_language", f"{row.where}: {source_language}")
    return texts


def _sentence(row: Row, cell: Any) -> str:
    if cell is None:
        return ""
    if not isinstance(cell, str):
        raise _Fault(row.where, "bad_row", f"{shown(cell)} instead of a text")
    return " ".join(cell.split())


def _label(row: Row, column: str | None) -> str | None:
    """An id, a topic, a character: a string, or a number as one; None if there is none."""
    value = row.columns.get(column)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise _Fault(row.where, "bad_row", f"{column} is {shown(value)}, not a string or an integer")
    return str(value).strip() or None
