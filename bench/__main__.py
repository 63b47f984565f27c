"""What the command begins with: loading takes a moment, and Ctrl-C may come in it."""

import os


def main() -> None:
    try:
        from bench import cli
    except KeyboardInterrupt:
        os.write(2, b"bench: interrupted\n")
        os._exit(130)
    cli.main()


if __name__ == "__main__":
    main()
