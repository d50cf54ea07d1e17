"""Fixtures of these tests; they are made in tests/services/place.py."""

from tests.services.place import database, driver, home, outside, settings, tmp_path

__all__ = ["database", "driver", "home", "outside", "settings", "tmp_path"]
