"""`python -m pointsman_worker`."""

from pointsman_worker.interface.main import main

if __name__ == "__main__":
    main()
