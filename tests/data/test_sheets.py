"""Sheets of Excel's files."""

import sys
import zipfile

import pytest

from lc_ray.data import read
from lc_ray.data.files import File, files
from lc_ray.errors import DataError

FORMATS, DOCUMENT = "http://schemas.openxmlformats.org", "application/vnd.openxmlformats"
OFFICE, MAIN = f"{FORMATS}/officeDocument/2006/relationships", f"{FORMATS}/spreadsheetml/2006/main"


def related(kind, target):
    relation = f'<Relationship Id="r" Type="{OFFICE}/{kind}" Target="{target}"/>'
    return f'<Relationships xmlns="{FORMATS}/package/2006/relationships">{relation}</Relationships>'


PARTS = {
    "[Content_Types].xml": f'<Types xmlns="{FORMATS}/package/2006/content-types">'
    f'<Default Extension="rels" ContentType="{DOCUMENT}-package.relationships+xml"/>'
    f'<Default Extension="xml" ContentType="{DOCUMENT}-officedocument.spreadsheetml.sheet.main+xml"/></Types>',
    "_rels/.rels": related("officeDocument", "xl/workbook.xml"),
    "xl/workbook.xml": f'<workbook xmlns="{MAIN}" xmlns:r="{OFFICE}"><sheets><sheet name="a" sheetId="1" r:id="r"/></sheets></workbook>',
    "xl/_rels/workbook.xml.rels": related("worksheet", "sheet.xml"),
}


def write(path, rows):
    def cell(value):
        if value is None:
            return "<c/>"
        if isinstance(value, bool):
            return f'<c t="b"><v>{value:d}</v></c>'
        return f'<c t="inlineStr"><is><t>{value}</t></is></c>' if isinstance(value, str) else f"<c><v>{value}</v></c>"

    lines = "".join(f"<row>{''.join(map(cell, row))}</row>" for row in rows)
    with zipfile.ZipFile(path, "w") as file:
        for name, part in (PARTS | {"xl/sheet.xml": f'<worksheet xmlns="{MAIN}"><sheetData>{lines}</sheetData></worksheet>'}).items():
            file.writestr(name, part)


def rows_of(path, names=None):
    (file,) = files(str(path))
    reader = read.Reader(file, names)
    reader.require(["text", "n"])
    return [(row["text"], row["n"]) for chunk in reader.rows(["text", "n"]) for row in chunk]


def test_the_first_sheet(tmp_path):
    pytest.importorskip("python_calamine")
    rows = [["good day", 3], [None, 2.5], [None, None], ["x", True], [1984, None]]
    write(tmp_path / "a.xlsx", [[" text ", "n"], *rows])
    expected = [("good day", 3), (None, 2.5), ("x", True), (1984, None)]
    assert rows_of(tmp_path / "a.xlsx") == expected
    write(tmp_path / "b.xlsx", rows)
    assert rows_of(tmp_path / "b.xlsx", ["text", "n"]) == expected
    (tmp_path / "c.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"c\.xlsx: not a sheet"):
        rows_of(tmp_path / "c.xlsx")


def test_what_reads_sheets_need_not_be_there(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "python_calamine", None)
    write(tmp_path / "a.xlsx", [["text"], ["a"]])
    with pytest.raises(DataError, match=r"a\.xlsx: a sheet needs python-calamine to be read\n.*lc_ray\[excel\]"):
        read.Reader(File(str(tmp_path / "a.xlsx"))).columns()
