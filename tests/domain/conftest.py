"""How Hypothesis searches: by count alone, since a busy machine is no reason to fail."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "lorad", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("lorad")
