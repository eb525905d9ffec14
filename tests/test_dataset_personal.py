"""Personal data: what is masked, what only looks like it, and that no text takes long."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftkit.dataset.personal import KINDS, NATIONAL, find_personal, mask_personal
from sftkit.errors import DataError
from sftkit.report.redact import redact


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Write to zoë.o'neil+x@mail.example.co.uk, please.", "Write to [EMAIL], please."),
        ("Mail <a_b@example.org>.", "Mail <[EMAIL]>."),
        ("+49 30 1234567", "[PHONE]"),
        ("0049 30 1234567 or +4915112345678", "[PHONE] or [PHONE]"),
        ("+1 (212) 555-0187, (212) 555-0187, 212-555-0187", "[PHONE], [PHONE], [PHONE]"),
        ("GB82 WEST 1234 5698 7654 32 AND DE89370400440532013000.", "[IBAN] AND [IBAN]."),
        ("4111 1111 1111 1111, 378282246310005, 5555-5555-5555-4444", "[CARD], [CARD], [CARD]"),
        ("SSN 536-90-4399", "SSN [ID]"),
        ("DNI 54362315K, NIE X-2482300W", "DNI [ID], NIE [ID]"),
        ("RCCMNL83S18D969H", "[ID]"),
        ("2 95 10 99 126 111 93", "[ID]"),
        ("CPF 390.533.447-05", "CPF [ID]"),
        ("880320-0016", "[ID]"),
        ("NHS 943 476 5870", "NHS [ID]"),
        ("Aadhaar 2341 2341 2346", "Aadhaar [ID]"),
        ("from 203.0.113.7 and 192.168.0.12:8080", "from [IP] and [IP]:8080"),
        ("2001:db8::8a2e:370:7334 and fe80::1", "[IP] and [IP]"),
        ("https://bob:hunter2@example.org/x", "https://[SECRET]@example.org/x"),
        ("OPENAI_API_KEY=sk-abcdefghij0123456789", "OPENAI_API_KEY=[SECRET]"),
        ("token hf_abcdefghijklmnop1234", "token [SECRET]"),
        ("twice a@b.org and a@b.org", "twice [EMAIL] and [EMAIL]"),
    ],
)
def test_personal_data_is_masked_and_masking_twice_changes_nothing(text, masked):
    assert mask_personal(text) == masked
    assert find_personal(masked) == ()


@pytest.mark.parametrize(
    "text",
    [
        "2024-01-02 12:30:45 and 31.12.2024, 1999-2003",
        "ISBN 978-3-16-148410-0 and 9783161484100, ISSN 0317-8471",
        "CWE-79, CVE-2024-12345, RFC 2616",
        "v1.2.3.4, version 10.0.0.1, section 4.2.1.1, build 5.6.7.8, EC 3.1.1.11, 1.2.3.4.5",
        "localhost 127.0.0.1, 0.0.0.0, mask 255.255.255.0, ::1",
        "$1,299.00, 1,234,567,890, +12.50, +5 points, +1 000 000 000 EUR, +44 123, 3.14159265",
        "order 1234567890123456, item 4111111111111112, 000-12-3456, 666-12-3456",
        "54362315A 390.533.447-04 880320-0017 943 476 5871",
        "a::b std::vector 12:34:56:78:9a:bc deadbeef",
        "@user a@b icon@2x.png lodash@4.17.21 x@y",
        "GB82 WEST 1234 5698 7654 33",
        "2+2=4, 10-20-2030, 555-1234, 100 200 3000",
    ],
)
def test_what_only_looks_like_personal_data_stays(text):
    assert mask_personal(text) == text


def test_one_order_number_in_ten_passes_a_card_check_only_if_an_issuer_begins_so():
    # Of 16-digit numbers 7000000000000000 + i none is a card, whatever its check digit.
    assert all(find_personal(f"{7_000_000_000_000_000 + i}") == () for i in range(100))
    cards = [find_personal(f"{4_000_000_000_000_000 + i}", ["card"]) for i in range(100)]
    assert sum(map(len, cards)) == 10


def test_only_the_kinds_asked_for_are_masked():
    text = "a@b.org +49 30 1234567"
    assert mask_personal(text, ["phone"]) == "a@b.org [PHONE]"
    assert mask_personal(text, []) == text
    with pytest.raises(DataError, match=r"no personal data of kind 'e-mail'. Did you mean 'email'"):
        mask_personal(text, ["e-mail"])  # type: ignore[list-item]


def test_spans_say_what_and_where():
    (span,) = find_personal("to a@b.org")
    assert (span.kind, span.start, span.stop) == ("email", 3, 10)


def test_the_redactor_of_reports_hides_the_same_secrets():
    text = "https://bob:hunter2@example.org hf_abcdefghijklmnop1234 bearer abcdefghij123456"
    assert redact(text).replace("[redacted]", "[SECRET]") == mask_personal(text, ["secret"])


@pytest.mark.parametrize(
    "secret",
    [
        "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----",
        "api_org_abcdefghijklmnop1234",
        "sk-abcdefghij0123456789",
        "AKIAABCDEFGHIJKLMNOP",
        "ghp_abcdefghijklmnopqrst",
        "github_pat_abcdefghijklmnopqrst",
        "glpat-abcdefghijklmnopqrst",
        "xoxb-1234567890",
        "AIza" + "a" * 35,
        "eyJhbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl",
        "Aws_Secret_Access_Key: " + "a" * 40,
        "DB_PASSWORD=correcthorse",
        "Bearer abcdefghij123456",
        "HTTPS://bob:pw@example.org",
    ],
)
def test_every_kind_of_secret_passes_the_quick_first_look(secret):
    assert "[SECRET]" in mask_personal(f"see {secret} there", ["secret"])


def test_every_national_number_says_what_is_checked():
    assert [what for _, _, what in NATIONAL if "," not in what] == []


HOSTILE = [
    "a", "a.", "1", "1 ", "1-", "+1", "@", "a@", "a@a.", "sk-", "eyJaaaaaaaa-", "eyJ", "A_",
    "A_KEY ", "A_KEY=", "GB82 ", "WEST", "://", "ab://", "ab://x", ":", "1:", "1.", "(", "é",
    "-----BEGIN PRIVATE KEY-----", "-----BEGIN A ", "a'", "+1 ", "A_TOKEN", "4111 ", "a@b.co ",
    "2001:db8::1 ", "hf_", " ", "bearer ",
]  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
def test_no_text_takes_long(piece):
    text = piece * (100_000 // len(piece))
    start = time.process_time()
    find_personal(text)
    assert time.process_time() - start < 2


@given(st.text(alphabet="aA1@.-+ :/[]_=IBE\n", max_size=80))
def test_masking_is_idempotent_whatever_the_text(text):
    once = mask_personal(text)
    assert mask_personal(once) == once


def test_the_kinds_are_in_the_order_in_which_they_win():
    assert KINDS == ("secret", "email", "iban", "card", "national_id", "phone", "ip")
