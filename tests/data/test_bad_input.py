"""Damaged, hostile and odd files, as a user meets them: one sentence, or named rejections and the rest read."""

import contextlib
import ctypes
import gzip
import io
import json
import os
import stat
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from meditune.data import example
from meditune.data.readers import mimic
from meditune.data.readers.tables import Rejects
from tests import layouts
from tests.commands import Result, meditune, read_rows, rows

pytestmark = pytest.mark.usefixtures("own_folders")

ROWS = rows(40)
LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY l0 "lol">'
    + "".join(f'<!ENTITY l{n + 1} "{f"&l{n};" * 10}">' for n in range(9))
    + "]><Document><QAPair><Question>Q?</Question><Answer>&l9;</Answer></QAPair></Document>"
)
SECRET = (
    '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><Document><QAPair>'
    "<Question>Q?</Question><Answer>&e;</Answer></QAPair></Document>"
)


def prepared(name: str, path: Path, *words: str) -> Result:
    source = json.dumps([{"name": name, "path": str(path)}])
    settings = ("--set", f"data.sources={source}", "--set", "data.split=group")
    return meditune("data", "prepare", "quickstart", "--output", path.parent / "out", *settings, *words)


def lines(found: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in found)


def table(found: list[dict[str, Any]]) -> str:
    names = list(found[0])
    quoted = (",".join('"' + str(row[name]).replace('"', '""') + '"' for name in names) for row in found)
    return "\r\n".join([",".join(names), *quoted]) + "\r\n"


def changed(numbers: range, **changes: Any) -> list[dict[str, Any]]:
    return [row | (changes if number in numbers else {}) for number, row in enumerate(ROWS)]


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("latin-1", "iconv -f WINDOWS-1252"),
        ("cp1252", "iconv -f WINDOWS-1252"),
        ("utf-16", "UTF-16, not UTF-8 text. Convert it: iconv -f UTF-16 -t UTF-8"),
        ("utf-16-le", "iconv -f UTF-16LE"),
        ("utf-16-be", "iconv -f UTF-16BE"),
        ("utf-32", "UTF-32, not UTF-8 text"),
    ],
)
@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_another_encoding_is_named_with_the_command_that_converts(tmp_path, encoding, text, ending):
    found = [row | {"question": f"{row['question']} Für Müller?"} for row in ROWS]
    content = {".csv": table(found), ".jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)}
    path = tmp_path / f"a{ending}"
    path.write_bytes(content[ending].encode(encoding))
    prepared("own", path).refused(3, str(path), text)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.csv", gzip.compress(b"question,answer", mtime=0), "a gzip file"),
        ("a.csv", b"PK\x03\x04 and more", "a zip file (Excel workbooks"),
        ("a.jsonl", b"PAR1 and more", "a Parquet file"),
        ("a.csv", b"\0" * 5000, "only zero bytes"),
        ("a.csv", b"id;question;answer\r\n1;Q?;A, and B.\r\n", "semicolons"),
        ("a.csv", b'"question";"answer"\r\n"Q?";"A."\r\n', "line 1: the fields are separated by semicolons"),
        ("a.csv", b"question\tanswer\nQ?\tA, and B.\n", "line 1: the fields are separated by tabs"),
        ("a.jsonl", b"", "no rows"),
        ("a.csv", b"", "no rows"),
        ("a.json", b"", "not valid JSON"),
        ("a.json", b'{"data": []}', "expected a list of objects"),
        ("a.json", ("[" * 200_000 + "]" * 200_000).encode(), "nested too deeply"),
        ("a.jsonl", (lines(ROWS) + '{"x":' + "[" * 200_000 + "\n").encode(), "line 41: values nested too deeply"),
        ("a.jsonl", (lines(ROWS) + '{"id": ' + "9" * 6000 + "}\n").encode(), "line 41: a number with too many digits"),
        (
            "a.jsonl",
            lines(ROWS)[:-30].encode(),
            "line 40: not valid JSON (Unterminated string starting at). The last line is",
        ),
        ("a.jsonl", (lines(ROWS) + "[1]\n").encode(), "line 41: expected a JSON object, found list"),
        ("a.jsonl", lines(ROWS).encode().replace(b"own treatment 3 ", b"own \xed\xa0\x80 "), "not UTF-8 text"),
        ("a.csv", (table(ROWS) + '99,"open,x,y,z\n').encode(), "line 42: unexpected end of data"),
        ("a.csv", (table(ROWS) + '99,"open" x,y,z,no\n').encode(), "line 42: ',' expected after"),
        ("a.parquet", b"PAR1" + b"\0" * 100 + b"PAR1", "not a readable Parquet file"),
    ],
)
def test_a_file_that_is_not_what_its_name_says(tmp_path, name, content, text):
    path = tmp_path / name
    path.write_bytes(content)
    prepared("own", path).refused(3, str(path), text)
    assert not (tmp_path / "out" / "data").exists()


