"""`python -m speechclip` is `speechclip`."""

from speechclip.cli import main

if __name__ == "__main__":
    main()
