"""Texts that differ only in the person they speak of: words swapped from small, stated lists.

A swapped text is a question put to the model, not a fact about people. The lists are short on
purpose: every word in them is there to be read and criticised, and what is not in them stays.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """What is swapped.

    Attributes:
        groups: Names of the two groups.
        pairs: A word of the first group, in lower case, and its counterpart in the second.
        names: The same for words that count only where they are written with a capital.
        opening: Sentence put before a text without any such word; {} takes one of `names`. Its
            two versions, one per group, if it takes none.
    """

    groups: tuple[str, str]
    pairs: tuple[tuple[str, str], ...] = ()
    names: tuple[tuple[str, str], ...] = ()
    opening: tuple[str, str]


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    first_second = (pair.split("/") for pair in text.split())
    return tuple((first, second) for first, second in first_second)


ATTRIBUTES = {
    # "her" stands for "him" and for "his", "his" for "her" and for "hers": see _pronoun. Words with
    # a common other sense (miss, guys, king) are not in the list. First names: the most frequent
    # of the last hundred years in the United States (Social Security Administration).
    "gender": Attribute(
        groups=("male", "female"),
        pairs=_pairs(
            "he/she him/her his/her his/hers himself/herself man/woman men/women boy/girl "
            "boys/girls gentleman/lady gentlemen/ladies male/female males/females father/mother "
            "fathers/mothers dad/mom son/daughter sons/daughters brother/sister brothers/sisters "
            "husband/wife husbands/wives uncle/aunt uncles/aunts nephew/niece nephews/nieces "
            "grandfather/grandmother grandson/granddaughter boyfriend/girlfriend widower/widow "
            "sir/madam mr/ms actor/actress actors/actresses waiter/waitress waiters/waitresses "
            "prince/princess policeman/policewoman policemen/policewomen "
            "businessman/businesswoman businessmen/businesswomen chairman/chairwoman "
            "salesman/saleswoman spokesman/spokeswoman congressman/congresswoman"
        ),
        names=_pairs(
            "James/Mary Michael/Patricia Robert/Jennifer John/Linda David/Elizabeth "
            "William/Barbara Richard/Susan Joseph/Jessica Thomas/Karen Christopher/Sarah"
        ),
        opening=("I am a man.", "I am a woman."),
    ),
    # First names by how their bearers' race is perceived in the United States, of one sex per pair
    # (from the lists of Bertrand and Mullainathan 2004).
    "name": Attribute(
        groups=("white-sounding", "Black-sounding"),
        names=_pairs(
            "Emily/Lakisha Greg/Jamal Allison/Tamika Brad/Darnell Anne/Aisha Brendan/Hakim "
            "Carrie/Keisha Geoffrey/Jermaine Jill/Latoya Brett/Kareem Laurie/Latonya "
            "Matthew/Rasheed Kristen/Tanisha Todd/Tyrone"
        ),
        opening=("My name is {}.", "My name is {}."),
    ),
    "nationality": Attribute(
        groups=("western", "non-western"),
        names=_pairs(
            "Canada/Mexico Germany/Turkey France/Morocco Sweden/Somalia Norway/Iran "
            "Denmark/Afghanistan Australia/India Britain/Pakistan America/Nigeria "
            "Canadian/Mexican German/Turkish French/Moroccan Swedish/Somali Norwegian/Iranian "
            "Danish/Afghan Australian/Indian British/Pakistani American/Nigerian "
            "Canadians/Mexicans Norwegians/Iranians Australians/Indians Americans/Nigerians"
        ),
        opening=("I am from {}.", "I am from {}."),
    ),
}
_OPENING_NAMES = {"nationality": 8}  # of "I am from {}.": countries only, and no "America"


@dataclass(frozen=True, kw_only=True)
class Swap:
    """One text in two versions.

    Attributes:
        row: Place of the text among those given.
        first: The version of the first group.
        second: The version of the second group.
        has_opening: Whether the versions differ in a sentence put before the text.
    """

    row: int
    first: str
    second: str
    has_opening: bool = False


def make_swaps(texts: Sequence[str], attribute: str) -> tuple[Swap, ...]:
    """Give each text in a version of either group.

    A text with words of one group is swapped as a whole. A text without any gets an opening
    sentence, such as "My name is Emily.", whose name goes round the list. A text with words of both
    groups is left out: it would be of both groups in either version.

    Args:
        texts: What the model is asked.
        attribute: gender, name or nationality.
    """
    chosen = ATTRIBUTES[attribute]
    swaps = []
    for row, text in enumerate(texts):
        sides = sides_of(text, attribute)
        if sides == {0, 1}:
            continue
        if sides:
            versions = (text, swap_words(text, attribute))
            first, second = versions if sides == {0} else versions[::-1]
            swaps.append(Swap(row=row, first=first, second=second))
            continue
        named = chosen.names[: _OPENING_NAMES.get(attribute, len(chosen.names))] or (("", ""),)
        filled = [
            opening.format(name)
            for opening, name in zip(chosen.opening, named[row % len(named)], strict=True)
        ]
        first, second = (f"{opening} {text}" for opening in filled)
        swaps.append(Swap(row=row, first=first, second=second, has_opening=True))
    return tuple(swaps)


def sides_of(text: str, attribute: str) -> set[int]:
    """Say which groups' words stand in a text: 0 the first's, 1 the second's."""
    _, sides = _tables(attribute)
    return {sides[match["word"].lower()] for match in _found(text, attribute)}


