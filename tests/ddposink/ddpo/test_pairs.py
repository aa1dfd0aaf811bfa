"""Files of pairs: what is read of them, and which words refuse the rest, by file and row."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ddposink.comparisons import decode
from ddposink.ddpo import DDPOConfig
from ddposink.ddpo.pairs import pixels, read_pairs
from helpers.pairs import write_choices


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_choices(tmp_path)


def rewrite(file: Path, row: int, **columns: str) -> None:
    """Change columns of ``row``, counted from 1."""
    lines = file.read_text().splitlines()
    names = lines[0].split(",")
    values = dict(zip(names, lines[row].split(","), strict=True)) | columns
    lines[row] = ",".join(values[name] for name in names)
    file.write_text("\n".join(lines) + "\n")


def test_what_label_has_written_is_read(file: Path) -> None:
    pairs = read_pairs(str(file))
    assert (len(pairs), pairs.ties, pairs.size) == (6, 2, (16, 16))
    assert pairs.prompts == ("cat",) * 3 + ("dog",) * 3
    assert str(pairs) == f"choices.csv: 6 pairs (2 ties left out), sha256 {pairs.sha256[:12]}"
    for places, name in ((pairs.preferred, "bright"), (pairs.rejected, "dark")):
        assert [pairs.pictures[place].name for place in places] == [f"{n}-{name}.png" for n in range(3)] * 2
    found = pixels(pairs, [pairs.preferred[0]])
    with Image.open(pairs.pictures[pairs.preferred[0]]) as image:
        wanted = np.asarray(image, dtype=np.float64).transpose(2, 0, 1) / 255 * 2 - 1
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], wanted, atol=1e-6)


def test_the_hash_is_of_prompts_and_pictures_not_of_where_they_lie(file: Path, tmp_path: Path) -> None:
    known = read_pairs(str(file)).sha256
    moved = tmp_path / "elsewhere"
    shutil.copytree(tmp_path, moved, ignore=shutil.ignore_patterns("elsewhere"))
    assert read_pairs(str(moved / "choices.csv")).sha256 == known
    rewrite(moved / "choices.csv", 1, choice="b")  # the other way round
    assert read_pairs(str(moved / "choices.csv")).sha256 != known
    shutil.copy(moved / "dog" / "0-dark.png", moved / "dog" / "1-dark.png")
    rewrite(moved / "choices.csv", 1, choice="a ")  # as it was, in a file of another size
    assert read_pairs(str(moved / "choices.csv")).sha256 != known


def test_a_parquet_file_holds_its_pictures(tmp_path: Path) -> None:
    write_choices(tmp_path)
    bright, dark = ((tmp_path / "cat" / f"0-{name}.png").read_bytes() for name in ("bright", "dark"))
    rows = {"prompt": ["cat"] * 2, "image_a": [bright] * 2, "image_b": [dark] * 2, "choice": ["a", "b"]}
    pq.write_table(pa.table(rows), tmp_path / "pairs.parquet")
    pairs = read_pairs(str(tmp_path / "pairs.parquet"))
    assert (len(pairs), len(pairs.pictures), pairs.ties) == (2, 2, 0)
    assert (pairs.preferred, pairs.rejected) == ((0, 1), (1, 0))


@pytest.mark.parametrize(("columns", "said"), [
    ({"image_b": "cat/9.png"}, "row 2: there is no picture '.*9.png'"),
    ({"image_b": "../outside.png"}, "row 2: picture '.*outside.png' lies outside of the file's folder"),
    ({"image_b": "cat/link.png"}, "row 2: picture '.*outside.png' lies outside of the file's folder"),
    ({"image_b": "cat/small.png"}, "row 2: picture small.png is 8x4 pixels, and those before it are 16x16"),
    ({"image_b": "cat/broken.png"}, "row 2: picture broken.png cannot be read"),
    ({"image_b": "cat/odd.png"}, "row 2: picture odd.png cannot be read: broken PNG file"),
    ({"image_b": "cat/text.png"}, "row 2: picture text.png cannot be read: it is no picture"),
    ({"image_b": "cat/deep.png"}, "row 2: picture deep.png has more than 8 bits a channel; save it with 8"),
    ({"image_b": "cat/float.tif"}, "row 2: picture float.tif has more than 8 bits a channel; save it with 8"),
    ({"image_b": "iVBORw0KGgo" * 100}, r"row 2: 'iVBOR.*…' \(1,100 characters\) is no path of a picture"),
    ({"image_a": "cat/1-dark.png", "image_b": "cat/1-dark.png"}, "row 2: a picture is compared with itself"),
    ({"prompt": "  "}, "row 2: the prompt is empty; write the words"),
    ({"prompt": "x" * 1001}, "row 2: the prompt is longer than 1,000 characters"),
    ({"prompt": "a\0b"}, "row 2: the prompt has a NUL character"),
    ({"choice": "left"}, "row 2: choice 'left' is none of a, b, tie"),
    ({"judge": "me,too"}, "row 2: more values than columns; is a comma not in quotes"),
])  # fmt: skip
def test_a_row_that_cannot_be_learnt_from_is_named(
    tmp_path: Path, columns: dict[str, str], said: str
) -> None:
    folder = tmp_path / "pictures"
    file = write_choices(folder)
    Image.new("RGB", (16, 16)).save(tmp_path / "outside.png")
    Image.new("RGB", (8, 4)).save(folder / "cat" / "small.png")
    (folder / "cat" / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "cat" / "broken.png").write_bytes((folder / "cat" / "0-dark.png").read_bytes()[:200])
    odd = bytearray((folder / "cat" / "0-dark.png").read_bytes())
    odd[35] = 0  # within a chunk's length: Pillow raises SyntaxError
    (folder / "cat" / "odd.png").write_bytes(odd)
    (folder / "cat" / "text.png").write_text("no picture")
    Image.fromarray(np.full((16, 16), 40_000, dtype=np.uint16)).save(folder / "cat" / "deep.png")
    Image.new("F", (16, 16), 0.5).save(folder / "cat" / "float.tif")
    rewrite(file, 2, **columns)
    with pytest.raises(ValueError, match=f"choices.csv, {said}") as caught:
        read_pairs(str(file))
    assert "\n" not in str(caught.value)


def test_a_damage_that_overflows_is_told_too(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def overflow(*_: object) -> None:
        raise OverflowError("signed integer is greater than maximum")

    monkeypatch.setattr(Image, "open", overflow)
    with pytest.raises(ValueError, match=r"row 1: picture 0-.*\.png cannot be read: signed integer"):
        read_pairs(str(file))


def test_a_photograph_is_learnt_from_as_a_browser_shows_it(tmp_path: Path) -> None:
    drawn = np.zeros((16, 8, 3), np.uint8)
    drawn[:8] = 255
    turn = Image.Exif()
    turn[274] = 6  # to be turned by a quarter, clockwise
    Image.fromarray(drawn).rotate(90, expand=True).save(tmp_path / "a.png", exif=turn)
    assert np.array_equal(decode(tmp_path / "a.png"), drawn)


def test_a_picture_that_has_changed_is_not_learnt_from(file: Path) -> None:
    """Also one of the same size; and one that is gone."""
    pairs = read_pairs(str(file))
    (known,) = {pairs.pictures[pairs.preferred[0]]}
    Image.new("RGB", (16, 16)).save(known)
    for _ in range(2):
        with pytest.raises(ValueError, match=f"picture {known.name} has changed since it was read"):
            pixels(pairs, [pairs.preferred[0]])
        known.unlink(missing_ok=True)
    pixels(pairs, [pairs.rejected[0]])


def test_a_row_that_ends_early_is_named(file: Path) -> None:
    lines = file.read_text().splitlines()
    lines[3] = lines[3].rsplit(",", 2)[0]
    file.write_text("\n".join(lines))
    with pytest.raises(ValueError, match="row 3: nothing in column 'choice'; is the row damaged"):
        read_pairs(str(file))


def test_a_file_without_any_pair_is_refused(tmp_path: Path) -> None:
    file = write_choices(tmp_path, pairs=0)
    with pytest.raises(ValueError, match="has no pair to learn from: all 2 of its rows are ties"):
        read_pairs(str(file))
    file.write_text(file.read_text().splitlines()[0] + "\n")
    with pytest.raises(ValueError, match="has no pair to learn from: it has no rows"):
        read_pairs(str(file))


@pytest.mark.parametrize("name", ["missing.csv", "pictures", "choices.txt"])
def test_what_is_no_file_of_pairs_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "choices.txt").write_text("prompt")
    with pytest.raises(ValueError, match=r"is no \.csv or \.parquet file that exists; `python"):
        read_pairs(str(tmp_path / name))


def test_pairs_are_of_dpo_alone() -> None:
    with pytest.raises(ValueError, match=r"dpo_pairs 'x\.csv' is a file that algorithm 'dpo' learns from"):
        DDPOConfig(dpo_pairs="x.csv")
    with pytest.raises(ValueError, match="dpo_pairs is the path of a file"):
        DDPOConfig(algorithm="dpo", dpo_pairs="")
