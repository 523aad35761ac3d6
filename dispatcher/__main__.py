"""`python -m dispatcher` is the console script."""

from dispatcher.cli.main import main

if __name__ == "__main__":
    main()
