"""`python -m hf_lpsgd COMMAND ...`: see hf_lpsgd.runner."""

from hf_lpsgd.runner import main

if __name__ == "__main__":
    main()
