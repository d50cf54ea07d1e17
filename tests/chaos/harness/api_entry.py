# pyright: basic, reportMissingTypeStubs=false
"""Process entry: the product's API, whose failpoints are read again whenever a file changes."""

import sys


def main() -> None:
    from app.settings import Settings
    from tests.chaos.harness import visits

    visits.follow(Settings().home)
    sys.argv = ["uvicorn", "--factory", "app.main:create_app", *sys.argv[1:]]
    import uvicorn

    uvicorn.main()


if __name__ == "__main__":
    main()
