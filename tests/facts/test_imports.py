"""What importing the package of facts imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lit_attr import facts

WITHOUT_TORCH = ["cells", "contrasts", "roles", "rows", "seams", "sources", "templates", "tokenization"]
WITHOUT_TORCH += ["table.cache", "table.donors", "table.preparing"]


def test_facts_up_to_tokenization_need_no_torch():
    modules = ", ".join(f"lit_attr.facts.{name}" for name in WITHOUT_TORCH)
    check = f"import sys, {modules}; assert not {{'torch', 'transformers', 'lightning'}} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", check], check=True)


@pytest.mark.parametrize("name", facts.__all__)
def test_every_public_name_is_there(name: str):
    assert vars(facts).get(name, facts.__getattr__(name)) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'lit_attr.facts' has no attribute 'nothing'"):
        facts.nothing  # noqa: B018  # the lookup itself is what fails
