"""Words of a caption as the caption scores count them, in the manner of the Penn Treebank.

The published scores are computed on the words that a Java program cuts. This is a tokenizer of our
own for the same conventions on English captions: lower case, clitics are words (`the dog 's`,
`do n't`), hyphenated words stay whole, abbreviations keep their full stop, brackets become
`-lrb- -rrb- ...`, sentence punctuation is left out. How often the two agree is in
`docs/metrics.md`.
"""

import html
import re

ASCII = str.maketrans(
    {
        "\u201c": '"', "\u201d": '"', "\u201e": '"',
        "\u2018": "`", "\u2019": "'",
        "\u2013": "--", "\u2014": "--", "\u2026": "...",
    }
)  # fmt: skip
DASHES = re.compile("-{2,}")
BRACKETS = {
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-",
}  # fmt: skip
PUNCTUATION = frozenset("' \" ` '' `` . ? ! , : ; - -- ...".split())  # noqa: SIM905
"""Words that are left out. Only these: `?!`, `&` and brackets count as words, as they do in the
published scores.
"""

ABBREVIATIONS = (
    "mr|mrs|ms|messrs|dr|prof|rev|hon|gov|sen|rep|pres|gen|adm|col|capt|lt|sgt|cpl|pvt|st|jr|sr|esq"
    "|mt|ft|ave|blvd|rd|ste|bldg|dept|univ|assn|bros|co|corp|inc|ltd|mfg|tel|est|etc|vs|cf|al|ph\\.d"
    "|mon|tue|wed|thu|fri|jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec"
)
PIECE = r"[^\W_]+"
TOKEN = re.compile(
    rf"""
    (?:https?://|www\.)[^\s"()<>]+         # addresses
  | [\w.+-]+@{PIECE}(?:[.-]{PIECE})+
  | @\w+ | \#[^\W\d]\w*                    # @name, #tag, but # 8
  | (?:[^\W\d_]\.){{2,}}(?![^\W_])         # u.s., p.m.
  | (?:{ABBREVIATIONS})\.(?!\w)
  | (?:no|fig|pp|op|ca)\.(?=\s*\d)
  | [^\W\d_]\.(?!\w)                       # initials
  | [-+]?(?:\d|\.\d)[\d,.:/-]*\d[^\W\d_]*(?:-{PIECE})* | [-+.]\d\b
  | '(?:\d0s|s|m|d|ll|re|ve|em)\b          # the '90s, the 80 's
  | 't(?=(?:is|was)\b) | 'n'
  | {PIECE}(?:(?:[-/&_.]|'(?=\D)){PIECE})*
  | \.{{3,}} | [?!]+ | -- | '' | `` | \S
    """,
    re.VERBOSE,
)
CLITIC = re.compile(r"(.*[^\W_])('(?:s|m|d|ll|re|ve)|n't)")
HALVES = {
    "cannot": ("can", "not"), "gonna": ("gon", "na"), "gotta": ("got", "ta"),
    "wanna": ("wan", "na"), "lemme": ("lem", "me"), "gimme": ("gim", "me"), "y'all": ("y'", "all"),
}  # fmt: skip


def caption_tokens(caption: str) -> list[str]:
    """Words of a caption, without punctuation."""
    text = DASHES.sub(" -- ", html.unescape(caption).translate(ASCII).lower())
    words = [word for found in TOKEN.finditer(text) for word in _parts(found.group())]
    return [word for word in words if word not in PUNCTUATION]


def _parts(token: str) -> list[str]:
    if token in HALVES:
        return list(HALVES[token])
    clitics = []
    while clitic := CLITIC.fullmatch(token):
        token = clitic[1]
        clitics.insert(0, clitic[2])
    return [BRACKETS.get(token, token), *clitics]
