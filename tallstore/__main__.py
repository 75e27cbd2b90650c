"""`python -m tallstore`."""

from tallstore.cli import main

if __name__ == "__main__":
    main()
