"""`python -m gmtool`."""

from gmtool.cli.start import main

if __name__ == "__main__":
    main()
