"""What data sets are read from: text, CSV, .mat files, folders of images. What is wrong is named by file and line."""

import codecs
import csv
import io
import math
import os
import posixpath
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

Box = tuple[float, float, float, float]
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
CLUTTER = ("@eaDir", "__MACOSX", "__pycache__", "lost+found", "$RECYCLE.BIN")  # beside all that begins with a dot


class DataError(ValueError):
    """The data are not where or what they must be; the message names the flag, the place and what is expected there."""


class CorruptImage(OSError):
    """An image, or the file of its boxes, that cannot be read."""

    def __init__(self, path: str, reason: str):
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"cannot read the image {self.path}: {self.reason}"


def folder_of(root: str, names: Sequence[str], marker: str, what: str) -> Path:
    """The folder that holds ``marker``: the root itself or one of ``names`` in it; raises :class:`DataError`."""
    for folder in (Path(root), *(Path(root, name) for name in names)):
        if Path(folder, marker).exists():
            return folder
    inside = " or ".join(dict.fromkeys([str(Path(root)), *(str(Path(root, name)) for name in names)]))
    raise DataError(f"--data-root must be the folder of {what}, got {root!r}: no {marker} in {inside}")


def need(path: Path, what: str) -> Path:
    """The path, if it is there; raises :class:`DataError` saying ``what`` is expected."""
    if not path.exists():
        raise DataError(f"--data-root lacks {path}: {what} is expected there")
    return path


def inside(folder: Path, name: str, where: str) -> str:
    """The file of that name below a folder; raises :class:`DataError` where a list's name leads out of it."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(f"{where}: a file below {folder} is expected, got {name!r}")
    return str(folder / name)


# ---- Text.


def read_text(path: Path, what: str) -> str:
    """A text file in UTF-8, or with the mark of UTF-16; raises :class:`DataError` where it is missing or another's."""
    if need(path, what).is_dir():
        raise DataError(f"{path} must be a file, {what}, got a folder")
    raw = path.read_bytes()
    marked = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return raw.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: UTF-8 is expected, got other bytes; convert the file") from error


def rows(path: Path, names: Sequence[str], what: str) -> Iterator[tuple[str, list[str]]]:
    """Lines that are not empty, cut at spaces into as many words as there are names; the last may hold spaces itself.

    Yields where the row is, and its words. Raises :class:`DataError` where one has fewer.
    """
    for number, line in enumerate(read_text(path, what).splitlines(), 1):
        words = line.split(maxsplit=len(names) - 1)
        if words and len(words) < len(names):
            raise DataError(f"{path}, line {number}: {' '.join(names)} are expected, got {line!r}")
        if words:
            yield f"{path}, line {number}", [word.strip() for word in words]


def keyed(path: Path, names: Sequence[str], what: str) -> "Table":
    """:func:`rows` by their first word; raises :class:`DataError` where two have the same."""
    table = Table(path)
    for where, (key, *values) in rows(path, names, what):
        if key in table:
            raise DataError(f"{where}: {names[0]} {key} is there twice, first in {table[key][0]}")
        table[key] = where, values
    return table


class Table(dict):
    """Rows by key: where each is, and its words."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path

    def of(self, key: str, where: str) -> tuple[str, list[str]]:
        """The row of a key that is asked for by another file's line."""
        if key not in self:
            raise DataError(f"{self.path} lacks a line for {key}, which is in {where}")
        return self[key]


