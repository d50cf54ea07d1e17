"""Settings that would make a process silently useless are refused."""

import pytest
from pydantic import ValidationError

from app.settings import Settings

SECONDS = [name for name in Settings.model_fields if name.endswith("_seconds")]


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize("value", ["inf", "nan", "1e300", "0", "-1"])
def test_a_duration_is_a_time_that_passes(monkeypatch: pytest.MonkeyPatch, name: str, value: str):
    monkeypatch.setenv(f"LORAD_{name.upper()}", value)

    with pytest.raises(ValidationError) as caught:
        Settings()

    assert caught.value.errors()[0]["loc"] == (name,)


@pytest.mark.parametrize("url", ["bogus", "http://localhost:6379", "localhost:6379"])
def test_a_redis_url_has_a_scheme_that_redis_knows(monkeypatch: pytest.MonkeyPatch, url: str):
    monkeypatch.setenv("LORAD_REDIS_URL", url)

    with pytest.raises(ValidationError, match="redis://"):
        Settings()


@pytest.mark.parametrize("url", ["redis://h:1/0", "rediss://h", "unix:///s", "redis+socket:///s"])
def test_a_redis_url_may_have_any_of_the_schemes(monkeypatch: pytest.MonkeyPatch, url: str):
    monkeypatch.setenv("LORAD_REDIS_URL", url)

    assert Settings().broker_url.partition("://")[0] in ("redis", "rediss", "unix")
