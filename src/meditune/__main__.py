"""Entry point of `python -m meditune` and `torchrun -m meditune`."""

from meditune.cli.main import main

if __name__ == "__main__":
    main()
