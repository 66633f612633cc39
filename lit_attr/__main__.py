"""Runs `lit-attr` as `python -m lit_attr`."""

from lit_attr.cli import main

if __name__ == "__main__":
    main()
