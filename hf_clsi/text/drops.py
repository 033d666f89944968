"""What a step leaves out, each with its id and its reason: nothing is dropped in silence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Drop:
    """One story, item or file that was left out.

    id: which. reason: a short word that many share ("wrong_sentence_count"). message: what was found.
    """

    id: str
    reason: str
    message: str = ""

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


class Drops(list[Drop]):
    """Drops in the order in which they happened.

    >>> drops = Drops()
    >>> drops.add("s7", "wrong_sentence_count", "5 sentences became 4")
    >>> drops.counts()
    {'wrong_sentence_count': 1}
    """

    def __init__(self, drops: Iterable[Drop | Mapping[str, str]] = ()):
        super().__init__(drop if isinstance(drop, Drop) else Drop(**drop) for drop in drops)

    def add(self, id: str, reason: str, message: str = "") -> None:
        self.append(Drop(id, reason, message))

    def counts(self) -> dict[str, int]:
        """Reason -> how many, by name."""
        return dict(sorted(Counter(drop.reason for drop in self).items()))