@pytest.mark.parametrize(
    ("found", "kept", "reason"),
    [
        (changed(range(3), question="a\0b"), 37, example.NUL_CHARACTER),
        (changed(range(1), answer="word " * 2_000_000), 39, example.TOO_LONG),
        (changed(range(2), question="q\ud800"), 38, example.SURROGATES),
        (changed(range(2), context="c\udfff"), 38, example.SURROGATES),
        (changed(range(2), ward={"a": ["\ud800"]}), 38, example.SURROGATES),
        (changed(range(2), group="\ud800"), 38, example.SURROGATES),
        (changed(range(2), id="\ud800"), 38, example.SURROGATES),
        (changed(range(2), **{"key\ud800": 1}), 38, example.SURROGATES),
        (changed(range(2), x=json.loads("[" * 900 + "]" * 900)), 38, example.TOO_DEEP),
        (changed(range(4), id=7), 36, "duplicate id"),
        (changed(range(4), question="\u200b\u202e\x07"), 36, "no question"),
        (changed(range(4), question=["x"], answer={"a": 1}), 36, "no question"),
        (changed(range(4), answer=float("inf"), decision=None), 36, "neither answer nor decision"),
        ([*ROWS[:36], *({"prompt": "Q?", "response": "A."} for _ in range(4))], 36, "no question"),
    ],
)
def test_a_bad_row_is_named_and_the_rest_is_read(tmp_path, found, kept, reason):
    path = tmp_path / "a.jsonl"
    path.write_text(lines(found), encoding="utf-8")
    result = prepared("own", path).ok()
    assert f"own: {kept} examples read" in result.out
    refused = read_rows(tmp_path / "out" / "data" / "rejected.jsonl")
    assert {row["reason"] for row in refused} == {reason}
    assert all(row["where"].startswith(str(path)) for row in refused)


def test_a_count_of_rows_is_not_read_as_part_of_the_reason(tmp_path):
    table = tmp_path / "own.csv"
    whole = "".join(f"Does drug {number} help with pain?,Yes: it helps number {number}.,yes\n" for number in range(12))
    table.write_text(f"question,answer,decision\n{whole}Does it help?,Yes.\n,No question.,no\n", encoding="utf-8")
    words = ("--set", f"data.sources=[{{name: own, path: {table}}}]", "--output", tmp_path / "out")
    done = meditune("data", "prepare", "quickstart", *words)
    assert "; left out: 1 row: 2 fields, but the header has 3; 1 row: no question\n" in done.out, done
    assert "- own: 1 row: 2 fields, but the header has 3\n" in (tmp_path / "out" / "data" / "README.md").read_text()


def test_odd_but_whole_rows_are_read(tmp_path):
    path = tmp_path / "a.jsonl"
    odd = [row | {"answer": f"\x1b[31m{row['answer']}\u202e", "score": float("nan")} for row in ROWS]
    path.write_text("\ufeff" + lines(odd), encoding="utf-8")
    assert "40 examples read" in prepared("own", path).out
    row = read_rows(tmp_path / "out" / "data" / "train.jsonl")[0]
    assert row["meta"]["score"] is None, "NaN isn't JSON"


