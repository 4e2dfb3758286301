"""`jaxllm`, and `python -m jaxllm`: Ctrl-C gets its sentence even while the rest is still being imported."""

import sys


def run() -> None:
    """Run one command and exit with its code."""
    try:
        from jaxllm.cli import main

        main()
    except KeyboardInterrupt:
        print("jaxllm: interrupted", file=sys.stderr)
        sys.exit(75 if sys.argv[1:2] == ["train"] else 130)


if __name__ == "__main__":
    run()
