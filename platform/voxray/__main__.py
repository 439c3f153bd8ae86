"""`python -m voxray …` is the same program as the console script `voxray …`."""

from voxray.cli.main import main

if __name__ == "__main__":
    main()
