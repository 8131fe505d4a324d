"""docs/codegen.md: short, and each tool replaces its own rows alone."""

from collections import Counter

from bench import codegen_page, sass

PAGE = """prose
<!-- cuda -->
old
<!-- end of cuda -->
more prose
<!-- triton -->
<!-- end of triton -->
"""
FACTS = sass.Facts(100, Counter(), Counter(), in_flight=4, barriers=2, tensor=1, double=0, local=0)
ROW = codegen_page.Row("k", "float32", registers=40, spilled=8, occupancy=0.625, code=FACTS)


def test_a_section_is_replaced_and_the_rest_is_kept(tmp_path):
    page, tables = tmp_path / "codegen.md", tmp_path / "build" / "codegen"
    page.write_text(PAGE)
    section = codegen_page.section("nvcc 13.0.88", [ROW])
    for _ in range(2):
        codegen_page.write("cuda", "whole", section, page, tables)
    assert page.read_text() == PAGE.replace("old\n", section)
    assert (tables / "cuda.md").read_text() == "whole"
    assert codegen_page.shown("cuda", page) == section
    assert codegen_page.shown("triton", page) == ""
    assert codegen_page.compiler(section) == "nvcc 13.0.88"
    assert section.splitlines()[-1] == "| `k` | float32 | 40 | 8 | 62% | 4 | 2 | 1 |"


def test_the_page_is_short():
    sections = [codegen_page.shown(name) for name in ("cuda", "triton")]
    rows = [line for section in sections for line in section.splitlines() if line.startswith("| `")]
    assert all(codegen_page.compiler(section) for section in sections)
    assert 2 <= len(rows) <= 15
    assert len(codegen_page.PAGE.read_text().splitlines()) <= 80
