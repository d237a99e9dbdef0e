"""`python -m cpfast` is the same as the `cpfast` command."""

from cpfast.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
