# SPDX-License-Identifier: GPL-3.0-or-later
"""What speaks of minors is found through every guise it is given, and what does not is let be."""

from __future__ import annotations

import copy
import json
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")  # the reader's `header` needs it

from safegen_core.errors import SanitizeError
from safegen_core.sanitize import minors
from safegen_core.sanitize.minors import mentions

BANK = json.loads(minors._FILE.read_text(encoding="utf-8"))
TERMS = [term for terms in BANK["words"].values() for term in terms] + BANK["stems"]
EMOJI = BANK["words"]["emoji"]
CHARACTERS = [term for key in ("zh", "ja", "ko") for term in BANK["words"][key]]
WORDS = [term for term in TERMS if term not in EMOJI and term not in CHARACTERS]
LATIN = [term for term in WORDS if re.fullmatch("[a-z ]+", term)]
HIDDEN = [term for term in LATIN if len(term.replace(" ", "")) >= 3]  # two letters stand anywhere

LEET = {
    letter: sorted(sign for sign, meant in BANK["leet"].items() if meant == letter and sign != "l")
    for letter in set(BANK["leet"].values())
} | {"l": ["1", "|", "!"]}
INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad\u202e\u2066\u0336\u0301\ufe0f\u0000\u0007\u034f"

words = st.sampled_from(WORDS)
latin = st.sampled_from(LATIN)
hidden = st.sampled_from(HIDDEN)
characters = st.sampled_from(CHARACTERS)


def drawn(data: st.DataObject, choices):
    return data.draw(st.sampled_from(list(choices)))


# Every term in every guise


@pytest.mark.parametrize("term", TERMS)
def test_every_term_is_found_as_the_bank_has_it(term):
    assert term in mentions(term)
    assert term in mentions(f"a photo, {term}, by the sea")
    assert term in mentions(term.upper())


def test_terms_of_the_four_languages_are_there_and_each_once():
    assert all(len(BANK["words"][language]) > 40 for language in ("en", "zh", "ja", "ko"))
    assert len(set(TERMS)) == len(TERMS)


def named(term, text):
    """Whether a text is found to name a term, or what it is in the plural or in one word."""
    return bool({term, f"{term}s", term.replace(" ", "")} & {*mentions(text)})


@given(
    words.filter(lambda term: term[-1].isalpha()),
    st.sampled_from(["s", "'s", "s'", "_", ".", "!", ")", "2", "01"]),
)
def test_endings(term, ending):
    assert named(term, f"the {term}{ending} there")


@given(words, st.sampled_from(["", "-", "_", "  ", " - ", ".", "\n", "/"]))
def test_phrases_are_written_together_and_apart(term, between):
    assert named(term, term.replace(" ", between))


@given(
    words | characters,
    st.sampled_from(
        [
            "({})",
            "({}:1.2)",
            "( {} : 1.35 )",
            "(({}))",
            "[{}]",
            "[adult:{}:0.4]",
            "[{}:adult:12]",
            "[{}|adult]",
            "[adult|{}]",
            "\\({}\\)",
            "{{{}|adult}}",
            "adult BREAK {} BREAK adult",
            "adult AND {} AND adult",
            "<lora:{}:1>",
            "<lora:style_{}_v2:0.8>",
            "embedding:{}",
            "(embedding:{}:1.1)",
            "1{}",
            "multiple_{}s",
            '"{}"',
            "{}++",
        ]
    ),
)
def test_prompt_syntax(term, syntax):
    assert named(term, syntax.format(term.replace(" ", "_")))


@given(hidden)
def test_names_in_camel_case(term):
    name = "".join(word.capitalize() for word in term.split())
    assert named(term, f"<lora:My{name}_v3:1>")


def test_every_look_alike_is_read_as_its_letter():
    alike = minors._bank().look_alikes
    assert [char for char in alike if minors._folded(char, alike) != alike[char]] == []


@given(hidden, st.data())
def test_letters_of_other_scripts(term, data):
    looks = [drawn(data, c + BANK["look_alikes"].get(c, "")) for c in term]
    assert term in mentions("".join(looks))


