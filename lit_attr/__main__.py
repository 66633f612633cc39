"""`python -m lit_attr` does what `lit-attr` does."""

from lit_attr.cli import main

if __name__ == "__main__":
    main()
