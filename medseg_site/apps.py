from django.apps import AppConfig
from django.db.models.signals import post_migrate


class MedSegSiteConfig(AppConfig):
    name = "medseg_site"

    def ready(self) -> None:
        from medseg_site.shared.jobs import moves
        from medseg_site.shared.web import checks, openapi  # noqa: F401 (they register themselves)

        # Every app's signal calls it, because this app has no tables and sends no signal of its own.
        post_migrate.connect(moves.install)