@given(latin)
def test_full_width_and_mathematical_letters(term):
    wide = term.translate({ord("a") + n: 0xFF41 + n for n in range(26)})
    bold = term.translate({ord("a") + n: 0x1D4EA + n for n in range(26)})
    assert term in mentions(wide)
    assert term in mentions(bold)


@given(words | characters, st.text(INVISIBLE, min_size=1, max_size=4))
def test_what_is_not_seen(term, unseen):
    assert term in mentions("".join(char if char == " " else char + unseen for char in term))


@given(hidden, st.data())
def test_leetspeak(term, data):
    term_signs = [LEET.get(char, [char]) for char in term.replace(" ", "")]
    at = [n for n, signs in enumerate(term_signs) if not signs[0].isalpha()]
    if not at:
        return  # of letters without a sign
    some = data.draw(st.sets(st.sampled_from(at), min_size=1))
    guise = [
        drawn(data, signs) if n in some else char
        for n, (char, signs) in enumerate(zip(term.replace(" ", ""), term_signs, strict=True))
    ]
    if any(char.isalpha() for char in guise):
        assert mentions("a " + "".join(guise))  # i and l have one sign, so another may be named


def test_every_sign_of_leetspeak_is_part_of_a_word():
    assert all(minors._RUN.fullmatch(sign) for sign in BANK["leet"])


@given(hidden, st.sampled_from([" ", ".", "_", "-", "*", "  ", " - ", "\u2800", ")("]))
def test_letters_apart(term, between):
    apart = between.join(term.replace(" ", ""))
    assert named(term, apart)
    assert named(term, f"photo, {apart}, sea")


@given(hidden, st.sampled_from(["-", ".", "_", ")(", ":1.1)(", "\\"]), st.data())
def test_terms_cut_up(term, cut, data):
    term_joined = term.replace(" ", "")
    at = data.draw(st.integers(1, len(term_joined) - 1))
    assert named(term, f"({term_joined[:at]}{cut}{term_joined[at:]}:1.2)")


@given(hidden, st.integers(2, 9), st.data())
def test_letters_repeated(term, more, data):
    joined = term.replace(" ", "")
    at = data.draw(st.integers(0, len(joined) - 1))
    assert named(term, joined[:at] + joined[at] * more + joined[at:])


@given(characters, st.sampled_from([" ", ".", "_", "-", "・", "\u3000", "*"]))
def test_characters_apart(term, between):
    assert named(term, between.join(term.replace(" ", "")))


@given(characters)
def test_characters_inside_a_text(term):
    assert term in mentions(f"春{term}海")


@given(st.sampled_from(EMOJI))
def test_emoji_of_every_skin_and_in_families(emoji):
    assert emoji in mentions(f"photo{emoji}\U0001f3fd sea")
    assert emoji in mentions(f"\U0001f468\u200d{emoji}")


# What does not speak of minors