def test_a_csv_with_lines_and_quotes_in_its_fields(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("\n\n" + table([row | {"answer": 'He said "x",\r\n\nthen left'} for row in ROWS]), newline="")
    assert "40 examples read" in prepared("own", path).out


def test_parquet_with_columns_that_json_does_not_know(tmp_path):
    odd = [row | {"context": [{"text": "T", "label": "L"}], "blob": b"\xff\0\1", "deep": {"a": [1]}} for row in ROWS]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(odd), tmp_path / "a.parquet")
    assert "40 examples read" in prepared("own", tmp_path / "a.parquet").out
    row = read_rows(tmp_path / "out" / "data" / "train.jsonl")[0]
    assert row["meta"] == {"blob": "(3 bytes)", "deep": {"a": [1]}}


def test_parquet_with_a_text_that_is_not_utf8(tmp_path):
    texts = pyarrow.array([b"Q1?", b"Q\xff?"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"question": texts, "answer": ["A", "A"]}), tmp_path / "a.parquet")
    prepared("own", tmp_path / "a.parquet").refused(3, "a.parquet, rows 1 to 2: a text isn't UTF-8")


@pytest.mark.parametrize(
    "dates",
    [
        pyarrow.array([0, 4_000_000], pyarrow.date32()),
        pyarrow.array([0, 10**14], pyarrow.timestamp("s")),
        pyarrow.array([0, 0], pyarrow.timestamp("us", tz="America/Nowhere")),
    ],
)
def test_dates_that_python_cannot_represent(tmp_path, dates):
    table = pyarrow.table({"question": ["Q1?", "Q2?"], "answer": ["A", "A"], "seen": dates})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    prepared("own", tmp_path / "a.parquet").refused(
        3, "a.parquet, rows 1 to 2: column 'seen': a date or time is out of"
    )


def pipe(folder: Path, name: str) -> Path:
    os.mkfifo(folder / name)
    return folder / name


def forbidden(folder: Path, name: str) -> Path:
    (folder / name).write_text("", encoding="utf-8")
    (folder / name).chmod(0)
    return folder / name


def linked(folder: Path, name: str) -> Path:
    (folder / name).symlink_to("/dev/zero")
    return folder / name


