"""`python -m meditune`, and so `torchrun -m meditune`."""

from meditune.cli.main import main

if __name__ == "__main__":
    main()