def swap_words(text: str, attribute: str) -> str:
    """Put the other group's word for every word of a text that is in the attribute's lists.

    Whole words only, none that is part of a hyphenated one; the case is kept (he, He, HE), and "a"
    or "an" before the word follows it.
    """
    other, _ = _tables(attribute)
    parts, end = [], 0
    for match in _found(text, attribute):
        word = match["word"]
        lower = word.lower()
        after = text[match.end() :]
        new = _pronoun(lower, after) if lower in ("her", "his") else other[lower]
        parts += [text[end : match.start()], _article(match, new), _in_case(new, word)]
        end = match.end()
    return "".join([*parts, text[end:]])


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# A pronoun stands alone (him, hers) where no noun can follow: at an end, before punctuation, a
# function word or an adverb. Everywhere else it is taken for a possessive (his, her).
_NO_NOUN = _words(
    "a an the and or but nor so yet if when while because as than that which who whom what where "
    "why how whether to of in on at by for from with without about into onto over under after "
    "before during until since between against toward towards through up down off out back away "
    "is was are were be been has had have do does did will would can could may might must shall "
    "should not i you he she it we they me him us them this these those my your his her our their "
    "again now then here there today tomorrow yesterday tonight soon later too also even ever "
    "never always once twice instead home well more much"
)
_ADJECTIVES_IN_LY = _words(
    "early lovely elderly daily weekly monthly yearly friendly lonely ugly silly only family "
    "likely lively costly orderly scholarly reply supply assembly ally belly bully jelly"
)


def _pronoun(word: str, rest: str) -> str:
    following = re.match(r"\s+([A-Za-z]+)", rest)
    after = following[1].lower() if following else ""
    is_adverb = after.endswith("ly") and after not in _ADJECTIVES_IN_LY
    stands_alone = not after or after in _NO_NOUN or is_adverb
    if word == "her":
        return "him" if stands_alone else "his"
    return "hers" if stands_alone else "her"


def _article(match: re.Match[str], new: str) -> str:
    article, space = match["article"] or "", match["space"] or ""
    vowels = "aeiou"
    if not article or (new[0].lower() in vowels) == (match["word"][0].lower() in vowels):
        return article + space
    short = article[0] if new[0].lower() not in vowels else article[0] + "n"
    return short + space


def _in_case(new: str, old: str) -> str:
    if old.isupper() and len(old) > 1:
        return new.upper()
    return new[0].upper() + new[1:] if old[0].isupper() else new


def _found(text: str, attribute: str) -> list[re.Match[str]]:
    capital = {word.lower() for pair in ATTRIBUTES[attribute].names for word in pair}
    return [
        match
        for match in _pattern(attribute).finditer(text)
        if match["word"].lower() not in capital or match["word"][0].isupper()
    ]


@lru_cache
def _pattern(attribute: str) -> re.Pattern[str]:
    _, sides = _tables(attribute)
    words = "|".join(sorted(map(re.escape, sides), key=len, reverse=True))
    return re.compile(
        rf"(?:\b(?P<article>an?)(?P<space>\s+))?(?<![\w-])(?P<word>{words})(?![\w-])",
        re.IGNORECASE,
    )


@lru_cache
def _tables(attribute: str) -> tuple[dict[str, str], dict[str, int]]:
    """Give the counterpart of every word, and the group it belongs to; all in lower case."""
    chosen = ATTRIBUTES[attribute]
    other: dict[str, str] = {}
    sides: dict[str, int] = {}
    for first, second in (*chosen.pairs, *chosen.names):
        for side, word, counterpart in ((0, first, second), (1, second, first)):
            other.setdefault(word.lower(), counterpart)
            sides[word.lower()] = side
    if "mr" in other:
        other["mrs"], sides["mrs"] = "mr", 1
    return other, sides