def a_folder(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


@contextlib.contextmanager
def bound_by_modes() -> Iterator[None]:
    """Inside the block this thread reads what the files' modes allow, also as root (Linux's capabilities)."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, data) == 0
    effective = data[0]
    data[0] &= ~(CAP_DAC_OVERRIDE | CAP_DAC_READ_SEARCH)
    assert libc.capset(header, data) == 0
    try:
        yield
    finally:
        data[0] = effective
        assert libc.capset(header, data) == 0


CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1 << 1, 1 << 2


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (pipe, "a pipe or a device"),
        (linked, "a pipe or a device"),
        (forbidden, "Permission denied"),
        (a_folder, "this is a folder, but a file is needed"),
    ],
)
@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("own", "a.jsonl"),
        ("own", "a.csv"),
        ("own", "a.parquet"),
        ("pubmedqa", "ori_pqal.json"),
        ("pubmedqa", "pqa_labeled.jsonl"),
        ("medquad", "MedQuAD.zip"),
    ],
)
def test_what_is_no_file_is_not_waited_for(tmp_path, make, text, source, name):
    path = make(tmp_path, name)
    with bound_by_modes() if sys.platform == "linux" else contextlib.nullcontext():
        prepared(source, path if source == "own" else tmp_path).refused(3, str(path), text)
    if make is pipe:
        prepared(source, path).refused(3, str(path), text)


def test_a_pipe_among_the_xml_files(tmp_path):
    layouts.liveqa(tmp_path / "set")
    path = pipe(tmp_path / "set" / "TestDataset", "more.xml")
    prepared("liveqa", tmp_path / "set").refused(3, str(path), "a pipe or a device")


def medquad(folder: Path, **more: bytes) -> Path:
    documents = {
        f"1_CancerGov_QA/{n:07}.xml": layouts.medquad_document(
            f"{n:07}", f"Focus {n}", [("symptoms", f"What are the symptoms of focus {n}?", f"Answer {n}.")]
        )
        for n in range(30)
    }
    layouts.medquad(folder, documents)
    for name, data in more.items():
        (folder / "1_CancerGov_QA" / f"{name}.xml").write_bytes(data)
    return folder


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (LAUGHS.encode(), "amplification"),
        (SECRET.encode(), "undefined entity"),
        (b"", "no element found"),
        (b"<a>\0</a>", "invalid token"),
        (b"<a>\x07</a>", "invalid token"),
        ("<Document>Für</Document>".encode("latin-1"), "invalid token"),
        (b'<?xml version="1.0" encoding="UTF-7"?><a/>', "multi-byte encodings"),
        (b'<?xml version="1.0" encoding="hex"?><a/>', "unknown text encoding"),
        (("<a>" * 100_000 + "</a>" * 100_000).encode(), "elements nested more than 100 deep"),
        (("<QAPair>" * 100_000 + "</QAPair>" * 100_000).encode(), "elements nested more than 100 deep"),
        (layouts.medquad_document("x", "F", [("a", "Q?", "word " * 2_000_000)]).encode(), example.TOO_LONG),
    ],
)
def test_bad_xml_is_named_and_the_rest_is_read(tmp_path, data, reason):
    result = prepared("medquad", medquad(tmp_path / "set", bad=data)).ok()
    assert "medquad: 30 examples read" in result.out
    (row,) = read_rows(tmp_path / "out" / "data" / "rejected.jsonl")
    assert "1_CancerGov_QA/bad.xml" in row["where"]
    assert reason in row["reason"]
    everything = b"".join(each.read_bytes() for each in (tmp_path / "out" / "data").glob("*.json*"))
    assert b"root:" not in everything, "an entity brought in another file"


def zipped(path: Path, **more: str) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(medquad(path.parent / "set").rglob("*.xml")):
            archive.write(file, file.relative_to(path.parent / "set").as_posix())
        for name, text in more.items():
            archive.writestr(name.replace("__", "/") + ".xml", text)
    return path


def flagged(path: Path, place: int, value: int) -> Path:
    """The zip with a byte of its first file's two headers set."""
    data = bytearray(path.read_bytes())
    for mark, shift in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
        data[data.find(mark) + place + shift] = value
    path.write_bytes(data)
    return path


def swollen(path: Path) -> Path:
    """The zip with 14,999 bytes passed off as fifteen million, wherever that is a file's length."""
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", 14_999), struct.pack("<I", 15_000_000)))
    return path


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: flagged(zipped(path), 6, 1), "is encrypted"),
        (lambda path: flagged(zipped(path), 8, 99), "compression method is not supported"),
        (lambda path: flagged(zipped(path), 14, 0), "a damaged zip file (Bad CRC-32"),
        (lambda path: zipped(path, bomb="<a>" + " " * 40_000_000 + "</a>"), "bomb.xml: more than 16 MB"),
        (
            lambda path: swollen(zipped(path, **{f"b{n}": " " * 14_999 for n in range(36)})),
            "unpacks to more than 512 MB",
        ),
    ],
)
def test_a_hostile_zip_is_refused(tmp_path, make, text):
    prepared("medquad", make(tmp_path / "MedQuAD.zip")).refused(3, "MedQuAD.zip", text)


def test_a_zip_that_says_it_is_small(tmp_path):
    path = zipped(tmp_path / "MedQuAD.zip", lie="<a>" + " " * 40_000_000 + "</a>")
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", 40_000_007), struct.pack("<I", 100)))
    prepared("medquad", path).refused(3, "a damaged zip file")


def test_names_in_a_zip_lead_nowhere(tmp_path):
    document = layouts.medquad_document("x", "F", [("a", "Of what?", "Of that.")])
    path = zipped(tmp_path / "MedQuAD.zip", **{"..__..__evil": document, "__tmp__abs": document})
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("link.xml")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        inner = io.BytesIO()
        with zipfile.ZipFile(inner, "w") as nested:
            nested.writestr("nested.xml", document)
        archive.writestr("more/inner.zip", inner.getvalue())
    before = {each.name for each in tmp_path.parent.rglob("*evil*")}
    result = prepared("medquad", path).ok()
    assert "medquad: 32 examples read" in result.out
    assert {each.name for each in tmp_path.parent.rglob("*evil*")} == before
    assert "not well-formed XML" in (tmp_path / "out" / "data" / "rejected.jsonl").read_text(encoding="utf-8")


