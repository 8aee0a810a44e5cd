from django.apps import AppConfig


class MedSegSiteConfig(AppConfig):
    name = "medseg_site"

    def ready(self) -> None:
        from medseg_site.shared import checks, openapi  # noqa: F401 (they register themselves)
