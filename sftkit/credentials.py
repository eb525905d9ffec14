"""What tokens, keys, passwords and mail addresses look like, for reports and for data alike."""

from __future__ import annotations

import re

CREDENTIALS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), kept)
    for pattern, kept in (
        # Private keys, with their armour.
        (
            r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
            "{}",
        ),
        # Hugging Face, OpenAI and kin, AWS, GitHub, GitLab, Slack, Google.
        (r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}", "{}"),
        # Lengths that are looked over are bounded: "sk-sk-sk-…" would take quadratic time.
        (r"\bsk-(?=[A-Za-z0-9_-]{0,200}\d)[A-Za-z0-9_-]{16,}", "{}"),
        (r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b", "{}"),
        (r"\b(?:gh[pousr]_|github_pat_|glpat-)[A-Za-z0-9_-]{20,}", "{}"),
        (r"\bxox[abprs]-[A-Za-z0-9-]{10,}", "{}"),
        (r"\bAIza[A-Za-z0-9_-]{35}", "{}"),
        # JSON web tokens.
        (r"\beyJ[A-Za-z0-9_-]{8,4000}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?", "{}"),
        (
            r"(?i)(aws_?secret_?access_?key[\"']?\s*[=:]\s*[\"']?)[A-Za-z0-9/+=]{30,}",
            r"\1{}",
        ),
        (
            r"\b([A-Z][A-Z0-9_]*_(?:TOKEN|KEY|SECRET|PASSWORD)\s*=\s*[\"']?)[^\s\"'\[\\]{8,}",
            r"\1{}",
        ),
        (
            r"(?i)\b(bearer\s+)(?=[A-Za-z0-9._~+/-]*\d)[A-Za-z0-9._~+/-]{12,}=*",
            r"\1{}",
        ),
        # user:password@ and token@ in front of a host.
        (r"(?i)\b([a-z][a-z0-9+.-]{1,20}://)[^\s/@\"'<>\\?#]+@", r"\1{}@"),
    )
)
"""Patterns, each with what is to be kept of a match: {} stands for the secret itself."""

MAY_HOLD_CREDENTIALS = re.compile(
    r"PRIVATE KEY|hf_|api_org_|sk-|AKIA|ASIA|gh[pousr]_|github_pat_|glpat-|xox|AIza|eyJ|://"
    r"|_(?:TOKEN|KEY|SECRET|PASSWORD)|[aA][cC][cC][eE][sS][sS]|[bB][eE][aA][rR][eE][rR]"
)
"""What stands in every text that one of the patterns finds something in: a quick first look."""

EMAIL = re.compile(
    r"(?<![\w.%+'-])[\w%+-][\w.%+'-]{0,63}@(?:[\w-]{1,63}\.){1,8}"
    r"(?!(?i:png|jpe?g|gif|svg|webp|css|js|py)(?![^\W\d_]))[^\W\d_]{2,24}(?![\w@-])"
)
"""An address; icon@2x.png is none but a picture for fine screens. Lengths are bounded."""
