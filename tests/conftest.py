"""Fixtures of all tests, by subject."""

pytest_plugins = ["tests.fixtures.model", "tests.fixtures.database", "tests.fixtures.stack"]
