"""`python -m robustbench_med`."""

from robustbench_med.cli import main

if __name__ == "__main__":
    main()
