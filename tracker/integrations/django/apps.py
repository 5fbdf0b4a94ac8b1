"""The app: settings are read, and mistakes in them told, when Django starts."""

from typing import Any

from django.apps import AppConfig
from django.core.signals import setting_changed

from tracker.integrations.django.trackers import SETTING, tracker


class TillpostConfig(AppConfig):
    """``"tracker.integrations.django"`` in ``INSTALLED_APPS``."""

    name: str = "tracker.integrations.django"
    label: str = "tillpost"
    verbose_name: str = "Tillpost"

    def ready(self) -> None:
        """Configures the tracker; opens and starts nothing."""
        tracker.read_settings()
        setting_changed.connect(_changed, dispatch_uid=self.label)


def _changed(*, setting: str, **_: Any) -> None:
    """Tests override settings."""
    if setting == SETTING:
        tracker.read_settings()
