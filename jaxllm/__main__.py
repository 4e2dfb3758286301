"""`python -m jaxllm` is `jaxllm`."""

from jaxllm.cli import main

if __name__ == "__main__":
    main()
