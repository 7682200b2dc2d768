"""`python -m rlhf`, the same as `rlhf`."""

from rlhf.cli import main

if __name__ == "__main__":
    main()