def csv_rows(path: Path, names: Sequence[str], what: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV file by the names of its header; raises :class:`DataError` where one is short or long."""
    reader = csv.reader(io.StringIO(read_text(path, what), newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if not set(names) <= set(header):
            raise DataError(f"{path} must have the header {','.join(names)}, got {','.join(header)}")
        for cells in reader:
            where = f"{path}, line {reader.line_num}"
            if cells and len(cells) != len(header):
                raise DataError(f"{where}: {len(header)} cells are expected as in the header, got {len(cells)}")
            if cells:
                yield where, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}") from error


def number(word: str, low: int, high: int, where: str) -> int:
    """An integer from ``low`` to ``high``; raises :class:`DataError`."""
    try:
        value = int(word)
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise DataError(f"{where}: an integer from {low} to {high} is expected, got {word!r}")
    return value


def numbers(words: Sequence, where: str) -> list[float]:
    """The four finite numbers of a box; raises :class:`DataError`."""
    try:
        values = [float(word) for word in words]
    except (TypeError, ValueError):
        values = []
    if len(values) != 4 or not all(map(math.isfinite, values)):
        raise DataError(f"{where}: left, top, right and bottom must be numbers, got {', '.join(map(str, words))}")
    return values


def box(corners: Sequence, where: str, thin: bool = False) -> Box:
    """Four numbers as a box; ``thin`` allows one of no width or height. Raises :class:`DataError`."""
    left, top, right, bottom = numbers(corners, where)
    if not (left < right and top < bottom) and not (thin and left <= right and top <= bottom):
        raise DataError(f"{where}: left < right and top < bottom must hold, got {left}, {top}, {right}, {bottom}")
    return left, top, right, bottom


class BoxTable:
    """Boxes by image, from one file or folder; remembers which were asked for.

    Attributes:
        path: the file or the folder.
        boxes: by key, the boxes, as they were added.
        where: by key, the first line.
    """

    def __init__(self, path: Path):
        self.path = path
        self.boxes: dict[str, list] = {}
        self.where: dict[str, str] = {}
        self.used: set[str] = set()

    def add(self, key: str, own, where: str) -> None:
        """One more box of an image."""
        self.boxes.setdefault(key, []).append(own)
        self.where.setdefault(key, where)

    def of(self, key: str) -> tuple:
        """The boxes of an image."""
        self.used.add(key)
        return tuple(self.boxes.get(key, ()))

    def line_of(self, path: str, root: str) -> str:
        """Where the boxes of an image's file begin: the line, or the file or folder where that is not known."""
        return self.where.get(file_key(path, root)) or self.where.get(Path(path).stem) or str(self.path)

    def unused(self) -> dict[str, str]:
        """The keys that nobody asked for, and where they are."""
        return {key: where for key, where in self.where.items() if key not in self.used}


def file_key(path: str, root: str | Path) -> str:
    """One text for all ways to write a file below the root: separators, dots, composed and decomposed letters."""
    path, root = (
        posixpath.normpath(unicodedata.normalize("NFC", str(text).strip().replace("\\", "/"))) for text in (path, root)
    )
    return path.removeprefix(f"{root}/")


def load_mat(path: Path, what: str, *names: str, **how) -> list:
    """Variables of a .mat file; raises :class:`DataError` where it is damaged or lacks one."""
    from scipy.io import loadmat

    try:
        contents = loadmat(need(path, what), **(how or {"squeeze_me": True}))
    except DataError:
        raise
    except Exception as error:  # a damaged file makes the reader raise nearly anything
        raise DataError(f"{path} must be a .mat file, {what}: {error}") from error
    for name in names:
        if name not in contents:
            raise DataError(f"{path} must hold the variable {name}, {what}")
    return [contents[name] for name in names]


# ---- Folders.


def class_names(folder: Path) -> list[str]:
    """The names of the folders in a folder that hold images."""
    inside = sorted(path.name for path in folder.iterdir() if path.is_dir() and not _is_clutter(path.name))
    return [name for name in inside if _has_images(folder / name, folder)]


def image_files(folder: Path, split: Path) -> list[str]:
    """All images under a folder of a split, sorted; raises :class:`DataError` where a link leads back to others."""
    return sorted(_walk(folder, split), key=os.path.split)


def own_images(folder: Path) -> list[str]:
    """The images in a folder, not in those inside it."""
    return sorted(str(path) for path in folder.iterdir() if _is_image(path.name) and path.is_file())


def _has_images(folder: Path, split: Path) -> bool:
    """Whether there is an image under a folder; no more of it is listed than that takes."""
    _check_link(folder, split)
    with os.scandir(folder) as entries:
        if any(_is_image(entry.name) and entry.is_file() for entry in entries):
            return True
    return next(_walk(folder, split), None) is not None


def _walk(folder: Path, split: Path) -> Iterator[str]:
    _check_link(folder, split)
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not _is_clutter(name))
        for name in folders:
            _check_link(Path(root, name), split)
        yield from (os.path.join(root, name) for name in files if _is_image(name))


def _check_link(path: Path, split: Path) -> None:
    """A link may lead out of a split, to images kept elsewhere, but not to what is or holds another class."""
    if not path.is_symlink():
        return
    target, split, parent = path.resolve(), split.resolve(), path.parent.resolve()
    if target in (split, parent) or split in target.parents or target in split.parents or target in parent.parents:
        raise DataError(
            f"--data-root: {path} must not be a link to {target}, whose images are others' or its own again"
        )


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def _is_clutter(name: str) -> bool:
    return name.startswith(".") or name in CLUTTER