HARMLESS = """
    an adult woman by the sea|a 25 year old woman|man, 34yo, beard|woman in her thirties|aged fifty
    twenty-five years old|twenty five year old|one hundred and five years old|a 1000 year old elf
    1,000 years old|25.5 years old|18-25 years old|between twenty and thirty years old|over 18
    eighteenth birthday|twenty-first birthday|first year student|second-year university student
    middle-aged 1girl|middle age, 2 women|(middle age:1.2)|(old age:2)|bronze age 4k|gilded age
    1girl, solo|2girls, 1boy|a girl with a pearl earring|cowboy|playboy|girlfriend and boyfriend
    tomboy|cowgirl|ladyboy|young woman|young man|young adult|youthful face|petite woman|short woman
    kidney|kidney beans|kidnapped|skid marks|minority report|minorities|boycott|infantry|canteen
    fourteen candles|twelve oranges|ten|in toto|toot|loll|lollipop|a stroll|abominable|tottering
    16:9|8k, 35mm, f/1.8|Leica M10, portrait|seed 12, steps 30|CFG 7|photo 12, year 2000|4 cats
    shot a photo|5 min or 10|kind er|sho ta|in fan t|a b c d e f g|J.C. Leyendecker|T.O.P.
    she is 5 feet tall|the only one, by the sea|under two moons|under 3 trees|is 9 months pregnant
    baby oil|baby blue dress|baby's breath|BABY-PINK lipstick|sugar baby|kid gloves|Ursa Minor
    childbirth|Childe Harold|child's pose|Jessica Childress|nurse|art history|professor and student
    college student|university campus|teacher|graduate|bride and groom|grandmother|husband and wife
    Rothschild Palace|Springsteen|Kidman|Boyd|Kiddminster|Totnes|Minorca|Youngstown|Lolland
    tench|goldfish|great white shark|brambling|tree frog|komodo dragon|trilobite|tarantula|koala
    jellyfish|flatworm|hermit crab|dalmatian|tabby cat|ladybug|sea urchin|guinea pig|hippopotamus
    orangutan|lesser panda|abacus|academic gown|accordion|ambulance|apron|backpack|bagel|balloon
    bathing cap|bikini|maillot|miniskirt|sarong|bow tie|brassiere|stethoscope|lampshade|toy shop
    chicken breast|french fries|cheeseburger|pizza with cheese|miso soup|tater|toast|kimchi|dim sum
    Tottori prefecture|Kita-Kyushu|Toulouse|Chiltern Hills|Kidderminster|Tottenham|Boise|Girona
    20歳の女性|二十五歳|二十歲|三十代の女性|20代|万歳|成人女性|大人|人妻|大学生|熟女|カロ|着物の女
    二十几岁|20多岁|成年女性|女人|美女|老师|大学生|万岁|二十七八岁|三十多岁的男人
    스물다섯 살|스물 다섯 살|스무 살|25세 여성|17세기 회화|4세대|성인 여성|아이돌|아이스크림
    이야기|좋아 기분|다 살
    взрослая женщина|25 лет|30 лет|femme de 30 ans|mujer de 25 años|eine Frau, 40 Jahre
"""


@pytest.mark.parametrize("text", [t.strip() for t in re.split(r"[|\n]", HARMLESS) if t.strip()])
def test_what_does_not_speak_of_minors(text):
    assert mentions(text) == ()


@pytest.mark.parametrize("phrase", BANK["harmless"])
def test_a_harmless_phrase_hides_itself_only(phrase):
    assert mentions(phrase) == mentions(f"1girl, {phrase}s, sea") == ()
    assert mentions(f"{phrase}, a child") == mentions(f"child {phrase}") == ("child",)


def test_a_comma_ends_a_harmless_phrase():
    assert mentions("a baby, blue eyes") == ("baby",)


# Any text


@pytest.mark.parametrize("text", ["", " ", "\n", ",", "\u200b", "\u0301", "()", ":1.2)"])
def test_a_text_of_nothing_mentions_nothing(text):
    assert mentions(text) == ()


@given(st.text() | st.text("0123456789 -,.:()ageyos十歳살세이나나이tn"))
def test_any_text_is_read(text):
    found = mentions(text)
    assert found == tuple(sorted(set(found)))
    assert all(isinstance(term, str) and term for term in found)


@given(st.text(st.characters(exclude_categories=["Cs"])), st.sampled_from(TERMS))
def test_a_term_is_found_in_any_text(text, term):
    assert term in mentions(f"{text}\n,\n{term}\n,\n{text}")


@pytest.mark.parametrize("text", [None, b"child", 12, ["child"], object()])
def test_only_a_string_is_a_prompt(text):
    with pytest.raises(TypeError, match="must be a string"):
        mentions(text)


HOSTILE = {
    "one word": "a",
    "words": "sea star ",
    "letters": "t e ",
    "almost a term": "t e e ",
    "stretched": "tteeee",
    "digits": "1",
    "numbers": "1 ",
    "ranges": "1-",
    "lists": "1,",
    "groups": "111,",
    "number words": "twenty-",
    "joined words": "one or ",
    "weights": ":1",
    "long weights": ":   ",
    "open brackets": "(",
    "spaces": " ",
    "signs": "t3",
    "cut": "t-3.",
    "camel": "aB",
    "characters": "一",
    "ages": "一歳",
    "spread": "一 ",
    "korean": "열 ",
    "korean age": "나이 ",
    "marks": "\u0301",
    "unseen": "\u200b",
    "emoji": "\U0001f468\u200d",
}


