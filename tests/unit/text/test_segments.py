import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.text.segments import segments


@pytest.mark.parametrize(
    ("text", "encoding", "parts", "units"),
    [
        ("", "GSM-7", 1, 0),
        ("Siyabonga!", "GSM-7", 1, 10),
        ("x" * 160, "GSM-7", 1, 160),
        ("x" * 161, "GSM-7", 2, 161),
        ("x" * 306, "GSM-7", 2, 306),
        ("x" * 307, "GSM-7", 3, 307),
        ("é" * 160, "GSM-7", 1, 160),
        ("Ω" * 160, "GSM-7", 1, 160),
        ("€" * 80, "GSM-7", 1, 160),
        ("€" * 81, "GSM-7", 2, 162),
        ("{" * 77, "GSM-7", 1, 154),
        ("{" * 153, "GSM-7", 3, 306),  # 76 a part: 153 is odd, and an escape stays with its letter
        ("x" * 152 + "{" + "x" * 152, "GSM-7", 3, 306),
        ("x" * 151 + "{" + "x" * 153, "GSM-7", 2, 306),
        ("line\none\r\n", "GSM-7", 1, 10),
        ("tab\t", "UCS-2", 1, 4),
        ("`", "UCS-2", 1, 1),
        ("ç", "UCS-2", 1, 1),  # only the capital letter is in the table
        ("Ç", "GSM-7", 1, 1),
        ("ж" * 70, "UCS-2", 1, 70),
        ("ж" * 71, "UCS-2", 2, 71),
        ("ж" * 134, "UCS-2", 2, 134),
        ("ж" * 135, "UCS-2", 3, 135),
        ("😀" * 35, "UCS-2", 1, 70),
        ("😀" * 36, "UCS-2", 2, 72),
        ("😀" * 67, "UCS-2", 3, 134),  # 33 a part: 67 is odd, and a pair stays together
        ("x" * 66 + "😀" + "x" * 66, "UCS-2", 3, 134),
    ],
)
def test_segments_are_counted_as_a_gateway_counts_them(text, encoding, parts, units):
    counted = segments(text)
    assert (counted.encoding, counted.segments, counted.units) == (encoding, parts, units)


@given(st.text("aé{€Ωж😀\n", max_size=400))
def test_counting_keeps_every_character_whole_within_its_part(text):
    counted = segments(text)
    extended = "^{}\\[~]|€\f"
    if "ж" in text or "😀" in text:
        widths, single, part, encoding = [2 if letter > "\uffff" else 1 for letter in text], 70, 67, "UCS-2"
    else:
        widths, single, part, encoding = [2 if letter in extended else 1 for letter in text], 160, 153, "GSM-7"
    filled = [0]
    for width in widths:
        if filled[-1] + width > part:
            filled.append(0)
        filled[-1] += width
    expected = 1 if sum(widths) <= single else len(filled)
    assert (counted.encoding, counted.segments, counted.units) == (encoding, expected, sum(widths))


@given(st.text(st.characters(), max_size=200))
def test_every_text_has_a_count(text):
    assert segments(text).segments >= 1
