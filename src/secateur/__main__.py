"""`python -m secateur`, which launchers of several processes need: `torchrun -m secateur run ...`."""

from secateur.cli import main

if __name__ == "__main__":
    main()
