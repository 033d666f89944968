"""Story prose becomes sentences, by rules: English, French, and languages that punctuate as they do.

A sentence ends at `.`, `!`, `?` or `…` (or a run of them), takes the closing quotes and brackets that follow,
and is over where a space and a word that does not begin with a small letter come next. It does not end

* after a title (Mr. Mrs. Dr. M. Mme.), an abbreviation (e.g. cf.), an initial (J. K. Rowling) or the number
  of a list (1. Get up);
* between a quote and who said it: `"Hi!" said Tom.` and `"Hi!" Mom said.` are one sentence each;
* at an ellipsis in a stammer (`I... I do not know.`).

A line break is a border too, unless it cuts a sentence (no stop before it, a small letter after it). Only
white space changes: the sentences joined with single spaces are the text with single spaces. Linear in the
length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_STOPS = ".!?…‼⁇⁈⁉"
#: A stop and all that may follow it in its sentence: quotes, brackets, pictures; no comma, no dash.
_END = re.compile(rf"(?P<stop>[{_STOPS}](?:[{_STOPS} ]*[{_STOPS}])?)(?P<closers>(?:[^\w,;:—–-]|_)*)$")
_QUOTES = "\"'”’»›“‘"  # what may close a quote, German “ and ‘ included
_OPENERS = "«“„‘‹([{¿¡—–-"
_INITIALS = re.compile(r"(?:[^\W\d_a-zß-öø-ÿ]\.-?)*[^\W\d_a-zß-öø-ÿ]")
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Rules:
    """What a language adds. All words in lower case, but for `starters`.

    titles: abbreviations that stand before a name or go on, so that no sentence ends with them.
    numbered: those that stand before a number ("no. 5"), ordinary words otherwise.
    starters: words that begin a sentence rather than a name: they end the sentence before them even where its
        last word looks like an initial ("vitamin C. The boy").
    verbs, pronouns, determiners, fillers: of "Mom said", "she softly said", "the old man said".
    """

    titles: frozenset[str] = frozenset()
    numbered: frozenset[str] = frozenset()
    starters: frozenset[str] = frozenset()
    verbs: frozenset[str] = frozenset()
    pronouns: frozenset[str] = frozenset()
    determiners: frozenset[str] = frozenset()
    fillers: frozenset[str] = frozenset()


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_RULES = {
    "en": Rules(
        titles=_words("mr mrs ms dr prof rev st mt capt cpt sgt lt col gen gov sen e.g i.e vs cf approx"),
        numbered=_words("no nr p pp fig vol ch"),
        starters=_words(
            "The A An He She It They We I You His Her Its Their My Our Your This That These Those There Then "
            "But And So Or When While After Before One Once In On At As If To For What Why How Where Who "
            "Suddenly Soon Finally Now Later Today Everyone Nobody"
        ),
        verbs=_words(
            "said says say asked asks replied replies answered answers shouted shouts cried cries whispered "
            "whispers yelled yells exclaimed called screamed added begged explained agreed sang sighed"
        ),
        pronouns=_words("he she it they we i you everyone"),
        determiners=_words("the a an his her its their my our your one"),
        fillers=_words("then also just all both"),
    ),
    "fr": Rules(
        titles=_words("m mm mr mme mmes mlle mlles dr pr prof st ste mgr cf c.-à-d p.ex"),
        numbered=_words("no nos n p pp fig vol chap art"),
        starters=_words(
            "Le La Les L Un Une Des Du De D Il Elle Ils Elles On Je J Tu Nous Vous Ce C Cette Cet Ces Son Sa "
            "Ses Leur Leurs Mon Ma Mes Notre Votre Puis Mais Et Ou Alors Quand Après Avant Dans À Au Aux "
            "Pour Si Soudain Enfin Bientôt Ensuite Qui Que Pourquoi Comment Où Tout Tous Personne"
        ),
        verbs=_words(
            "dit disent demanda demande demandé répondit répond répondu cria crie crié écria écrie écrié "
            "murmura murmure murmuré chuchota chuchote chuchoté ajouta ajoute ajouté expliqua explique "
            "expliqué exclama exclame exclamé hurla hurle hurlé supplia supplié appela soupira chanta"
        ),
        pronouns=_words("il elle ils elles on je j'ai tu nous vous"),
        determiners=_words("le la les un une son sa ses leur mon ma mes notre votre ce cet cette"),
        fillers=_words("a ont est sont lui leur alors aussi s'est se"),
    ),
    "de": Rules(
        titles=_words("hr fr dr prof st z.b d.h vgl bzw ca"),
        numbered=_words("nr s bd kap"),
        starters=_words("Der Die Das Ein Eine Er Sie Es Wir Ich Ihr Dann Aber Und Als Da Doch Nun In Am Im"),
        verbs=_words("sagte sagt fragte fragt antwortete rief ruft schrie flüsterte"),
        pronouns=_words("er sie es wir ich ihr"),
        determiners=_words("der die das ein eine sein seine ihre mein meine"),
    ),
}
_OTHER = Rules(titles=_words("dr prof st"))


def split_sentences(text: str, language: str = "en") -> list[str]:
    """The sentences of a text, white space made single; [] of white space alone.

    Args:
        language: code of the rules: "en", "fr", "de"; other languages get the rules without words.

    >>> split_sentences('Mr. Fox waited... "Hi!" said Tom.  "Is it 3.5 miles?"')
    ['Mr. Fox waited...', '"Hi!" said Tom.', '"Is it 3.5 miles?"']
    >>> split_sentences("« Bonjour ! » dit M. Loup. Il rit.", "fr")
    ['« Bonjour ! » dit M. Loup.', 'Il rit.']
    """
    rules = _RULES.get(language, _OTHER)
    sentences: list[str] = []
    speechless = ""  # punctuation alone before the first sentence
    for paragraph in _paragraphs(text):
        for sentence in _split_paragraph(paragraph, rules, language):
            if _WORD.search(sentence):
                sentences.append(f"{speechless} {sentence}" if speechless else sentence)
                speechless = ""
            elif sentences:  # "* * *": nothing that could be said, so it is nobody's sentence
                sentences[-1] += f" {sentence}"
            else:
                speechless = f"{speechless} {sentence}".strip()
    return [*sentences, speechless] if speechless else sentences


def _paragraphs(text: str) -> list[str]:
    """Lines with single spaces; a line that goes on in the middle of a sentence is one with the next."""
    paragraphs: list[str] = []
    joined = False
    for line in text.splitlines():
        line = " ".join(line.split())
        if line and joined and not _END.search(paragraphs[-1]) and _begins_small(line):
            paragraphs[-1] += f" {line}"
        elif line:
            paragraphs.append(line)
        joined = bool(line)
    return paragraphs


def _split_paragraph(paragraph: str, rules: Rules, language: str) -> list[str]:
    chunks = _chunks(paragraph)
    sentences, start = [], 0
    for index, chunk in enumerate(chunks[:-1]):
        if chunk[-1].isalnum() or chunk[-1] == ",":  # most words
            continue
        if _is_border(chunks, index, index == start, rules, language):
            sentences.append(" ".join(chunks[start : index + 1]))
            start = index + 1
    return [*sentences, " ".join(chunks[start:])]


def _chunks(paragraph: str) -> list[str]:
    """The words, each with the punctuation that stands apart from it but belongs to it.

    >>> _chunks("« Oui ! » — Non ...")
    ['« Oui ! »', '— Non ...']
    """
    chunks: list[str] = []
    waiting: list[str] = []  # opening punctuation, for the next word
    straight = 0  # straight quotes so far: an odd number means that one is open
    for word in paragraph.split(" "):
        if _WORD.search(word):
            chunks.append(" ".join([*waiting, word]))
            waiting.clear()
        elif waiting or not chunks or word[0] in _OPENERS or (word[0] == '"' and straight % 2 == 0):
            waiting.append(word)
        else:
            chunks[-1] += f" {word}"
        straight += word.count('"')
    if waiting and chunks:
        chunks[-1] += " " + " ".join(waiting)
    elif waiting:
        chunks.append(" ".join(waiting))
    return chunks


def _is_border(chunks: Sequence[str], index: int, first: bool, rules: Rules, language: str) -> bool:
    """Whether a sentence ends with chunk `index`, which is not the last; `first`: it also begins with it."""
    chunk, following = chunks[index], chunks[index + 1]
    end = _END.search(chunk)
    if end is None or _begins_small(following):
        return False
    stop = end["stop"]
    quoted = any(closer in _QUOTES for closer in end["closers"])
    if quoted:
        return not _is_attribution(chunks[index + 1 : index + 5], rules)
    before = chunk[: end.start()].rsplit(" ", 1)[-1]
    before = before[_first_letter(before) :]
    following_word = _WORD.search(following)
    following_word = following_word[0] if following_word else ""
    if stop == ".":
        return not _goes_on(before, following, following_word, first, rules, language)
    if set(stop) <= {".", "…", " "} and before:  # an ellipsis
        same = following_word.casefold() == before.casefold()
        return not (same or (len(before) == 1 and following_word.casefold().startswith(before.casefold())))
    return True


def _goes_on(
    before: str, following: str, following_word: str, first: bool, rules: Rules, language: str
) -> bool:
    """Whether the full stop after the word `before` belongs to the word alone."""
    word = before.casefold()
    if word in rules.titles:
        return True
    if word in rules.numbered and following_word[:1].isdigit():
        return True
    if first and word.isdigit():  # "1. Get up."
        return True
    if not _INITIALS.fullmatch(before):
        return False
    if before == "I" and language == "en":  # "So did I. Tom went": a name only before another initial
        return bool(re.match(r"[^\W\d_]\.", following))
    return following_word not in rules.starters


def _is_attribution(words: Sequence[str], rules: Rules) -> bool:
    """Whether these words, after a closing quote, first say who spoke: "Mom said", "the old man asked"."""
    before: list[str] = []
    for word in words:
        bare = word.rstrip(".,;:!?…").replace("’", "'")
        if before and bare.casefold().removeprefix("s'") in rules.verbs:
            return _is_speaker(before, rules)
        if bare != word and bare.casefold() not in rules.titles:
            return False
        before.append(bare)
    return False


def _is_speaker(words: Sequence[str], rules: Rules) -> bool:
    first = words[0].casefold()
    rest = [word for word in words[1:] if word not in rules.fillers and not word.endswith("ly")]
    if first in rules.pronouns:
        return not rest
    if first in rules.determiners:
        return 1 <= len(rest) <= 2
    if not rest:
        return True
    if len(rest) == 1:  # "Mr. Fox", "Tom's mom", "Maman Ours"
        return first in rules.titles or first.endswith("'s") or rest[0][:1].isupper()
    return rest[0] in ("and", "et", "und") and rest[1][:1].isupper()


def _first_letter(text: str) -> int:
    word = _WORD.search(text)
    return word.start() if word else len(text)


def _begins_small(text: str) -> bool:
    return text[_first_letter(text) :][:1].islower()