def steps_of(text: str) -> int:
    """Calls of functions, Python's own among them, while a text is read."""
    count = 0

    def seen(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        mentions(text)
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("part", HOSTILE.values(), ids=HOSTILE)
def test_twice_the_text_takes_twice_the_steps(part):
    mentions(part)  # reads the bank
    once, twice = (part * (size // len(part)) for size in (3000, 6000))
    assert steps_of(twice) <= 2 * steps_of(once) + 100


@pytest.mark.parametrize("part", HOSTILE.values(), ids=HOSTILE)
def test_no_pattern_goes_back_over_a_long_text(part):
    """What a pattern does is no step that can be counted; a quadratic one would not end here."""
    mentions(part * (50_000 // len(part)))


def test_a_megabyte_is_read():
    prompt = "masterpiece, best quality, 1girl, (long hair:1.2), standing in a field, 8k, sunset, "
    assert mentions(prompt * ((1 << 20) // len(prompt)) + "12yo") == ("age 12",)


# The bank


@pytest.fixture
def bank(tmp_path, monkeypatch):
    """Puts another file in the bank's place: bytes, or None for none at all."""

    def put(data: bytes | None):
        if data is not None:
            (tmp_path / "minors.json").write_bytes(data)
        monkeypatch.setattr(minors, "_FILE", tmp_path / "minors.json")
        minors._bank.cache_clear()

    yield put
    minors._bank.cache_clear()


def encoded(values) -> bytes:
    return json.dumps(values, ensure_ascii=False).encode("utf-8")


def without_a_term() -> bytes:
    values = copy.deepcopy(BANK)
    values["words"]["en"].pop()
    return encoded(values)


@pytest.mark.parametrize(
    "data",
    [
        None,
        b"",
        b"{}",
        b"[]",
        b"not json",
        b"\xff\xfe",
        b'{"version": 1, "version": 1}',
        b"[" * 60_000,
        b" " * (1 << 20),
        encoded({**BANK, "version": 2}),
        encoded({**BANK, "words": {}}),
        encoded({**BANK, "another": []}),
        encoded(BANK)[:-1],
        encoded(BANK).replace(b"child", b"chilb"),
        b'{"version": "\\ud800"}',
        without_a_term(),
    ],
)
def test_a_missing_or_changed_bank_is_an_error_and_no_silence(bank, data):
    bank(data)
    for text in ("a star", "a child", ""):
        with pytest.raises(SanitizeError) as caught:
            mentions(text)
        assert caught.value.code == "sanitize_minors"
        assert len(caught.value.message) < 800


def test_a_folder_in_its_place(bank, tmp_path):
    (tmp_path / "minors.json").mkdir()
    bank(None)
    with pytest.raises(SanitizeError, match="Install SafeGen anew"):
        mentions("a star")


def test_a_bank_put_right_is_read_without_a_restart(bank):
    bank(None)
    with pytest.raises(SanitizeError):
        mentions("a child")
    bank(encoded(BANK))
    assert mentions("a child") == ("child",)


def test_line_ends_do_not_matter(bank):
    bank(json.dumps(BANK, indent=2, ensure_ascii=False).replace("\n", "\r\n").encode("utf-8"))
    assert mentions("a child") == ("child",)


def test_it_is_read_once(bank):
    bank(encoded(BANK))
    mentions("a star")
    minors._FILE.unlink()
    assert mentions("a child") == ("child",)


def test_the_digest_is_of_the_shipped_bank():
    assert minors._digest(BANK) == minors._DIGEST, "put the first into minors.py"


def test_spellings_fit_the_limits_of_the_search():
    bank = minors._bank()
    assert max(spelling.count(" ") + 1 for spelling in bank.spellings) == minors._LONGEST_PHRASE
    assert max(map(len, bank.skeletons)) <= minors._LONGEST_WORD
