from django.apps import AppConfig


class MedSegSiteConfig(AppConfig):
    name = "medseg_site"

    def ready(self) -> None:
        from medseg_site.shared import checks  # noqa: F401 (registers the checks)
