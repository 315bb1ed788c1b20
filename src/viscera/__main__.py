"""``python -m viscera``: the same as the command `viscera`."""

from viscera.cli.main import main

if __name__ == "__main__":
    main()
