"""docs/format.md says what the code does: every constant of the page against its definition."""

import re
from dataclasses import fields
from pathlib import Path

from frozen_kernels import format as fmt
from frozen_kernels.tickets import container, file

PAGE = (Path(__file__).parents[1] / "docs" / "format.md").read_text()
SECTIONS = {int(number): text for number, text in re.findall(r"^## (\d)\. (.*?)(?=^## |\Z)", PAGE, re.M | re.S)}


def cells(section: int) -> list[list[str]]:
    """The rows of a section's table, without its head."""
    rows = [line.strip("|").split("|") for line in SECTIONS[section].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_the_generator():
    words = [int(word, 16) for word in re.findall(r"0x[0-9A-F]{8}", SECTIONS[3])]
    assert words == [*fmt.PHILOX_MULTIPLIERS, *fmt.PHILOX_WEYL]
    assert f"Philox4x32-{fmt.PHILOX_ROUNDS} " in SECTIONS[3]
    ids = {row[0]: int(row[1].split()[0]) for row in cells(3)}
    assert ids == {name: getattr(fmt, name) for name in ("SIGN", "BYTE", "PARTITION", "SCORE", "SEARCH")}


def test_codes():
    found = {row[0].strip("`"): row[2] for row in cells(4)}
    assert tuple(found) == fmt.CODES
    numbers = {code: 21845**0.5 if text == "sqrt(21845)" else float(text) for code, text in found.items()}
    assert numbers == fmt.RMS


def test_the_file():
    keys = re.findall(r"^- `frozen_kernels\.(\w+)`", SECTIONS[7], re.M)
    assert tuple(keys) == file.KEYS and f'`"{fmt.VERSION}"`' in SECTIONS[7]
    named = [name for row in cells(7) for name in re.findall(r"`(\w+)`", row[0])]
    known = [row for row in cells(8) if row[0].strip("`") in file.KNOWN_FEATURES]
    named += [name for row in known for name in re.findall(r"`(\w+)`:", row[1])]
    assert sorted(named) == sorted({field.name for field in fields(file.TensorRecord)} - file.SEEN)
    assert f"{container.LARGEST_HEADER:,} bytes" in SECTIONS[7]
    assert (container.MOST_VALUES, file._PLANES, file._PLANES_PER_BYTE) == (1 << 20, 1 << 30, 16)
    assert all(text in SECTIONS[7] for text in ("2^20 of", "2^30 bytes", "16 more for each byte"))


def test_reserved_features_are_not_known():
    named = {row[0].strip("`") for row in cells(8)}
    reads = re.search(r"reads and writes ((?:`\w+`(?:,|\s|and)*)+)\.", SECTIONS[8])
    assert reads and (*re.findall(r"`(\w+)`", reads[1]),) == file.KNOWN_FEATURES
    assert len(named) == 6 and named >= {*file.KNOWN_FEATURES} and not named & {*fmt.CODES}
    for code, kind in ((fmt.STORED, "A stored weight"), (fmt.SIGNS, "A weight of stored signs")):
        said = re.search(rf"{kind} has the code (\d)", SECTIONS[8])
        assert fmt.make_header(0, code=code)[fmt.CODE] == int(said[1])
