"""``python -m poisontrace``, which is what ``torchrun -m poisontrace`` runs."""

from poisontrace.cli import main

if __name__ == "__main__":
    main()
