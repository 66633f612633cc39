"""The page of settings is that of the parser."""

from __future__ import annotations

from make_settings_docs import PAGE, page


def test_the_page_is_up_to_date():
    assert PAGE.read_text("utf-8") == page(), "run scripts/make_settings_docs.py"


def test_every_setting_has_a_row():
    """Beside the parser, the names are those of the signatures as the first look at names reads them."""
    from lit_attr.cli.names import SIGNATURES, names_of

    text = page()
    for group in SIGNATURES:
        for name, nested in (names_of(group) or {}).items():
            for full in [f"{group}.{name}"] if nested is None else [f"{group}.{name}.{each}" for each in nested]:
                # A model and its tokenizer as objects are Python's alone.
                is_object = full in ("model.model", "model.tokenizer")
                assert (f"| `{full}` |" in text) != is_object, full
