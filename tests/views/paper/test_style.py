"""The style of figures: text that the font draws and that fits."""

from lit_attr.views.paper.style import fit


def test_fit_escapes_what_the_font_lacks_and_shortens_long_text():
    assert fit(" 日", "token") == r"␣\u65e5"
    assert fit("של $x$", "prompt") == r"\u05e9\u05dc $x$"
    assert fit("e\u0301", "prompt") == "é"
    short = fit("日" * 50 + "x" * 200, "prompt")
    assert len(short) <= 120 and "…" in short and short.endswith("x")