def test_pubmedqa_with_odd_items(tmp_path):
    items: dict[str, Any] = {str(n): layouts.pubmedqa_item(n) for n in range(60)}
    items |= {
        "100": layouts.pubmedqa_item(100, QUESTION="q\ud800"),
        "101": layouts.pubmedqa_item(101, MESHES=["\ud800"]),
        "102": 5,
        "103": layouts.pubmedqa_item(103, QUESTION="a\0"),
        "104": layouts.pubmedqa_item(104, YEAR="²"),
    }
    text = json.dumps(items)[:-1] + f', "7": {json.dumps(layouts.pubmedqa_item(7, QUESTION="Another?"))}}}'
    path = tmp_path / "ori_pqal.json"
    path.write_text(text, encoding="utf-8")
    result = prepared("pubmedqa", tmp_path)
    assert "pubmedqa: 61 examples read" in result.out, result
    refused = {
        row["where"].split(" ")[-1]: row["reason"] for row in read_rows(tmp_path.parent / "out/data/rejected.jsonl")
    }
    assert refused == {
        "100": example.SURROGATES,
        "101": example.SURROGATES,
        "102": "no question",
        "103": example.NUL_CHARACTER,
        "7": "duplicate id",
    }


def test_liveqa_without_its_questions(tmp_path):
    layouts.liveqa(tmp_path / "set")
    path = tmp_path / "set" / "TestDataset" / "TREC-2017-LiveQA-Medical-Test-Questions-w-summaries.xml"
    path.write_text("<a/>", encoding="utf-8")
    prepared("liveqa", tmp_path / "set").refused(3, path.name, "no questions in this file")
    path.write_text(f"<a>{'<NLM-QUESTION/>' * 6000}</a>", encoding="utf-8")
    prepared("liveqa", tmp_path / "set").refused(3, path.name, "6,000 questions")


@pytest.mark.parametrize(
    ("break_it", "text"),
    [
        (lambda data: data[:-20], "Compressed file ended"),
        (lambda data: data + b"garbage", "Not a gzipped file"),
        (lambda data: data[:-8] + b"\0\0\0\0" + data[-4:], "CRC check failed"),
        (lambda _: b"no" + os.urandom(4000), "Not a gzipped file"),
        (lambda _: b"", "are missing"),
        (lambda _: gzip.compress(b'"ROW_ID","' + b"A" * 40_000_000, mtime=0), "characters without a line break"),
    ],
)
def test_a_gz_that_is_damaged_or_a_bomb(tmp_path, break_it, text):
    path = layouts.noteevents(tmp_path / "NOTEEVENTS.csv.gz", [layouts.note(n, SUBJECT_ID=n) for n in range(1, 30)])
    path.write_bytes(break_it(path.read_bytes()))
    prepared("mimic", path).refused(3, str(path), text)


def test_notes_with_odd_letters_are_named_by_their_number_only(tmp_path):
    notes = [layouts.note(n, SUBJECT_ID=n, TEXT=f"Discharge Diagnosis:\nillness {n}") for n in range(1, 40)]
    notes.append(layouts.note(99, TEXT="Discharge Diagnosis:\nse\0cret"))
    notes.append(layouts.note(98, TEXT="Discharge Diagnosis:\n" + "word " * 1_000_000))
    path = layouts.noteevents(tmp_path / "NOTEEVENTS.csv", notes)
    rejects = Rejects()
    assert len(list(mimic.read(path, rejects))) == 39
    assert [(row["reason"], row["row"]) for row in rejects.rows()] == [
        (example.NUL_CHARACTER, '{"ROW_ID": "99"}'),
        (example.TOO_LONG, '{"ROW_ID": "98"}'),
    ]


PAIRS = [
    {"id": n, "question": f"Is pair {n} good?", "chosen": f"Good {n}.", "rejected": f"Bad {n}."} for n in range(40)
]
RATED = [{"id": n, "question": f"Is pair {n // 2} good?", "answer": f"A {n}.", "rating": n % 2} for n in range(80)]


