"""Find and mask personal data and secrets in texts, by patterns with checksums.

Numbers count only when their checksum is right (IBAN: ISO 7064 mod 97-10; cards: Luhn, and the
length that the issuer's prefix asks for; national numbers: see `NATIONAL`), so that order
numbers, ISBNs, dates and versions stay. Names and addresses are not found: no pattern finds them,
so a masked text is not an anonymous one.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from sftkit.credentials import CREDENTIALS, EMAIL, MAY_HOLD_CREDENTIALS
from sftkit.errors import DataError, near_names

PersonalKind = Literal["secret", "email", "iban", "card", "national_id", "phone", "ip"]

PLACEHOLDERS: dict[PersonalKind, str] = {
    "secret": "[SECRET]",
    "email": "[EMAIL]",
    "iban": "[IBAN]",
    "card": "[CARD]",
    "national_id": "[ID]",
    "phone": "[PHONE]",
    "ip": "[IP]",
}
"""What stands in place of each kind; where two kinds overlap, the earlier one is found."""
KINDS: tuple[PersonalKind, ...] = tuple(PLACEHOLDERS)


@dataclass(frozen=True, kw_only=True)
class PersonalSpan:
    """Where a text holds personal data.

    Attributes:
        kind: What it is.
        start: First character.
        stop: One past the last character.
    """

    kind: PersonalKind
    start: int
    stop: int


def find_personal(text: str, kinds: Iterable[PersonalKind] = KINDS) -> tuple[PersonalSpan, ...]:
    """Find personal data and secrets in a text, in time proportional to its length.

    secret: keys, tokens, and user names and passwords in addresses (`credentials`).
    email: addresses. phone: international numbers (+49 …, 0049 …) and North American ones.
    ip: all but those of no machine or the own one (0.0.0.0, 127.0.0.1, 255.255.255.0, ::1), and
    but versions and sections that say so (version 1.2.3.4).
    iban, card, national_id: with a right checksum; a US social security number has none and
    counts when it has the form 123-45-6789 and is in a range that was given out.

    Args:
        text: Any text.
        kinds: What to look for.

    Returns:
        Spans that do not overlap, in order.

    Raises:
        DataError: There is no such kind.
    """
    wanted = _check_kinds(kinds)
    found: list[PersonalSpan] = []
    taken = bytearray(len(text))
    for kind in KINDS:
        if kind in wanted and _MAY_HOLD[kind](text):
            for start, stop in _FINDERS[kind](text):
                if text[start:stop] != PLACEHOLDERS[kind] and not any(taken[start:stop]):
                    taken[start:stop] = b"\x01" * (stop - start)
                    found.append(PersonalSpan(kind=kind, start=start, stop=stop))
    return tuple(sorted(found, key=lambda span: span.start))


def mask_personal(text: str, kinds: Iterable[PersonalKind] = KINDS) -> str:
    """Put a placeholder such as [EMAIL] for everything that `find_personal` finds.

    Masking twice changes nothing more.

    Raises:
        DataError: There is no such kind.
    """
    return mask_spans(text, find_personal(text, kinds))


def mask_spans(text: str, spans: Iterable[PersonalSpan]) -> str:
    """Put placeholders for spans of a text."""
    parts, place = [], 0
    for span in spans:
        parts += [text[place : span.start], PLACEHOLDERS[span.kind]]
        place = span.stop
    return "".join([*parts, text[place:]])


def _check_kinds(kinds: Iterable[str]) -> frozenset[str]:
    wanted = frozenset([kinds] if isinstance(kinds, str) else kinds)
    for kind in sorted(wanted - set(KINDS)):
        raise DataError(f"There is no personal data of kind {kind!r}.{near_names(kind, KINDS)}")
    return wanted


Found = Iterator[tuple[int, int]]


_MARK = "\x00"


def _find_secrets(text: str) -> Found:
    for pattern, kept in CREDENTIALS:
        for found in pattern.finditer(text):
            # A mark stands for the secret, to see what the rule keeps before and after it.
            before, _, after = found.expand(kept.format(_MARK)).partition(_MARK)
            yield found.start() + len(before), found.end() - len(after)


def _find_emails(text: str) -> Found:
    for found in EMAIL.finditer(text):
        yield found.span()


_IBAN = re.compile(
    r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![a-z])"
)


def _find_ibans(text: str) -> Found:
    from stdnum import iban

    for found in _IBAN.finditer(text):
        # A word in capitals may follow the number, so groups are taken off from the end.
        stop = found.end()
        while stop - found.start() >= 15:
            if iban.is_valid(text[found.start() : stop]):
                if not text[stop : stop + 1].isalnum():
                    yield found.start(), stop
                break
            stop = max(text.rfind(" ", found.start(), stop), found.start())


_CARD = re.compile(
    r"(?<![\w.,+-])(?:\d{13,19}|\d{4}(?:[ -]\d{4}){3}(?:[ -]\d{3})?|\d{4}[ -]\d{6}[ -]\d{4,5})"
    r"(?![\w-])"
)
_ISSUERS: tuple[tuple[re.Pattern[str], frozenset[int]], ...] = tuple(
    (re.compile(prefix), frozenset(lengths))
    for prefix, lengths in (
        (r"4", {16, 19}),
        (r"5[1-5]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)", {16}),
        (r"3[47]", {15}),
        (r"3(?:0[0-5]|095|[689])", {14}),
        (r"6(?:011|4[4-9]|5)", {16, 19}),
        (r"35(?:2[89]|[3-8])", {16}),
        (r"62", {16, 17, 18, 19}),
        (r"5018|5020|5038|5893|6304|6759|676[1-3]", {13, 14, 15, 16, 18, 19}),
    )
)
"""Prefixes and lengths of card numbers (ISO/IEC 7812; the issuers' published ranges)."""


def _find_cards(text: str) -> Found:
    from stdnum import luhn

    for found in _CARD.finditer(text):
        digits = re.sub(r"\D", "", found[0])
        known = any(prefix.match(digits) and len(digits) in n for prefix, n in _ISSUERS)
        if known and len(set(digits)) > 1 and luhn.is_valid(digits):
            yield found.span()


NATIONAL: tuple[tuple[str, str, str], ...] = (
    (r"\d{3}-\d{2}-\d{4}", "us.ssn", "United States, no checksum: ranges"),
    (r"\d{8}-?[A-HJ-NP-TV-Z]|[XYZ]-?\d{7}-?[A-HJ-NP-TV-Z]", "es.nif", "Spain, mod 23 letter"),
    (r"[A-Z]{6}\d{2}[A-EHLMPR-T]\d{2}[A-Z]\d{3}[A-Z]", "it.codicefiscale", "Italy, check letter"),
    (r"[12] ?\d{2} ?\d{2} ?[0-9AB]\d ?\d{3} ?\d{3} ?\d{2}", "fr.nir", "France, mod 97"),
    (r"\d{3}\.\d{3}\.\d{3}-\d{2}", "br.cpf", "Brazil, two digits mod 11, in its own form"),
    (r"\d{6}[-+]\d{4}", "se.personnummer", "Sweden, Luhn and a date, in its own form"),
    (r"\d{3} \d{3} \d{4}", "gb.nhs", "United Kingdom (NHS), mod 11, in its own form"),
    (r"\d{4} \d{4} \d{4}", "in_.aadhaar", "India, Verhoeff, in its own form"),
)
"""National numbers: pattern, module of python-stdnum that checks it, what it checks. Those whose
check passes one plain number in ten are looked for only in the form in which they are written."""
_NATIONAL = tuple(
    (re.compile(rf"(?<![\w.,+-])(?<!\d )(?:{pattern})(?![\w-])(?! \d)"), module)
    for pattern, module, _ in NATIONAL
)


_ANY_NATIONAL = re.compile("|".join(f"(?:{pattern})" for pattern, _, _ in NATIONAL))


def _find_national(text: str) -> Found:
    if not _ANY_NATIONAL.search(text):
        return
    from importlib import import_module

    for pattern, module in _NATIONAL:
        for found in pattern.finditer(text):
            if import_module(f"stdnum.{module}").is_valid(found[0]):
                yield found.span()


_PHONE = re.compile(
    # +49 30 123456, +1 (212) 555-0187, 0049-30-123456
    r"(?<![\w.+/-])(?:\+[1-9]\d{0,2}[ -]?|00[1-9]\d{0,2}[ -])(?:\(\d{1,5}\)[ -]?)?"
    r"\d{1,14}(?:[ /-]\d{1,9}){0,6}(?![\w-])(?!\.\d)"
    # (212) 555-0187, 212-555-0187
    r"|(?<![\w.+-])(?:\([2-9]\d{2}\) ?|[2-9]\d{2}-)[2-9]\d{2}-\d{4}(?![\w-])"
)
_FEWEST_DIGITS, _MOST_DIGITS = 8, 15
"""Digits of an international number, country code included; at most 15 by ITU-T E.164."""


def _find_phones(text: str) -> Found:
    for found in _PHONE.finditer(text):
        digits = re.sub(r"\D", "", found[0])
        if found[0].startswith("00"):
            digits = digits[2:]
        international = found[0][0] in "+0"
        # North American area codes begin with 2 to 9; +1 000 000 is a sum.
        real = not (international and re.match(r"1[01]", digits))
        if real and (not international or _FEWEST_DIGITS <= len(digits) <= _MOST_DIGITS):
            yield found.span()


_IP4 = re.compile(r"(?<![\w.:-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-])(?!\.\d)")
_IP6 = re.compile(r"(?<![\w:.])(?=[0-9A-Fa-f]{0,4}:)[0-9A-Fa-f:]{3,39}(?![\w:])(?!\.\d)")
_NUMBERED = re.compile(
    r"(?:version|release|build|section|chapter|clause|ec|v\.?|§|no\.?|nr\.?)\s{0,3}[:=]?\s{0,3}$",
    re.IGNORECASE,
)
"""What stands before version 1.2.3.4, section 4.2.1.1 and the enzyme EC 3.1.1.11."""


_IP6_RANGES = tuple(map(ipaddress.ip_network, ("2000::/3", "fc00::/7", "fe80::/10")))
"""What is given to machines (RFC 4291); a::b of a C++ program is in none of them."""


def _find_addresses(text: str) -> Found:
    for pattern in (_IP4, _IP6):
        for found in pattern.finditer(text):
            try:
                address = ipaddress.ip_address(found[0])
            except ValueError:
                continue
            before = text[max(0, found.start() - 16) : found.start()]
            if address.version == 4:
                real = 0 < int(address) >> 24 < 255 and not address.is_loopback
            else:
                real = any(address in known for known in _IP6_RANGES)
            if real and not _NUMBERED.search(before):
                yield found.span()


_DIGIT = re.compile(r"\d")


def _has_digits(text: str) -> bool:
    return _DIGIT.search(text) is not None


_FINDERS: dict[PersonalKind, Callable[[str], Found]] = {
    "secret": _find_secrets,
    "email": _find_emails,
    "iban": _find_ibans,
    "card": _find_cards,
    "national_id": _find_national,
    "phone": _find_phones,
    "ip": _find_addresses,
}
# Most texts hold nothing of a kind; these looks are cheap.
_MAY_HOLD: dict[PersonalKind, Callable[[str], bool]] = {
    **dict.fromkeys(KINDS, _has_digits),
    "secret": lambda text: MAY_HOLD_CREDENTIALS.search(text) is not None,
    "email": lambda text: "@" in text,
    "ip": lambda text: "::" in text or _has_digits(text),  # fdaa::bcde has none
}
