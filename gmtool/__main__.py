"""`python -m gmtool`."""

from gmtool.cli.app import main

if __name__ == "__main__":
    main()