@pytest.mark.parametrize(
    ("found", "reasons"),
    [
        ([*PAIRS, PAIRS[0] | {"id": "\ud800"}, PAIRS[0] | {"group": "\ud800"}], {example.SURROGATES: 2}),
        ([*PAIRS, PAIRS[0] | {"id": 50, "chosen": "a\0"}], {example.NUL_CHARACTER: 1}),
        (
            [*RATED, *(RATED[0] | {"id": 90 + n, "rating": odd} for n, odd in enumerate((10**400, "²", "9" * 5000)))],
            {"no rating (or the rating isn't a number)": 3},
        ),
        ([*RATED, RATED[0] | {"id": "\ud800"}], {example.SURROGATES: 1}),
    ],
)
def test_bad_pairs_and_ratings_are_named(tmp_path, found, reasons):
    path, good = tmp_path / "pairs.jsonl", tmp_path / "a.jsonl"
    path.write_text(lines(found), encoding="utf-8")
    good.write_text(lines(ROWS), encoding="utf-8")
    words = ("--set", "train.objective=dpo", "--set", f"train.preference.path={path}")
    prepared("own", good, *words).ok()
    facts = json.loads((tmp_path / "out" / "pairs" / "facts.json").read_text(encoding="utf-8"))
    assert facts["left_out"] == reasons


def held_up(tmp_path: Path, path: Path, name: str, source: str, meddle: Callable[[], None]) -> str:
    """stderr of reading `path` with a pause after the first row, in which `meddle` is called."""
    code = (
        "import sys, pathlib\n"
        f"from meditune.data.readers import {name} as reader\n"
        "from meditune.data.readers.tables import Rejects\n"
        "from meditune.errors import DataError\n"
        f"found = reader.{source}\n"
        "try:\n"
        "    next(found); print('begun', flush=True); sys.stdin.readline()\n"
        "    for _ in found: pass\n"
        "except DataError as error:\n"
        "    print(error)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    meddle()
    out, _ = process.communicate("\n", timeout=60)
    return out


@pytest.mark.parametrize("how", ["cut", "replaced", "grown"])
@pytest.mark.parametrize("kind", ["tables", "mimic"])
def test_a_file_that_changes_while_it_is_read(tmp_path, how, kind):
    if kind == "mimic":
        notes = [layouts.note(n, SUBJECT_ID=n) for n in range(1, 500)]
        path = layouts.noteevents(tmp_path / "NOTEEVENTS.csv", notes)
        call = "read(pathlib.Path(sys.argv[1]), Rejects())"
    else:
        path = tmp_path / "a.jsonl"
        path.write_text(lines(rows(5000)), encoding="utf-8")
        call = "rows(pathlib.Path(sys.argv[1]), 'own', Rejects())"

    def meddle() -> None:
        if how == "cut":
            os.truncate(path, path.stat().st_size * 2 // 3)
        elif how == "grown":
            with path.open("ab") as stream:
                stream.write(path.read_bytes()[-200:])
        else:
            (tmp_path / "new").write_bytes(path.read_bytes())
            (tmp_path / "new").replace(path)

    assert f"{path}: changed while it was being read" in held_up(tmp_path, path, kind, call, meddle)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_an_endless_field_does_not_fill_the_memory(tmp_path, name):
    path = tmp_path / name
    with path.open("wb") as stream:
        stream.write(b'question,answer\nQ,"' if name == "a.csv" else b'{"question": "')
        for _ in range(20):
            stream.write((b"word,\n" if name == "a.csv" else b"words ") * 1_666_667)
    code = (
        "import re, sys, pathlib\n"
        "from meditune.data.readers import user_files\nfrom meditune.data.readers.tables import Rejects\n"
        "from meditune.errors import DataError\n"
        "try:\n    list(user_files.read(pathlib.Path(sys.argv[1]), Rejects()))\n"
        "except DataError as error:\n    print(error)\n"
        "status = pathlib.Path('/proc/self/status').read_text()\n"
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', status)[1]) // 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    message, megabytes = done.stdout.strip().splitlines()
    assert str(path) in message
    assert int(megabytes) < 300, "of a file of 200 MB"
