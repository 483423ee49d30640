"""How the official VQA evaluation reads an answer, oddities included.

The evaluation is that of github.com/GT-Vision-Lab/VQA. Figures are only
comparable if two answers count as equal exactly when they do there, so what looks like a slip is
kept and named.
"""

import re

# Each of these words, written without any one of its apostrophes, gets it back.
APOSTROPHES = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
    might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
    you've
""".split()  # noqa: SIM905
CONTRACTIONS = {
    word[:at] + word[at + 1 :]: word
    for word in APOSTROPHES
    for at, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}  # the one word that loses its apostrophe there
NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5",
    "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
ARTICLES = ("a", "an", "the")

MARKS = ';/[]"{}()=+\\_-><@`,?!'
DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
# A look-behind was meant here ("no digit before"); as written in the original it holds everywhere.
FULL_STOP = re.compile(r"\.(?!\d)")
MOST_FULL_STOPS = 32
"""The original passes a flag where the number of replacements belongs, and its value is 32."""


def stripped(answer: str) -> str:
    """An answer without line breaks, tabs and outer spaces."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


def normalized(answer: str) -> str:
    """An answer in the form in which differing answers are compared.

    Punctuation goes, numbers up to ten become digits, articles go, contractions get their
    apostrophe. Apostrophes and colons stay.
    """
    text = answer
    every = DIGIT_COMMA_DIGIT.search(answer) is not None
    for mark in MARKS:
        # Next to a space anywhere in the answer, a mark vanishes everywhere in it.
        vanishes = every or f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if vanishes else " ")
    text = FULL_STOP.sub("", text, count=MOST_FULL_STOPS)
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
